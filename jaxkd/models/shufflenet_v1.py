"""ShuffleNet: grouped pointwise convolutions and shuffles (Zhang et al., 2018)."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

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

STEM = 24

# Networks as data: `shufflenet_v1(**SHUFFLENETS_V1["shufflenet_v1"], classes=100)`.
SHUFFLENETS_V1: dict[str, dict[str, Any]] = {
    "shufflenet_v1": {"widths": (240, 480, 960), "groups": 3},
}


class ShuffleUnit(nn.Module):
    """Grouped 1x1, shuffle, depthwise 3x3, grouped 1x1; returned before the last ReLU.

    Stride 1 adds the input; stride 2 puts its 3x3 mean beside the branch.
    """

    width: int
    strides: int
    groups: int
    first: bool
    train: bool
    dtype: Any = None

    @nn.compact
    def __call__(self, x):
        """From the block's input to the sum, or the concatenation, before ReLU."""
        joined = self.strides == 2
        outputs = self.width - x.shape[-1] if joined else self.width
        inner = outputs // 4
        # The stem's few channels are not divided, as in the paper's stage 2.
        groups = 1 if self.first else self.groups
        y = conv(inner, 1, groups=groups, name="conv1", dtype=self.dtype)(x)
        y = nn.relu(norm(self.train, name="norm1", dtype=self.dtype)(y))
        y = shuffle(y, groups)
        y = conv(inner, 3, self.strides, groups=inner, name="conv2", dtype=self.dtype)(
            y
        )
        y = nn.relu(norm(self.train, name="norm2", dtype=self.dtype)(y))
        y = conv(outputs, 1, groups=self.groups, name="conv3", dtype=self.dtype)(y)
        y = norm(self.train, name="norm3", dtype=self.dtype)(y)
        if not joined:
            return x + y
        return jnp.concatenate(
            [y, nn.avg_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))], axis=-1
        )


class ShuffleNetV1(nn.Module):
    """A 1x1 stem, three stages of shuffle units, the head; see `shufflenet_v1`."""

    widths: Sequence[int]
    blocks: Sequence[int]
    groups: int
    classes: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x, train: bool = False):
        """Logits and taps."""
        taps = {}
        x = conv(STEM, 1, name="stem_conv", dtype=self.dtype)(x)
        x = nn.relu(norm(train, name="stem_norm", dtype=self.dtype)(x))
        taps["stem"] = x
        plan = zip(self.widths, self.blocks, strict=True)
        for i, (width, blocks) in enumerate(plan, start=1):
            for j in range(1, blocks + 1):
                x = taps[f"stage{i}_pre"] = ShuffleUnit(
                    width,
                    2 if j == 1 else 1,
                    self.groups,
                    i == j == 1,
                    train,
                    self.dtype,
                    name=f"stage{i}_block{j}",
                )(x)
                x = nn.relu(x)
            taps[f"stage{i}"] = x
        taps["unpooled"] = x
        x = taps["pooled"] = global_mean(x)
        return head(self.classes, self.dtype)(x), taps


def shufflenet_v1(
    *,
    classes: int,
    widths: Sequence[int] = (240, 480, 960),
    blocks: Sequence[int] = (4, 8, 4),
    groups: int = 3,
    dtype: Any = None,
) -> Net:
    """ShuffleNet for small images, as distillation benchmarks for CIFAR-100 have it.

    The stem is a 1x1 convolution to 24 channels at full size, and not the paper's
    strided one with a pooling; each of the three stages halves the size.

    Taps: `stem` and `stage1` ... `stage3` after ReLU, `stage1_pre` ... before it,
    `unpooled` (`stage3`) and `pooled`, its mean over positions, which the head sees.
    The last BatchNorm before `stage{i}_pre` is `stage{i}_block{n}/norm3`, n the stage's
    number of blocks. Convolutions start from He's normal distribution (fan-out).

    Args:
      classes: number of logits.
      widths: channels of the three stages; the first includes the stem's 24, passed by.
      blocks: units of each stage, the strided one included.
      groups: into how many groups the channels of 1x1 convolutions are divided.
      dtype: what to compute in, e.g. `jnp.bfloat16`; parameters and batch statistics
        stay float32 and so do the logits. None follows the input.

    Returns:
      The network.

    Raises:
      ValueError: if `widths` or `blocks` are not three, or the groups do not divide
        the channels.

    Example:
      >>> from jaxkd import cost
      >>> cost.of(shufflenet_v1(classes=100), (32, 32, 3)).parameters
      949258

    References:
      X. Zhang, X. Zhou, M. Lin, J. Sun. ShuffleNet: An Extremely Efficient
      Convolutional Neural Network for Mobile Devices. 2018.
      https://arxiv.org/abs/1707.01083

      Y. Tian, D. Krishnan, P. Isola. Contrastive Representation Distillation. 2020.
      https://arxiv.org/abs/1910.10699, for the CIFAR-100 network.
    """
    check_numbers(classes=classes, groups=groups)
    widths = check_length("widths", widths, 3)
    blocks = check_length("blocks", blocks, 3)
    grown = [b - a for a, b in zip((STEM, *widths), widths, strict=False)]
    for outputs in (*grown, *widths):
        if outputs < 4 * groups or outputs % groups or outputs // 4 % groups:
            raise ValueError(
                f"widths must grow by channels that {groups} groups divide, also a "
                f"quarter of them, got {widths} after a stem of {STEM}"
            )
    return from_linen(ShuffleNetV1(widths, blocks, groups, classes, dtype))
