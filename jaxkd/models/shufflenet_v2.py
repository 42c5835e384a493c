"""ShuffleNetV2: half the channels pass a block by (Ma et al., 2018)."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxkd import _check
from jaxkd.models._layers import (
    check_length,
    check_numbers,
    conv,
    global_mean,
    head,
    norm,
    shuffle,
)
from jaxkd.models.net import Net, from_linen

# Networks as data: `shufflenet_v2(**SHUFFLENETS_V2["shufflenet_v2"], classes=100)` is
# the one of the distillation benchmarks for CIFAR-100, and the paper's own (table 5).
SHUFFLENETS_V2: dict[str, dict[str, Any]] = {
    "shufflenet_v2": {"widths": (116, 232, 464, 1024)},
    "shufflenet_v2_imagenet": {"widths": (116, 232, 464, 1024), "stem": "imagenet"},
}


class SplitUnit(nn.Module):
    """1x1, depthwise 3x3 and 1x1 on half the channels, then a shuffle.

    Stride 1 splits the input's channels in halves, of which the first passes by; stride
    2 gives the whole input to both halves of the output. Returned before the last ReLU,
    which the half that passed by has behind it.
    """

    width: int
    strides: int
    train: bool
    dtype: Any = None

    @nn.compact
    def __call__(self, x):
        """From the block's input to both halves, shuffled, before ReLU."""
        half = self.width // 2
        if self.strides == 1:
            left, y = jnp.split(x, 2, axis=-1)
        else:
            left, y = self._left(x, half), x
        y = conv(half, 1, name="conv1", dtype=self.dtype)(y)
        y = nn.relu(norm(self.train, name="norm1", dtype=self.dtype)(y))
        y = conv(half, 3, self.strides, groups=half, name="conv2", dtype=self.dtype)(y)
        y = norm(self.train, name="norm2", dtype=self.dtype)(y)
        y = conv(half, 1, name="conv3", dtype=self.dtype)(y)
        y = norm(self.train, name="norm3", dtype=self.dtype)(y)
        return shuffle(jnp.concatenate([left, y], axis=-1), 2)

    def _left(self, x, half):
        """Return the first half where the size changes: depthwise 3x3, then 1x1."""
        inputs = x.shape[-1]
        y = conv(
            inputs,
            3,
            self.strides,
            groups=inputs,
            name="left_conv1",
            dtype=self.dtype,
        )(x)
        y = norm(self.train, name="left_norm1", dtype=self.dtype)(y)
        y = conv(half, 1, name="left_conv2", dtype=self.dtype)(y)
        return norm(self.train, name="left_norm2", dtype=self.dtype)(y)


class ShuffleNetV2(nn.Module):
    """A stem, three stages of split units, a last convolution; see `shufflenet_v2`."""

    widths: Sequence[int]
    blocks: Sequence[int]
    stem: str
    classes: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x, train: bool = False):
        """Logits and taps."""
        taps = {}
        window, strides = (3, 2) if self.stem == "imagenet" else (1, 1)
        x = conv(24, window, strides, name="stem_conv", dtype=self.dtype)(x)
        x = nn.relu(norm(train, name="stem_norm", dtype=self.dtype)(x))
        taps["stem"] = x
        if self.stem == "imagenet":
            x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        plan = zip(self.widths, self.blocks, strict=False)
        for i, (width, blocks) in enumerate(plan, start=1):
            for j in range(1, blocks + 1):
                name, strides = f"stage{i}_block{j}", 2 if j == 1 else 1
                x = SplitUnit(width, strides, train, self.dtype, name=name)(x)
                taps[f"stage{i}_pre"] = x
                x = nn.relu(x)
            taps[f"stage{i}"] = x
        x = conv(self.widths[-1], 1, name="last_conv", dtype=self.dtype)(x)
        x = nn.relu(norm(train, name="last_norm", dtype=self.dtype)(x))
        taps["unpooled"] = x
        x = taps["pooled"] = global_mean(x)
        return head(self.classes, self.dtype)(x), taps


def shufflenet_v2(
    *,
    classes: int,
    widths: Sequence[int] = (116, 232, 464, 1024),
    blocks: Sequence[int] = (4, 8, 4),
    stem: str = "cifar",
    dtype: Any = None,
) -> Net:
    """ShuffleNetV2, by default as the distillation benchmarks for CIFAR-100 have it.

    Taps: `stem` (after ReLU, before a pooling) and `stage1` ... `stage3` after ReLU and
    shuffle, `stage1_pre` ... the same before ReLU, in the same order of channels. Every
    second channel of `stage{i}_pre`, from the second on, is from the BatchNorm
    `stage{i}_block{n}/norm3`, n the stage's number of blocks; those between passed by
    and are not negative. A 1x1 convolution (`last_conv`, `last_norm`) and ReLU give
    `unpooled`, and the mean over positions of that is `pooled`, which the head sees.
    Convolutions start from He's normal distribution (fan-out).

    Args:
      classes: number of logits.
      widths: channels of the three stages (even) and of the last convolution.
      blocks: units of each stage, the strided one included.
      stem: "cifar" is a 1x1 convolution of stride 1; "imagenet" is a 3x3 convolution
        and a 3x3 max pooling, both of stride 2.
      dtype: what to compute in, e.g. `jnp.bfloat16`; parameters and batch statistics
        stay float32 and so do the logits. None follows the input.

    Returns:
      The network.

    Raises:
      ValueError: if `widths` are not four or a stage's is odd, `blocks` are not three,
        or the stem is unknown.

    Example:
      >>> from jaxkd import cost
      >>> cost.of(shufflenet_v2(classes=100), (32, 32, 3)).parameters
      1355528

    References:
      N. Ma, X. Zhang, H.-T. Zheng, J. Sun. ShuffleNet V2: Practical Guidelines for
      Efficient CNN Architecture Design. 2018. https://arxiv.org/abs/1807.11164

      Y. Tian, D. Krishnan, P. Isola. Contrastive Representation Distillation. 2020.
      https://arxiv.org/abs/1910.10699, for the CIFAR-100 network.
    """
    check_numbers(classes=classes)
    _check.one_of("cifar", "imagenet")("stem", stem)
    widths = check_length("widths", widths, 4)
    blocks = check_length("blocks", blocks, 3)
    if any(width % 2 for width in widths[:3]):
        raise ValueError(f"widths of the stages must be even, got {widths[:3]}")
    return from_linen(ShuffleNetV2(widths, blocks, stem, classes, dtype))
