"""DenseNet: every layer sees what all layers before it made (Huang et al., 2017)."""

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
)
from jaxkd.models.net import Net, from_linen

# Networks as data, e.g. `densenet(**DENSENETS["densenet121"], classes=1000)`.
DENSENETS: dict[str, dict[str, Any]] = {"densenet121": {"blocks": (6, 12, 24, 16)}}


class DenseLayer(nn.Module):
    """1x1 to four times the growth and 3x3, each behind BatchNorm and ReLU."""

    growth: int
    train: bool
    dtype: Any = None

    @nn.compact
    def __call__(self, x):
        """Return the input, and the new channels behind it."""
        y = nn.relu(norm(self.train, name="norm1", dtype=self.dtype)(x))
        y = conv(4 * self.growth, 1, name="conv1", dtype=self.dtype)(y)
        y = nn.relu(norm(self.train, name="norm2", dtype=self.dtype)(y))
        y = conv(self.growth, 3, name="conv2", dtype=self.dtype)(y)
        return jnp.concatenate([x, y], -1)


class DenseNet(nn.Module):
    """A stem, four dense stages with transitions between, the head; see `densenet`."""

    blocks: Sequence[int]
    growth: int
    classes: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x, train: bool = False):
        """Logits and taps."""
        taps = {}
        normed = lambda x, name: nn.relu(norm(train, name=name, dtype=self.dtype)(x))
        x = conv(2 * self.growth, 7, 2, name="stem_conv", dtype=self.dtype)(x)
        x = taps["stem"] = normed(x, "stem_norm")
        x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        for i, blocks in enumerate(self.blocks, start=1):
            for j in range(1, blocks + 1):
                name = f"stage{i}_block{j}"
                x = DenseLayer(self.growth, train, self.dtype, name=name)(x)
            taps[f"stage{i}"] = x
            if i < len(self.blocks):
                x = normed(x, f"stage{i}_norm")
                x = conv(x.shape[-1] // 2, 1, name=f"stage{i}_conv", dtype=self.dtype)(
                    x
                )
                x = nn.avg_pool(x, (2, 2), (2, 2))
        x = taps["unpooled"] = normed(x, "last_norm")
        x = taps["pooled"] = global_mean(x)
        return head(self.classes, self.dtype)(x), taps


def densenet(
    blocks: Sequence[int], *, classes: int, growth: int = 32, dtype: Any = None
) -> Net:
    """DenseNet for 224x224 images; it halves their size five times.

    Between stages a transition (BatchNorm, ReLU, 1x1 convolution to half the channels,
    2x2 mean) is `stage{i}_norm` and `stage{i}_conv`.

    Taps: `stem` after ReLU, before a pooling; `stage1` ... `stage4`, all channels of a
    stage, without BatchNorm and ReLU, which come behind; `unpooled`, the last of them
    after both, and `pooled`, its mean over positions, which the head sees.
    Convolutions start from He's normal distribution (fan-out).

    Args:
      blocks: how many layers each of the four stages has.
      classes: number of logits.
      growth: channels that each layer adds.
      dtype: what to compute in, e.g. `jnp.bfloat16`; parameters and batch statistics
        stay float32 and so do the logits. None follows the input.

    Returns:
      The network, e.g. `densenet(**DENSENETS["densenet121"], classes=1000)`.

    Raises:
      ValueError: if `blocks` are not four positive integers.

    Example:
      >>> from jaxkd import cost
      >>> cost.of(densenet((6, 12, 24, 16), classes=1000), (224, 224, 3)).parameters
      7978856

    References:
      G. Huang, Z. Liu, L. van der Maaten, K. Q. Weinberger. Densely Connected
      Convolutional Networks. 2017. https://arxiv.org/abs/1608.06993
    """
    check_numbers(classes=classes, growth=growth)
    blocks = check_length("blocks", blocks, 4)
    return from_linen(DenseNet(blocks, growth, classes, dtype))
