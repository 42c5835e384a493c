"""MobileNetV2: inverted residuals with linear bottlenecks (Sandler et al., 2018)."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax

from jaxkd import _check
from jaxkd.models._layers import (
    check_length,
    check_numbers,
    conv,
    global_mean,
    head,
    norm,
)
from jaxkd.models.net import Net, from_linen

# For each stage the output channels of its groups of blocks; the paper's table 2.
STAGES = ((16, 24), (32,), (64, 96), (160, 320))

# Networks as data, e.g. `mobilenet_v2(**MOBILENETS_V2["mobilenet_v2"], classes=100)`:
# the half-width net of the distillation benchmarks for CIFAR-100, and the paper's own.
MOBILENETS_V2: dict[str, dict[str, Any]] = {
    "mobilenet_v2": {
        "width": 0.5,
        "strides": (1, 1, 2, 2, 1, 2, 1),
        "expand_first": True,
        "relu6": False,
    },
    "mobilenet_v2_imagenet": {},
}


class InvertedResidual(nn.Module):
    """Widen by a 1x1 convolution, depthwise 3x3, narrow by a linear 1x1."""

    width: int
    strides: int
    hidden: int | None
    relu6: bool
    train: bool
    dtype: Any = None
    joins: bool = False  # said, not seen: pruning may make two widths equal

    @nn.compact
    def __call__(self, x):
        """Return the last BatchNorm, plus the input where the shape is the same."""
        activate = jax.nn.relu6 if self.relu6 else jax.nn.relu
        y = x
        if self.hidden is not None:
            y = conv(self.hidden, 1, name="conv1", dtype=self.dtype)(y)
            y = activate(norm(self.train, name="norm1", dtype=self.dtype)(y))
        channels = y.shape[-1]
        y = conv(
            channels, 3, self.strides, groups=channels, name="conv2", dtype=self.dtype
        )(y)
        y = activate(norm(self.train, name="norm2", dtype=self.dtype)(y))
        y = conv(self.width, 1, name="conv3", dtype=self.dtype)(y)
        y = norm(self.train, name="norm3", dtype=self.dtype)(y)
        return x + y if self.joins else y


class MobileNetV2(nn.Module):
    """A strided stem, four stages, a last convolution, the head; see `mobilenet_v2`."""

    width: float
    expansion: int
    blocks: Sequence[int]
    strides: Sequence[int]
    expand_first: bool
    relu6: bool
    classes: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x, train: bool = False):
        """Logits and taps."""
        taps = {}
        activate = jax.nn.relu6 if self.relu6 else jax.nn.relu
        x = conv(int(32 * self.width), 3, 2, name="stem_conv", dtype=self.dtype)(x)
        x = activate(norm(train, name="stem_norm", dtype=self.dtype)(x))
        taps["stem"] = x
        before = int(32 * self.width)
        for i in range(1, len(STAGES) + 1):
            for j, (width, strides, hidden) in enumerate(self._blocks(i), start=1):
                x = InvertedResidual(
                    width,
                    strides,
                    None if hidden is None else hidden * before,
                    self.relu6,
                    train,
                    self.dtype,
                    joins=strides == 1 and width == before,
                    name=f"stage{i}_block{j}",
                )(x)
                before = width
            taps[f"stage{i}"] = taps[f"stage{i}_pre"] = x
        x = conv(
            int(1280 * max(1.0, self.width)), 1, name="last_conv", dtype=self.dtype
        )(x)
        x = activate(norm(train, name="last_norm", dtype=self.dtype)(x))
        taps["unpooled"] = x
        x = taps["pooled"] = global_mean(x)
        return head(self.classes, self.dtype)(x), taps

    def _blocks(self, stage):
        """(channels, stride, expansion) of a stage's blocks; None does not expand."""
        before = sum(map(len, STAGES[: stage - 1]))
        for group, channels in enumerate(STAGES[stage - 1], start=before):
            expansion: int | None = self.expansion
            if group == 0:  # the paper's first block does not widen
                expansion = 1 if self.expand_first else None
            for j in range(self.blocks[group]):
                strides = self.strides[group] if j == 0 else 1
                yield int(channels * self.width), strides, expansion


def mobilenet_v2(
    *,
    classes: int,
    width: float = 1.0,
    expansion: int = 6,
    blocks: Sequence[int] = (1, 2, 3, 4, 3, 3, 1),
    strides: Sequence[int] = (1, 2, 2, 2, 1, 2, 1),
    expand_first: bool = False,
    relu6: bool = True,
    dtype: Any = None,
) -> Net:
    """MobileNetV2, by default the paper's for 224x224 images.

    The preset "mobilenet_v2" is the one of the distillation benchmarks for CIFAR-100:
    half the width, one stride less, ReLU, and a 1x1 convolution also in the block that
    does not widen.

    Taps: `stem` after its activation; `stage1` ... `stage4`, the 24, 32, 96 and 320
    channels (at width 1) that leave a linear bottleneck. No activation follows those,
    so that `stage{i}_pre` is `stage{i}`. The last BatchNorm before it is
    `stage{i}_block{n}/norm3`, n = 3, 3, 7, 4. A 1x1 convolution to 1280 channels
    (`last_conv`, `last_norm`) and its activation give `unpooled`, and the mean over
    positions of that is `pooled`, which the head sees. Convolutions start from He's
    normal distribution (fan-out).

    Args:
      classes: number of logits.
      width: the multiple of all widths but the last convolution's, which does not
        shrink; rounded down (torchvision rounds to multiples of 8).
      expansion: how much wider a block is inside.
      blocks: how many each of the seven groups has.
      strides: of the first block of each of the seven groups.
      expand_first: whether the first block, of expansion 1, still has its first 1x1
        convolution.
      relu6: min(max(x, 0), 6) as the activation, instead of max(x, 0).
      dtype: what to compute in, e.g. `jnp.bfloat16`; parameters and batch statistics
        stay float32 and so do the logits. None follows the input.

    Returns:
      The network, e.g. `mobilenet_v2(**MOBILENETS_V2["mobilenet_v2"], classes=100)`.

    Raises:
      ValueError: if `blocks` or `strides` are not seven, or `width` leaves no channel.

    Example:
      >>> from jaxkd import cost
      >>> cost.of(mobilenet_v2(classes=1000), (224, 224, 3)).parameters
      3504872

    References:
      M. Sandler, A. Howard, M. Zhu, A. Zhmoginov, L.-C. Chen. MobileNetV2: Inverted
      Residuals and Linear Bottlenecks. 2018. https://arxiv.org/abs/1801.04381

      Y. Tian, D. Krishnan, P. Isola. Contrastive Representation Distillation. 2020.
      https://arxiv.org/abs/1910.10699, for the CIFAR-100 network.
    """
    check_numbers(classes=classes, expansion=expansion)
    blocks = check_length("blocks", blocks, 7)
    strides = check_length("strides", strides, 7)
    _check.positive("width", width)
    if int(16 * width) < 1:
        raise ValueError(f"width must leave a channel of 16 (>= 1/16), got {width}")
    return from_linen(
        MobileNetV2(
            width, expansion, blocks, strides, expand_first, relu6, classes, dtype
        )
    )
