"""A space of residual networks: widths inside and between blocks, and depths."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn

from jaxkd.compress.search._space import Space
from jaxkd.models._layers import (
    check_length,
    check_numbers,
    conv,
    global_mean,
    head,
    norm,
)
from jaxkd.models.net import Net, from_linen

RATIOS = (0.5, 0.75, 1.0, 1.25, 1.5)  # of a stage's usual width
INNER = (0.5, 0.75, 1.0, 1.5)  # of the stage's width, inside its blocks


class Stem(nn.Module):
    """A 3x3 convolution, BatchNorm and ReLU."""

    width: int
    strides: int
    train: bool

    @nn.compact
    def __call__(self, x):
        """Return the first feature map."""
        x = conv(self.width, 3, self.strides, name="conv")(x)
        return nn.relu(norm(self.train, name="norm")(x))


class Residual(nn.Module):
    """Two 3x3 convolutions, the width between them free, a shortcut, ReLU."""

    width: int
    inner: int
    strides: int
    train: bool

    @nn.compact
    def __call__(self, x):
        """From one feature map to the next."""
        y = conv(self.inner, 3, self.strides, name="conv1")(x)
        y = nn.relu(norm(self.train, name="norm1")(y))
        y = norm(self.train, name="norm2")(conv(self.width, 3, name="conv2")(y))
        if self.strides != 1 or x.shape[-1] != self.width:
            x = conv(self.width, 1, self.strides, name="shortcut_conv")(x)
            x = norm(self.train, name="shortcut_norm")(x)
        return nn.relu(x + y)


class FreeResNet(nn.Module):
    """A stem, stages of residual blocks of any widths, the head.

    Attributes:
      stem: the stem's width.
      stem_strides: its stride.
      stages: for each stage (width, inner width, blocks).
      classes: number of logits.
    """

    stem: int
    stem_strides: int
    stages: Sequence[tuple[int, int, int]]
    classes: int

    @nn.compact
    def __call__(self, x, train: bool = False):
        """Logits and taps."""
        x = Stem(self.stem, self.stem_strides, train, name="stem")(x)
        taps = {"stem": x}
        for i, (width, inner, blocks) in enumerate(self.stages, start=1):
            for j in range(1, blocks + 1):
                strides = 2 if i > 1 and j == 1 else 1
                name = f"stage{i}_block{j}"
                x = Residual(width, inner, strides, train, name=name)(x)
            taps[f"stage{i}"] = x
        x = taps["pooled"] = global_mean(x)
        return head(self.classes, None)(x), taps


def resnet_space(
    classes: int,
    *,
    widths: Sequence[int] = (16, 16, 32, 64),
    blocks: Sequence[int] = (1, 2),
    stem_strides: int = 1,
    multiple: int = 4,
) -> Space:
    """Residual networks of three stages: the stem's and each stage's width and depth.

    Ten positions: `stem` (0.5, 0.75, 1, 1.25 and 1.5 times its usual width) and, for
    each stage, `stage{i}_width` (likewise), `stage{i}_inner` (the width between the
    two convolutions of its blocks, 0.5, 0.75, 1 or 1.5 times the stage's) and
    `stage{i}_blocks`. With all ratios 1 it is `models.resnet` of these widths: see
    `resnet_base`.

    Taps: `stem`, `stage1` ... `stage3` and `pooled`.

    Args:
      classes: number of logits.
      widths: the usual widths of stem and stages.
      blocks: how many blocks a stage may have.
      stem_strides: 2 halves the images first: a quarter of the cost, for a CPU.
      multiple: widths are rounded to a multiple of this, which runtimes prefer.

    Returns:
      The space.

    Raises:
      ValueError: if a number is not a positive integer, or `widths` are not four.

    Example:
      >>> space = resnet_space(10)
      >>> space.choices["stage3_width"]
      (32, 48, 64, 80, 96)
      >>> space.size
      320000
    """
    check_numbers(
        classes=classes, blocks=blocks, stem_strides=stem_strides, multiple=multiple
    )
    stem, *usual = check_length("widths", widths, 4)
    near = lambda w: max(multiple, round(w / multiple) * multiple)
    choices: dict[str, tuple[Any, ...]] = {
        "stem": tuple(near(r * stem) for r in RATIOS)
    }
    for i, width in enumerate(usual, start=1):
        choices[f"stage{i}_width"] = tuple(near(r * width) for r in RATIOS)
        choices[f"stage{i}_inner"] = INNER
        choices[f"stage{i}_blocks"] = tuple(blocks)
    for name, values in choices.items():
        choices[name] = tuple(dict.fromkeys(values))  # rounding may make two the same

    def build(**values: Any) -> Net:
        stages = tuple(
            (
                values[f"stage{i}_width"],
                near(values[f"stage{i}_inner"] * values[f"stage{i}_width"]),
                values[f"stage{i}_blocks"],
            )
            for i in range(1, len(usual) + 1)
        )
        return from_linen(FreeResNet(values["stem"], stem_strides, stages, classes))

    name = f"resnet, {classes} classes, stem stride {stem_strides}"
    return Space(f"{name}, multiples of {multiple}", choices, build)


def resnet_base(
    space: Space, widths: Sequence[int] = (16, 16, 32, 64), *, blocks: int | None = None
) -> dict[str, Any]:
    """Return the values of the usual network of `resnet_space`.

    Args:
      space: from `resnet_space`.
      widths: of its stem and its stages.
      blocks: in each stage; None is the fewest there are.

    Raises:
      ValueError: if the space does not have so many blocks.

    Example:
      >>> from jaxkd import cost, models
      >>> space = resnet_space(10)
      >>> usual = cost.of(space.build(**resnet_base(space, blocks=2)), (32, 32, 3))
      >>> usual == cost.of(models.resnet(14, classes=10), (32, 32, 3))
      True
    """
    values: dict[str, Any] = {"stem": widths[0]}
    for i, width in enumerate(widths[1:], start=1):
        depths = space.choices[f"stage{i}_blocks"]
        if blocks is not None and blocks not in depths:
            raise ValueError(f"blocks must be one of {depths}, got {blocks}")
        values |= {f"stage{i}_width": width, f"stage{i}_inner": 1.0}
        values[f"stage{i}_blocks"] = blocks or min(depths)
    return values
