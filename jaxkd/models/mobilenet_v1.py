"""MobileNet: depthwise 3x3 and pointwise convolutions in turn (Howard et al., 2017)."""

from typing import Any

import flax.linen as nn

from jaxkd import _check
from jaxkd.models._layers import check_numbers, conv, global_mean, head, norm
from jaxkd.models.net import Net, from_linen

# Networks as data, e.g. `mobilenet_v1(**MOBILENETS_V1["mobilenet_v1"], classes=1000)`.
MOBILENETS_V1: dict[str, dict[str, Any]] = {
    "mobilenet_v1": {"width": 1.0},
    "mobilenet_v1_050": {"width": 0.5},
}

# For each stage the (output channels, stride) of its blocks; the paper's table 1.
STAGES = (
    ((64, 1), (128, 2), (128, 1)),
    ((256, 2), (256, 1)),
    ((512, 2), *[(512, 1)] * 5),
    ((1024, 2), (1024, 1)),
)


class SeparableBlock(nn.Module):
    """Depthwise 3x3 and pointwise convolution; returns the last before its ReLU."""

    width: int
    strides: int
    train: bool
    dtype: Any = None

    @nn.compact
    def __call__(self, x):
        """From the block's input to its last BatchNorm."""
        channels = x.shape[-1]
        x = conv(
            channels, 3, self.strides, groups=channels, name="conv1", dtype=self.dtype
        )(x)
        x = nn.relu(norm(self.train, name="norm1", dtype=self.dtype)(x))
        x = conv(self.width, 1, name="conv2", dtype=self.dtype)(x)
        return norm(self.train, name="norm2", dtype=self.dtype)(x)


class MobileNetV1(nn.Module):
    """A strided stem, four stages of separable blocks, the head; see `mobilenet_v1`."""

    width: float
    classes: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x, train: bool = False):
        """Logits and taps."""
        taps = {}
        scaled = lambda channels: int(channels * self.width)
        x = conv(scaled(32), 3, 2, name="stem_conv", dtype=self.dtype)(x)
        x = nn.relu(norm(train, name="stem_norm", dtype=self.dtype)(x))
        taps["stem"] = x
        for i, blocks in enumerate(STAGES, start=1):
            for j, (channels, strides) in enumerate(blocks, start=1):
                x = taps[f"stage{i}_pre"] = SeparableBlock(
                    scaled(channels),
                    strides,
                    train,
                    self.dtype,
                    name=f"stage{i}_block{j}",
                )(x)
                x = nn.relu(x)
            taps[f"stage{i}"] = x
        taps["unpooled"] = x
        x = taps["pooled"] = global_mean(x)
        return head(self.classes, self.dtype)(x), taps


def mobilenet_v1(*, classes: int, width: float = 1.0, dtype: Any = None) -> Net:
    """MobileNet for 224x224 images; it halves their size five times.

    Taps: `stem` and `stage1` ... `stage4` after ReLU (128, 256, 512 and 1024 channels
    at width 1, at 1/4, 1/8, 1/16 and 1/32 of the image's size), `stage1_pre` ... before
    it, `unpooled` (`stage4`) and `pooled`, its mean over positions, which the head
    sees. The last BatchNorm before `stage{i}_pre` is `stage{i}_block{n}/norm2`, n = 3,
    2, 6, 2. Convolutions start from He's normal distribution (fan-out).

    Args:
      classes: number of logits.
      width: the multiple of all widths (the paper's alpha), rounded down.
      dtype: what to compute in, e.g. `jnp.bfloat16`; parameters and batch statistics
        stay float32 and so do the logits. None follows the input.

    Returns:
      The network.

    Raises:
      ValueError: if `width` leaves no channel.

    Example:
      >>> from jaxkd import cost
      >>> cost.of(mobilenet_v1(classes=1000), (224, 224, 3)).macs
      568740352

    References:
      A. G. Howard et al. MobileNets: Efficient Convolutional Neural Networks for Mobile
      Vision Applications. 2017. https://arxiv.org/abs/1704.04861
    """
    check_numbers(classes=classes)
    _check.positive("width", width)
    if int(32 * width) < 1:
        raise ValueError(f"width must leave the stem a channel (>= 1/32), got {width}")
    return from_linen(MobileNetV1(width, classes, dtype))
