"""RegNet: residual networks from a design space (Radosavovic et al., 2020)."""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxkd.models._layers import (
    check_length,
    check_numbers,
    conv,
    global_mean,
    head,
    norm,
)
from jaxkd.models.net import Net, from_linen
from jaxkd.models.resnet import residual_stage, shortcut

# Networks as data, e.g. `regnet(**REGNETS["regnet_y_400mf"], classes=1000)`.
REGNETS: dict[str, dict[str, Any]] = {
    "regnet_y_400mf": {
        "blocks": (1, 3, 6, 6),
        "widths": (48, 104, 208, 440),
        "group_width": 8,
        "squeezes": True,
    },
    "regnet_x_400mf": {
        "blocks": (1, 2, 7, 12),
        "widths": (32, 64, 160, 400),
        "group_width": 16,
    },
}


class RegNetBlock(nn.Module):
    """1x1, grouped 3x3 (with the stride), squeeze and excitation, 1x1; a shortcut."""

    width: int
    group_width: int
    squeezes: bool
    strides: int
    train: bool
    dtype: Any = None
    projects: bool = False  # said, not seen: pruning may make two widths equal

    @nn.compact
    def __call__(self, x):
        """From the block's input to the sum of the branch and the shortcut."""
        groups = self.width // self.group_width
        y = conv(self.width, 1, name="conv1", dtype=self.dtype)(x)
        y = nn.relu(norm(self.train, name="norm1", dtype=self.dtype)(y))
        y = conv(
            self.width, 3, self.strides, groups=groups, name="conv2", dtype=self.dtype
        )(y)
        y = nn.relu(norm(self.train, name="norm2", dtype=self.dtype)(y))
        if self.squeezes:
            y = y * self._gates(y, round(x.shape[-1] / 4))
        y = conv(self.width, 1, name="conv3", dtype=self.dtype)(y)
        y = norm(self.train, name="norm3", dtype=self.dtype)(y)
        return y + shortcut(self, x, self.width)

    def _gates(self, x, squeezed):
        dense = lambda features, name: conv(
            features, 1, use_bias=True, name=name, dtype=self.dtype
        )
        y = dense(squeezed, "squeeze_reduce")(jnp.mean(x, (1, 2), keepdims=True))
        return jax.nn.sigmoid(dense(x.shape[-1], "squeeze_expand")(nn.relu(y)))


class RegNet(nn.Module):
    """A strided stem, four stages of residual blocks, the head; see `regnet`."""

    blocks: Sequence[int]
    widths: Sequence[int]
    group_width: int
    squeezes: bool
    classes: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x, train: bool = False):
        """Logits and taps."""
        taps = {}
        x = conv(32, 3, 2, name="stem_conv", dtype=self.dtype)(x)
        x = nn.relu(norm(train, name="stem_norm", dtype=self.dtype)(x))
        taps["stem"] = x
        plan = zip(self.widths, self.blocks, strict=True)
        for i, (width, blocks) in enumerate(plan, start=1):
            block = functools.partial(
                RegNetBlock,
                width,
                self.group_width,
                self.squeezes,
                train=train,
                dtype=self.dtype,
            )
            x = residual_stage(x, i, block, blocks, 2, taps, widens=True)
        taps["unpooled"] = x
        x = taps["pooled"] = global_mean(x)
        return head(self.classes, self.dtype)(x), taps


def regnet(
    blocks: Sequence[int],
    widths: Sequence[int],
    *,
    group_width: int,
    classes: int,
    squeezes: bool = False,
    dtype: Any = None,
) -> Net:
    """RegNet for 224x224 images; it halves their size five times.

    Taps: `stem` and `stage1` ... `stage4` after ReLU, `stage1_pre` ... before it,
    `unpooled` (`stage4`) and `pooled`, its mean over positions, which the head sees.
    The last BatchNorm before `stage{i}_pre` is `stage{i}_block{n}/norm3`, n the stage's
    number of blocks. Convolutions start from He's normal distribution (fan-out).

    Args:
      blocks: how many each of the four stages has.
      widths: channels of the four stages.
      group_width: channels of a group of the 3x3 convolutions; divides the widths.
      classes: number of logits.
      squeezes: squeeze and excitation in each block, to a quarter of the
        input (RegNetY).
      dtype: what to compute in, e.g. `jnp.bfloat16`; parameters and batch statistics
        stay float32 and so do the logits. None follows the input.

    Returns:
      The network, e.g. `regnet(**REGNETS["regnet_y_400mf"], classes=1000)`.

    Raises:
      ValueError: if `blocks` or `widths` are not four positive integers, or the groups
        do not divide the widths.

    Example:
      >>> from jaxkd import cost
      >>> net = regnet(**REGNETS["regnet_y_400mf"], classes=1000)
      >>> cost.of(net, (224, 224, 3)).parameters
      4344144

    References:
      I. Radosavovic, R. P. Kosaraju, R. Girshick, K. He, P. Dollár. Designing Network
      Design Spaces. 2020. https://arxiv.org/abs/2003.13678
    """
    check_numbers(classes=classes, group_width=group_width)
    blocks = check_length("blocks", blocks, 4)
    widths = check_length("widths", widths, 4)
    if any(width % group_width for width in widths):
        raise ValueError(f"group_width must divide the widths {widths}: {group_width}")
    return from_linen(RegNet(blocks, widths, group_width, squeezes, classes, dtype))
