"""VGG with BatchNorm: one linear layer as its head for small images, or three."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from jaxkd.models._layers import check_numbers, conv, global_mean, head, norm
from jaxkd.models.net import Net, from_linen
from jaxkd.models.pooling import max_pool

# Networks as data, e.g. `vgg(**VGGS["vgg13"], classes=100)`. The name counts the
# paper's three hidden layers of the head, of which one is left.
VGGS: dict[str, dict[str, Any]] = {
    "vgg8": {"stages": ((64,), (128,), (256,), (512,), (512,))},
    "vgg11": {"stages": ((64,), (128,), (256,) * 2, (512,) * 2, (512,) * 2)},
    "vgg13": {"stages": ((64,) * 2, (128,) * 2, (256,) * 2, (512,) * 2, (512,) * 2)},
    "vgg16": {"stages": ((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3)},
    "vgg19": {"stages": ((64,) * 2, (128,) * 2, (256,) * 4, (512,) * 4, (512,) * 4)},
}
# The paper's own for 224x224 images, as torchvision names them.
for _depth in (11, 13, 16, 19):
    VGGS[f"vgg{_depth}_bn"] = {
        **VGGS[f"vgg{_depth}"],
        "pools": 5,
        "hidden": (4096, 4096),
    }
PARTS = 7


class Vgg(nn.Module):
    """Groups of 3x3 convolutions with poolings between, the head; see `vgg`."""

    stages: Sequence[Sequence[int]]
    pools: int
    classes: int
    dtype: Any = None
    hidden: Sequence[int] = ()

    @nn.compact
    def __call__(self, x, train: bool = False):
        """Logits and taps."""
        taps = {}
        for i, widths in enumerate(self.stages):
            stage = f"stage{i}" if i else "stem"
            for j, width in enumerate(widths, start=1):
                x = conv(
                    width, 3, use_bias=True, name=f"{stage}_conv{j}", dtype=self.dtype
                )(x)
                x = norm(train, name=f"{stage}_norm{j}", dtype=self.dtype)(x)
                if i:
                    taps[f"{stage}_pre"] = x
                x = nn.relu(x)
            taps[stage] = x
            if i < self.pools:
                x = max_pool(x, (2, 2))
        taps["unpooled"] = x
        x = self._pooled(x)
        for k, width in enumerate(self.hidden, start=1):
            dense = nn.Dense(width, dtype=self.dtype, name=f"last_hidden{k}")
            x = nn.relu(dense(x))
        taps["pooled"] = x
        return head(self.classes, self.dtype)(x), taps

    def _pooled(self, x):
        """The mean over positions, or for hidden layers over 7x7 parts, as one axis."""
        if not self.hidden:
            return global_mean(x)
        for axis in (1, 2):
            if x.shape[axis] != PARTS:
                shares = jnp.asarray(_shares(x.shape[axis]), x.dtype)
                x = jnp.moveaxis(jnp.tensordot(shares, x, (1, axis)), 0, axis)
        return x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)  # in PyTorch's order


def _shares(length):
    """`[PARTS, length]`, of which each row is the mean over a part of the positions."""
    shares = np.zeros((PARTS, length), np.float32)
    for i in range(PARTS):
        first, last = i * length // PARTS, -(-(i + 1) * length // PARTS)
        shares[i, first:last] = 1 / (last - first)
    return shares


def vgg(
    stages: Sequence[Sequence[int]],
    *,
    classes: int,
    pools: int = 3,
    hidden: Sequence[int] = (),
    dtype: Any = None,
) -> Net:
    """VGG as the distillation benchmarks for CIFAR-100 have it.

    Groups of 3x3 convolutions (with biases, each followed by BatchNorm and ReLU), a 2x2
    max pooling between two of them, the mean over positions, a linear head.

    Taps: the first group is the stem, the others are stages: `stem` and `stage1` ...
    `stage4` after the last ReLU of a group and before its pooling, `stage1_pre` ...
    before that ReLU, `unpooled` (what the mean is of) and `pooled`, which the head
    sees. The last BatchNorm before `stage{i}_pre` is `stage{i}_norm{n}`, n the group's
    number of convolutions. Convolutions start from He's normal distribution (fan-out).

    Args:
      stages: for each group the widths of its convolutions; the first is the stem.
      classes: number of logits.
      pools: how many groups, from the first on, end in a pooling. For 32x32 images the
        benchmark pools 3 times, for 64x64 images 4 times.
      hidden: units of the ReLU layers before the head. The first one sees the means of
        7x7 parts of the map instead of that over all positions, and `pooled` is what
        leaves the last, as in the paper's networks for 224x224 images.
      dtype: what to compute in, e.g. `jnp.bfloat16`; parameters and batch statistics
        stay float32 and so do the logits. None follows the input.

    Returns:
      The network, e.g. `vgg(**VGGS["vgg13"], classes=100)`.

    Raises:
      ValueError: if a group has no convolution, or there are more `pools` than groups.

    Example:
      >>> from jaxkd import cost
      >>> cost.of(vgg(**VGGS["vgg8"], classes=100), (32, 32, 3)).parameters
      3965028

    References:
      K. Simonyan, A. Zisserman. Very Deep Convolutional Networks for Large-Scale Image
      Recognition. 2015. https://arxiv.org/abs/1409.1556

      Y. Tian, D. Krishnan, P. Isola. Contrastive Representation Distillation. 2020.
      https://arxiv.org/abs/1910.10699, whose CIFAR-100 networks these are.
    """
    stages = tuple(map(tuple, stages))
    if len(stages) < 2 or not all(stages):
        raise ValueError(f"stages must be two groups of widths or more, got {stages}")
    for widths in stages:
        check_numbers(stages=widths)
    check_numbers(classes=classes)
    if not 0 <= pools <= len(stages):
        raise ValueError(f"pools must be in [0, {len(stages)}], got {pools}")
    check_numbers(hidden=tuple(hidden))
    return from_linen(Vgg(stages, pools, classes, dtype, tuple(hidden)))
