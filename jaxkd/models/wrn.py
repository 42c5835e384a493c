"""Wide residual networks with pre-activation (Zagoruyko & Komodakis, 2016)."""

from typing import Any

import flax.linen as nn

from jaxkd.models._layers import (
    check_numbers,
    check_rate,
    conv,
    global_mean,
    head,
    norm,
)
from jaxkd.models.net import Net, from_linen

# Networks as data, e.g. `wrn(**WRNS["wrn_40_2"], classes=100)`.
WRNS: dict[str, dict[str, Any]] = {
    "wrn_16_1": {"depth": 16, "widen": 1},
    "wrn_16_2": {"depth": 16, "widen": 2},
    "wrn_28_10": {"depth": 28, "widen": 10},
    "wrn_40_1": {"depth": 40, "widen": 1},
    "wrn_40_2": {"depth": 40, "widen": 2},
}


class PreActivationBlock(nn.Module):
    """BatchNorm and ReLU before each of two convolutions; `(sum, first BatchNorm)`."""

    width: int
    strides: int
    train: bool
    dropout: float = 0.0
    dtype: Any = None
    projects: bool = False  # said, not seen: pruning may make two widths equal

    @nn.compact
    def __call__(self, x):
        """The sum of branch and shortcut, and the input's BatchNorm before ReLU."""
        before = norm(self.train, name="norm1", dtype=self.dtype)(x)
        y = nn.relu(before)
        if self.projects:
            x = conv(
                self.width, 1, self.strides, name="shortcut_conv", dtype=self.dtype
            )(y)
        y = conv(self.width, 3, self.strides, name="conv1", dtype=self.dtype)(y)
        y = nn.relu(norm(self.train, name="norm2", dtype=self.dtype)(y))
        y = nn.Dropout(self.dropout, deterministic=not self.train)(y)
        return x + conv(self.width, 3, name="conv2", dtype=self.dtype)(y), before


class WideResNet(nn.Module):
    """A 3x3 stem, three stages of pre-activation blocks, the head; see `wrn`."""

    blocks: int
    widen: int
    classes: int
    dropout: float = 0.0
    dtype: Any = None
    remat: bool = False

    @nn.compact
    def __call__(self, x, train: bool = False):
        """Logits and taps; dropout is drawn from the "dropout" key when it trains."""
        taps = {}
        x = taps["stem"] = conv(16, 3, name="stem_conv", dtype=self.dtype)(x)
        kind = nn.remat(PreActivationBlock) if self.remat else PreActivationBlock
        for i in (1, 2, 3):
            widens = i > 1 or self.widen > 1
            for j in range(1, self.blocks + 1):
                x, before = kind(
                    width=2 ** (i + 3) * self.widen,
                    strides=2 if i > 1 and j == 1 else 1,
                    train=train,
                    dropout=self.dropout,
                    dtype=self.dtype,
                    projects=widens and j == 1,
                    name=f"stage{i}_block{j}",
                )(x)
                if i > 1 and j == 1:
                    taps[f"stage{i - 1}_pre"] = before
            taps[f"stage{i}"] = x
        x = taps["stage3_pre"] = norm(train, name="last_norm", dtype=self.dtype)(x)
        x = taps["unpooled"] = nn.relu(x)
        x = taps["pooled"] = global_mean(x)
        return head(self.classes, self.dtype)(x), taps


def wrn(
    depth: int,
    widen: int,
    *,
    classes: int,
    dropout: float = 0.0,
    dtype: Any = None,
    remat: bool = False,
) -> Net:
    """Return a wide residual network for small images, of 6n + 4 layers.

    A 3x3 convolution of 16 channels, then three stages of n pre-activation blocks of
    16, 32 and 64 times `widen` channels at full, half and quarter size, BatchNorm, ReLU
    and the mean over positions, the head. Where a block changes the width, its shortcut
    is a 1x1 convolution of the activated input.

    Taps: in a pre-activation network ReLU comes after a stage and belongs to the next.
    `stem` and `stage1` ... `stage3` are sums as they leave a stage, without BatchNorm
    and ReLU; `stage{i}_pre` is `stage{i}` after the BatchNorm that follows it, before
    ReLU; `unpooled` is `stage3_pre` after ReLU and `pooled` its mean over positions,
    which the head sees. The BatchNorm that makes `stage{i}_pre` is
    `stage{i+1}_block1/norm1`, and for the last stage `last_norm`. Convolutions start
    from He's normal distribution (fan-out).

    Args:
      depth: 6n + 4: 10, 16, 22, 28, 40 ...
      widen: the widths' multiple of 16, 32 and 64.
      classes: number of logits.
      dropout: rate between the two convolutions of a block, in [0, 1).
      dtype: what to compute in, e.g. `jnp.bfloat16`; parameters and batch statistics
        stay float32 and so do the logits. None follows the input.
      remat: keeps a block's input instead of all inside it for the gradient: less
        memory, one more forward pass. Interceptors must not keep values they see.

    Returns:
      The network, e.g. `wrn(**WRNS["wrn_40_2"], classes=100)`.

    Raises:
      ValueError: if `depth` is not 6n + 4, or a number is out of its range.

    Example:
      >>> from jaxkd import cost
      >>> cost.of(wrn(16, 2, classes=100), (32, 32, 3)).parameters
      703284

    References:
      S. Zagoruyko, N. Komodakis. Wide Residual Networks. 2016.
      https://arxiv.org/abs/1605.07146
    """
    check_numbers(depth=depth, widen=widen, classes=classes)
    if depth < 10 or (depth - 4) % 6:
        raise ValueError(f"depth must be 6n + 4 (10, 16, 22, ...), got {depth}")
    check_rate("dropout", dropout)
    return from_linen(
        WideResNet((depth - 4) // 6, widen, classes, dropout, dtype, remat)
    )
