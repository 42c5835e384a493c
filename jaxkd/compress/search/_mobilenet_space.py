"""The space of 30 positions around MobileNetV2 (Light-NAS), for 32x32 images."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn

from jaxkd.compress.search._space import Space
from jaxkd.models._layers import check_numbers, conv, global_mean, head, norm
from jaxkd.models.net import Net, from_linen

WIDTHS = ((12, 16, 24), (16, 24, 32), (32, 48, 64), (48, 64, 96), (96, 128, 160))
STRIDES = (1, 2, 2, 1, 2)  # 32, 16, 8, 8 and 4 pixels
STEM, LAST = 16, 320
SQUEEZE = 4  # squeeze-and-excite has a quarter of the channels inside


class GroupChoices(NamedTuple):
    """One group of blocks: what its six tokens say."""

    expansion: int
    width: int
    depth: int
    kernel: int
    shortcut: int
    squeeze_excite: int


class SqueezeExcite(nn.Module):
    """Channels scaled by what their means over all positions say."""

    @nn.compact
    def __call__(self, x):
        """Return the same shape."""
        channels = x.shape[-1]
        s = nn.Dense(max(1, channels // SQUEEZE), name="squeeze")(global_mean(x))
        s = nn.Dense(channels, name="excite")(nn.relu(s))
        return x * nn.sigmoid(s)[:, None, None, :]


class Inverted(nn.Module):
    """Widen by a 1x1 convolution, depthwise, perhaps squeeze-excite, narrow."""

    group: GroupChoices
    strides: int
    train: bool

    @nn.compact
    def __call__(self, x):
        """From one linear bottleneck to the next."""
        g, hidden = self.group, self.group.expansion * x.shape[-1]
        y = nn.relu(norm(self.train, name="norm1")(conv(hidden, 1, name="conv1")(x)))
        y = conv(hidden, g.kernel, self.strides, groups=hidden, name="conv2")(y)
        y = nn.relu(norm(self.train, name="norm2")(y))
        if g.squeeze_excite:
            y = SqueezeExcite(name="squeeze_excite")(y)
        y = norm(self.train, name="norm3")(conv(g.width, 1, name="conv3")(y))
        same = self.strides == 1 and x.shape[-1] == g.width
        return x + y if g.shortcut and same else y


class ConvNormRelu(nn.Module):
    """A convolution, BatchNorm and ReLU: the stem, and the last one."""

    width: int
    window: int
    strides: int
    train: bool

    @nn.compact
    def __call__(self, x):
        """Return the feature map."""
        x = conv(self.width, self.window, self.strides, name="conv")(x)
        return nn.relu(norm(self.train, name="norm")(x))


class FreeMobileNet(nn.Module):
    """A stem, five groups of inverted residuals, a last convolution, the head."""

    groups: Sequence[GroupChoices]
    stem_strides: int
    classes: int

    @nn.compact
    def __call__(self, x, train: bool = False):
        """Logits and taps."""
        x = ConvNormRelu(STEM, 3, self.stem_strides, train, name="stem")(x)
        taps = {"stem": x}
        for i, group in enumerate(self.groups, start=1):
            for j in range(1, group.depth + 1):
                strides = STRIDES[i - 1] if j == 1 else 1
                x = Inverted(group, strides, train, name=f"stage{i}_block{j}")(x)
            taps[f"stage{i}"] = x
        x = ConvNormRelu(LAST, 1, 1, train, name="last")(x)
        x = taps["pooled"] = global_mean(x)
        return head(self.classes, None)(x), taps


def mobilenet_space(classes: int, *, stem_strides: int = 1) -> Space:
    """Five groups of MobileNetV2's blocks with six choices each: 30 positions.

    For each group `stage{i}_`: `expansion` 3, 4, 5 or 6; `width` of three; `depth` 1, 2
    or 3 blocks; `kernel` 3 or 5; `shortcut` 0 or 1, where a block keeps its shape;
    `squeeze_excite` 0 or 1. These are the choices of PaddleSlim's Light-NAS; widths and
    strides are this library's, for 32x32 images. Depthwise convolutions are slow on
    XLA:CPU: for a search there, see `resnet_space`.

    Taps: `stem`, `stage1` ... `stage5` (linear bottlenecks) and `pooled`.

    Args:
      classes: number of logits.
      stem_strides: 2 halves the images first: a quarter of the cost, for a CPU.

    Returns:
      The space, of (4 * 3 * 3 * 2 * 2 * 2)^5 networks.

    Example:
      >>> space = mobilenet_space(10)
      >>> len(space.sizes), space.size == 288**5
      (30, True)

    References:
      M. Sandler, A. Howard, M. Zhu, A. Zhmoginov, L.-C. Chen. MobileNetV2: Inverted
      Residuals and Linear Bottlenecks. 2018. https://arxiv.org/abs/1801.04381

      J. Hu, L. Shen, G. Sun. Squeeze-and-Excitation Networks. 2018.
      https://arxiv.org/abs/1709.01507
    """
    check_numbers(classes=classes, stem_strides=stem_strides)
    choices: dict[str, tuple[int, ...]] = {}
    for i, widths in enumerate(WIDTHS, start=1):
        each = (3, 4, 5, 6), widths, (1, 2, 3), (3, 5), (0, 1), (0, 1)
        names = (f"stage{i}_{field}" for field in GroupChoices._fields)
        choices |= dict(zip(names, each, strict=True))

    def build(**values: Any) -> Net:
        groups = tuple(
            GroupChoices(
                *(values[f"stage{i}_{field}"] for field in GroupChoices._fields)
            )
            for i in range(1, len(WIDTHS) + 1)
        )
        return from_linen(FreeMobileNet(groups, stem_strides, classes))

    name = f"mobilenet, {classes} classes, stem stride {stem_strides}"
    return Space(name, choices, build)


def mobilenet_base() -> dict[str, int]:
    """Return the middle of `mobilenet_space`: expansion 6, kernel 3, with shortcuts."""
    usual: dict[str, int] = {}
    for i, widths in enumerate(WIDTHS, start=1):
        group = GroupChoices(6, widths[1], 2, 3, 1, 0)
        usual |= {f"stage{i}_{k}": v for k, v in group._asdict().items()}
    return usual
