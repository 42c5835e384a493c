"""Residual networks for 32x32 images: He et al.'s, with projection shortcuts."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn

from jaxkd.models._layers import (
    check_length,
    check_numbers,
    conv,
    global_mean,
    head,
    norm,
)
from jaxkd.models.net import Net, from_linen

WIDE = (32, 64, 128, 256)

# Networks as data, e.g. `resnet(**RESNETS["resnet8x4"], classes=100)`.
RESNETS: dict[str, dict[str, Any]] = {
    "resnet8": {"depth": 8},
    "resnet14": {"depth": 14},
    "resnet20": {"depth": 20},
    "resnet32": {"depth": 32},
    "resnet44": {"depth": 44},
    "resnet56": {"depth": 56},
    "resnet110": {"depth": 110},
    "resnet8x4": {"depth": 8, "widths": WIDE},
    "resnet32x4": {"depth": 32, "widths": WIDE},
}


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; returns the sum before its ReLU."""

    width: int
    strides: int
    train: bool
    dtype: Any = None
    projects: bool = False  # said, not seen: pruning may make two widths equal

    @nn.compact
    def __call__(self, x):
        """From the block's input to the sum of the branch and the shortcut."""
        y = conv(self.width, 3, self.strides, name="conv1", dtype=self.dtype)(x)
        y = nn.relu(norm(self.train, name="norm1", dtype=self.dtype)(y))
        y = conv(self.width, 3, name="conv2", dtype=self.dtype)(y)
        y = norm(self.train, name="norm2", dtype=self.dtype)(y)
        return y + shortcut(self, x, y.shape[-1])


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride) and 1x1 to four times the width, and a shortcut.

    `inner` channels are between the convolutions, `width` if None; the 3x3 convolution
    has `groups`.
    """

    width: int
    strides: int
    train: bool
    dtype: Any = None
    projects: bool = False  # said, not seen: pruning may make two widths equal
    inner: int | None = None
    groups: int = 1

    @nn.compact
    def __call__(self, x):
        """From the block's input to the sum of the branch and the shortcut."""
        inner = self.width if self.inner is None else self.inner
        y = conv(inner, 1, name="conv1", dtype=self.dtype)(x)
        y = nn.relu(norm(self.train, name="norm1", dtype=self.dtype)(y))
        y = conv(
            inner, 3, self.strides, groups=self.groups, name="conv2", dtype=self.dtype
        )(y)
        y = nn.relu(norm(self.train, name="norm2", dtype=self.dtype)(y))
        y = conv(4 * self.width, 1, name="conv3", dtype=self.dtype)(y)
        y = norm(self.train, name="norm3", dtype=self.dtype)(y)
        return y + shortcut(self, x, y.shape[-1])


def shortcut(block, x, width):
    """`x`, projected by a 1x1 convolution and BatchNorm where its shape changes."""
    if not block.projects:
        return x
    x = conv(width, 1, block.strides, name="shortcut_conv", dtype=block.dtype)(x)
    return norm(block.train, name="shortcut_norm", dtype=block.dtype)(x)


def residual_stage(x, stage, block, blocks, strides, taps, *, widens):
    """`stage{i}_block1` ...: the first has the stride; puts down the stage's taps."""
    for j in range(1, blocks + 1):
        x = block(
            strides=strides if j == 1 else 1,
            projects=j == 1 and (widens or strides != 1),
            name=f"stage{stage}_block{j}",
        )(x)
        taps[f"stage{stage}_pre"] = x
        x = nn.relu(x)
    taps[f"stage{stage}"] = x
    return x


class ResNet(nn.Module):
    """A 3x3 stem, three stages of basic blocks, the head; see `resnet`."""

    blocks: int
    widths: Sequence[int]
    classes: int
    dtype: Any = None
    remat: bool = False

    @nn.compact
    def __call__(self, x, train: bool = False):
        """Logits and taps."""
        taps = {}
        x = conv(self.widths[0], 3, name="stem_conv", dtype=self.dtype)(x)
        x = nn.relu(norm(train, name="stem_norm", dtype=self.dtype)(x))
        taps["stem"] = x
        kind = nn.remat(BasicBlock) if self.remat else BasicBlock
        for i, width in enumerate(self.widths[1:], start=1):
            block = lambda width=width, **how: kind(
                width, train=train, dtype=self.dtype, **how
            )
            widens = width != self.widths[i - 1]
            strides = 1 if i == 1 else 2
            x = residual_stage(x, i, block, self.blocks, strides, taps, widens=widens)
        taps["unpooled"] = x
        x = taps["pooled"] = global_mean(x)
        return head(self.classes, self.dtype)(x), taps


def resnet(
    depth: int,
    *,
    classes: int,
    widths: Sequence[int] = (16, 16, 32, 64),
    dtype: Any = None,
    remat: bool = False,
) -> Net:
    """Return a residual network for small images, of 6n + 2 layers.

    A 3x3 convolution, then three stages of n basic blocks at full, half and quarter
    size, the mean over positions, the head. Where a block changes the shape, its
    shortcut is a 1x1 convolution with BatchNorm (the paper's option B, as in the
    distillation benchmark of Tian et al.; the paper's own CIFAR nets have option A,
    without parameters).

    Taps: `stem` and `stage1` ... `stage3` after ReLU, `stage1_pre` ... before it,
    `unpooled` (`stage3`) and `pooled`, its mean over positions, which the head sees.
    The last BatchNorm before `stage{i}_pre` is `stage{i}_block{n}/norm2`. Convolutions
    start from He's normal distribution (fan-out).

    Args:
      depth: 6n + 2: 8, 14, 20, 32, 44, 56, 110 ...
      classes: number of logits.
      widths: channels of the stem and of the three stages.
      dtype: what to compute in, e.g. `jnp.bfloat16`; parameters and batch statistics
        stay float32 and so do the logits. None follows the input.
      remat: keeps a block's input instead of all inside it for the gradient: less
        memory, one more forward pass. Interceptors must not keep values they see.

    Returns:
      The network, e.g. `resnet(**RESNETS["resnet8x4"], classes=100)`.

    Raises:
      ValueError: if `depth` is not 6n + 2, or `widths` are not four.

    Example:
      >>> from jaxkd import cost
      >>> cost.of(resnet(20, classes=10), (32, 32, 3)).parameters
      272474

    References:
      K. He, X. Zhang, S. Ren, J. Sun. Deep Residual Learning for Image Recognition.
      2016. https://arxiv.org/abs/1512.03385 section 4.2.

      Y. Tian, D. Krishnan, P. Isola. Contrastive Representation Distillation. 2020.
      https://arxiv.org/abs/1910.10699, whose CIFAR-100 networks these are.
    """
    check_numbers(depth=depth, classes=classes)
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(f"depth must be 6n + 2 (8, 14, 20, ...), got {depth}")
    widths = check_length("widths", widths, 4)
    return from_linen(ResNet((depth - 2) // 6, widths, classes, dtype, remat))
