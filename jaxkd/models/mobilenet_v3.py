"""MobileNetV3: inverted residuals found by search (Howard et al., 2019)."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn

from jaxkd import _check
from jaxkd.models._layers import (
    TORCH_LINEAR,
    check_numbers,
    conv,
    global_mean,
    head,
    norm as batch_norm,
)
from jaxkd.models._mbconv import ACTIVATIONS, MBConv, Style, divisible
from jaxkd.models.net import Net, from_linen


class Block(NamedTuple):
    """A row of the paper's tables: window, channels inside and out, squeeze, ..."""

    window: int
    hidden: int
    width: int
    squeezes: bool
    activation: str
    strides: int


R, H = "relu", "hard_swish"
SMALL = (
    (Block(3, 16, 16, True, R, 2),),
    (Block(3, 72, 24, False, R, 2), Block(3, 88, 24, False, R, 1)),
    (Block(5, 96, 40, True, H, 2), *[Block(5, 240, 40, True, H, 1)] * 2),
    (Block(5, 120, 48, True, H, 1), Block(5, 144, 48, True, H, 1)),
    (Block(5, 288, 96, True, H, 2), *[Block(5, 576, 96, True, H, 1)] * 2),
)
LARGE = (
    (Block(3, 16, 16, False, R, 1),),
    (Block(3, 64, 24, False, R, 2), Block(3, 72, 24, False, R, 1)),
    (Block(5, 72, 40, True, R, 2), *[Block(5, 120, 40, True, R, 1)] * 2),
    (
        Block(3, 240, 80, False, H, 2),
        Block(3, 200, 80, False, H, 1),
        *[Block(3, 184, 80, False, H, 1)] * 2,
    ),
    (Block(3, 480, 112, True, H, 1), Block(3, 672, 112, True, H, 1)),
    (Block(5, 672, 160, True, H, 2), *[Block(5, 960, 160, True, H, 1)] * 2),
)

# Networks as data, e.g. `mobilenet_v3(**MOBILENETS_V3["mobilenet_v3_small"],
# classes=1000)`: torchvision's, and timm's with another epsilon.
MOBILENETS_V3: dict[str, dict[str, Any]] = {
    "mobilenet_v3_small": {"stages": SMALL, "hidden": 1024},
    "mobilenet_v3_large": {"stages": LARGE, "hidden": 1280},
    "mobilenetv3_small_100": {"stages": SMALL, "hidden": 1024, "epsilon": 1e-5},
    "mobilenetv3_large_100": {"stages": LARGE, "hidden": 1280, "epsilon": 1e-5},
}


class MobileNetV3(nn.Module):
    """A strided stem, stages of inverted residuals, two layers; see `mobilenet_v3`."""

    stages: Sequence[Sequence[Block]]
    hidden: int
    classes: int
    style: Style

    @nn.compact
    def __call__(self, x, train: bool = False):
        """Logits and taps."""
        taps = {}
        activate, dtype = ACTIVATIONS["hard_swish"], self.style.dtype
        norm = lambda name: batch_norm(
            train, name=name, epsilon=self.style.epsilon, dtype=dtype
        )
        x = conv(16, 3, 2, name="stem_conv", dtype=dtype)(x)
        x = taps["stem"] = activate(norm("stem_norm")(x))
        before = 16
        for i, blocks in enumerate(self.stages, start=1):
            for j, block in enumerate(blocks, start=1):
                x = MBConv(
                    block.width,
                    None if block.hidden == before else block.hidden,
                    block.window,
                    block.strides,
                    divisible(block.hidden / 4) if block.squeezes else 0,
                    block.activation,
                    self.style,
                    train,
                    joins=block.strides == 1 and block.width == before,
                    name=f"stage{i}_block{j}",
                )(x)
                before = block.width
            taps[f"stage{i}"] = taps[f"stage{i}_pre"] = x
        x = conv(6 * before, 1, name="last_conv", dtype=dtype)(x)
        x = taps["unpooled"] = activate(norm("last_norm")(x))
        x = nn.Dense(
            self.hidden, dtype=dtype, kernel_init=TORCH_LINEAR, name="last_hidden"
        )(global_mean(x))
        x = taps["pooled"] = activate(x)
        return head(self.classes, dtype)(x), taps


def mobilenet_v3(
    stages: Sequence[Sequence[Block]],
    *,
    classes: int,
    hidden: int,
    epsilon: float = 1e-3,
    dtype: Any = None,
) -> Net:
    """MobileNetV3 for 224x224 images; it halves their size five times.

    Taps: `stem` after its activation; `stage1` ..., what leaves a linear bottleneck
    before the number of channels changes; no activation follows those, so that
    `stage{i}_pre` is `stage{i}`, and the last BatchNorm before it is
    `stage{i}_block{n}/norm3`. A 1x1 convolution to six times the channels (`last_conv`,
    `last_norm`) and its activation give `unpooled`; its mean over positions goes
    through the layer `last_hidden`, whose activation is `pooled`, which the head sees.
    Convolutions start from He's normal distribution (fan-out).

    Args:
      stages: the blocks of each stage, rows of the paper's tables 1 and 2.
      classes: number of logits.
      hidden: units of the layer between the mean and the head.
      epsilon: added to the variance in BatchNorm.
      dtype: what to compute in, e.g. `jnp.bfloat16`; parameters and batch statistics
        stay float32 and so do the logits. None follows the input.

    Returns:
      The network.

    Raises:
      ValueError: if a number is out of its range.

    Example:
      >>> from jaxkd import cost
      >>> net = mobilenet_v3(**MOBILENETS_V3["mobilenet_v3_small"], classes=1000)
      >>> cost.of(net, (224, 224, 3)).parameters
      2542856

    References:
      A. Howard et al. Searching for MobileNetV3. 2019.
      https://arxiv.org/abs/1905.02244
    """
    check_numbers(classes=classes, hidden=hidden)
    _check.positive("epsilon", epsilon)
    stages = tuple(tuple(Block(*block) for block in blocks) for blocks in stages)
    return from_linen(
        MobileNetV3(stages, hidden, classes, Style(epsilon=epsilon, dtype=dtype))
    )
