"""Fully connected networks, among them the pair of Hinton, Vinyals & Dean (2015)."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxkd.models.net import Net, from_linen

# Networks as data, e.g. `mlp(**MLPS["teacher"])`: the paper's pair for MNIST.
MLPS: dict[str, dict[str, Any]] = {
    "teacher": {"widths": (1200, 1200), "classes": 10},
    "student": {"widths": (200, 200), "classes": 10},
}


class Mlp(nn.Module):
    """Flatten, then Dense and ReLU for each width, then the head; see `mlp`."""

    widths: Sequence[int]
    classes: int
    dropout: float = 0.0
    input_dropout: float = 0.0
    dtype: Any = None

    @nn.compact
    def __call__(self, x, train: bool = False):
        """Logits and taps; dropout is drawn from the "dropout" key when it trains."""
        drop = lambda rate, x: nn.Dropout(rate, deterministic=not train)(x)
        taps = {}
        x = drop(self.input_dropout, x.reshape(x.shape[0], -1))
        for i, width in enumerate(self.widths, start=1):
            x = nn.Dense(width, dtype=self.dtype, name=f"hidden{i}")(x)
            taps[f"stage{i}_pre"] = x
            x = taps[f"stage{i}"] = nn.relu(x)
            x = drop(self.dropout, x)
        taps["pooled"] = x
        return nn.Dense(self.classes, dtype=head_dtype(self.dtype), name="head")(
            x
        ), taps


def head_dtype(dtype: Any) -> Any:
    """At least float32: logits in half precision would round the probabilities."""
    return None if dtype is None else jnp.promote_types(dtype, jnp.float32)


def mlp(
    widths: Sequence[int],
    *,
    classes: int,
    dropout: float = 0.0,
    input_dropout: float = 0.0,
    dtype: Any = None,
) -> Net:
    """Return a multilayer perceptron with ReLU; images are flattened.

    Its taps are `stage1` ... `stageN`, the hidden layers after ReLU and before dropout,
    `stage1_pre` ... before ReLU, and `pooled`, what the head sees. Kernels start from
    linen's default (LeCun normal), biases at zero.

    Args:
      widths: units of each hidden layer; none gives a linear classifier.
      classes: number of logits.
      dropout: rate after each hidden layer, in [0, 1).
      input_dropout: rate on the flattened input, in [0, 1).
      dtype: what to compute in, e.g. `jnp.bfloat16`; parameters stay float32 and so
        do the logits. None follows the input.

    Returns:
      The network, e.g. `mlp(**MLPS["teacher"])` for MNIST's 784-1200-1200-10.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> x = jnp.ones((1, 2, 2))
      >>> params, state = mlp([4], classes=3).init(jax.random.key(0), x)
      >>> sum(leaf.size for leaf in jax.tree.leaves(params))  # 4 * 4 + 4 + 4 * 3 + 3
      35

    References:
      G. Hinton, O. Vinyals, J. Dean. Distilling the Knowledge in a Neural Network.
      2015. https://arxiv.org/abs/1503.02531 section 3.
    """
    return from_linen(Mlp(tuple(widths), classes, dropout, input_dropout, dtype))
