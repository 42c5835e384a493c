"""Plain convolutional networks: stages of 3x3 convolutions, each ended by a pooling."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn

from jaxkd.models.convolution import conv_general_dilated
from jaxkd.models.mlp import head_dtype
from jaxkd.models.net import Net, from_linen
from jaxkd.models.pooling import max_pool

# Networks as data, e.g. `cnn(**CNNS["teacher"])`: two pairs for CIFAR-10 (32x32x3) and
# one for the digits (8x8x1).
CNNS: dict[str, dict[str, Any]] = {
    "teacher": {
        "stages": ((128, 64), (64, 32)),
        "hidden": (512,),
        "classes": 10,
        "dropout": 0.1,
    },
    "student": {
        "stages": ((16,), (16,)),
        "hidden": (256,),
        "classes": 10,
        "dropout": 0.1,
    },
    "wide": {"stages": ((64,), (128,)), "hidden": (512,), "classes": 10},
    "narrow": {"stages": ((32,), (64,)), "hidden": (128,), "classes": 10},
    "digits_teacher": {"stages": ((32,), (64,)), "hidden": (128,), "classes": 10},
    "digits_student": {"stages": ((8,), (16,)), "hidden": (32,), "classes": 10},
}


class Cnn(nn.Module):
    """Stages of convolutions and a pooling, hidden layers, the head; see `cnn`."""

    stages: Sequence[Sequence[int]]
    hidden: Sequence[int]
    classes: int
    dropout: float = 0.0
    dtype: Any = None

    @nn.compact
    def __call__(self, x, train: bool = False):
        """Logits and taps; dropout is drawn from the "dropout" key when it trains."""
        taps = {}
        for i, widths in enumerate(self.stages, start=1):
            for j, width in enumerate(widths, start=1):
                name = f"stage{i}_conv{j}"
                x = nn.Conv(
                    width,
                    (3, 3),
                    dtype=self.dtype,
                    conv_general_dilated=conv_general_dilated,
                    name=name,
                )(x)
                taps[f"stage{i}_pre"] = x
                x = nn.relu(x)
                taps.setdefault("stem", x)
            x = taps[f"stage{i}"] = max_pool(x, (2, 2))
        x = x.reshape(x.shape[0], -1)
        for i, width in enumerate(self.hidden, start=1):
            x = nn.relu(nn.Dense(width, dtype=self.dtype, name=f"hidden{i}")(x))
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        taps["pooled"] = x
        return nn.Dense(self.classes, dtype=head_dtype(self.dtype), name="head")(
            x
        ), taps


def cnn(
    stages: Sequence[Sequence[int]],
    *,
    hidden: Sequence[int],
    classes: int,
    dropout: float = 0.0,
    dtype: Any = None,
) -> Net:
    """Return a convolutional classifier whose layers are data.

    Its taps are `stem`, the first convolution after ReLU; `stage1` ... `stageN`, each
    stage after its pooling; `stage1_pre` ..., a stage's last convolution before ReLU
    and pooling; and `pooled`, what the head sees. Kernels start from linen's default
    (LeCun normal), biases at zero.

    Args:
      stages: for each stage the widths of its 3x3 convolutions (stride 1, padded to
        the same size, with biases, each followed by ReLU); a 2x2 max pooling ends it.
      hidden: units of the ReLU layers between the flattened last stage and the head.
      classes: number of logits.
      dropout: rate after each hidden layer, in [0, 1).
      dtype: what to compute in, e.g. `jnp.bfloat16`; parameters stay float32 and so
        do the logits. None follows the input.

    Returns:
      The network, e.g. `cnn(**CNNS["teacher"])`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> net = cnn([[2]], hidden=[], classes=3)
      >>> params, state = net.init(jax.random.key(0), jnp.ones((1, 4, 4, 1)))
      >>> sum(leaf.size for leaf in jax.tree.leaves(params))  # 9 * 2 + 2 + 8 * 3 + 3
      47
    """
    stages = tuple(map(tuple, stages))
    return from_linen(Cnn(stages, tuple(hidden), classes, dropout, dtype))
