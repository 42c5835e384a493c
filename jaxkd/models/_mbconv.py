"""Inverted residuals with squeeze and excitation, of MobileNetV3 and EfficientNet."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxkd.models._layers import conv, norm

ACTIVATIONS: dict[str, Callable] = {
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "hard_swish": jax.nn.hard_swish,
    "swish": jax.nn.silu,
    "sigmoid": jax.nn.sigmoid,
    "hard_sigmoid": jax.nn.hard_sigmoid,
}


class Style(NamedTuple):
    """What all layers of a network have in common.

    Attributes:
      epsilon: of BatchNorm.
      same: whether padding is TensorFlow's.
      squeezed: activation between the two layers of squeeze and excitation.
      gate: activation behind them.
      dtype: what is computed in.
    """

    epsilon: float = 1e-5
    same: bool = False
    squeezed: str = "relu"
    gate: str = "hard_sigmoid"
    dtype: Any = None


class MBConv(nn.Module):
    """Widen by 1x1, depthwise, squeeze and excite, narrow by a linear 1x1.

    `hidden` is None where nothing is widened, `squeeze` 0 where nothing is squeezed.
    """

    width: int
    hidden: int | None
    window: int
    strides: int
    squeeze: int
    activation: str
    style: Style
    train: bool
    joins: bool = False  # said, not seen: pruning may make two widths equal

    @nn.compact
    def __call__(self, x):
        """Return the last BatchNorm, plus the input where the shape is the same."""
        activate = ACTIVATIONS[self.activation]
        y = x
        if self.hidden is not None:
            y = self._conv(y, 1, self.hidden, 1)
            y = activate(self._norm(y, 1))
        channels = y.shape[-1]
        y = self._conv(y, 2, channels, self.window, self.strides, channels)
        y = activate(self._norm(y, 2))
        if self.squeeze:
            y = y * self._gates(y)
        y = self._norm(self._conv(y, 3, self.width, 1), 3)
        return x + y if self.joins else y

    def _conv(self, x, k, features, window, strides=1, groups=1):
        same, dtype = self.style.same, self.style.dtype
        return conv(
            features,
            window,
            strides,
            groups=groups,
            same=same,
            name=f"conv{k}",
            dtype=dtype,
        )(x)

    def _norm(self, x, k):
        epsilon, dtype = self.style.epsilon, self.style.dtype
        return norm(self.train, name=f"norm{k}", epsilon=epsilon, dtype=dtype)(x)

    def _gates(self, x):
        """Squeeze and excitation: a factor for each channel, from their means."""
        dense = lambda features, name: conv(
            features, 1, use_bias=True, name=name, dtype=self.style.dtype
        )
        y = dense(self.squeeze, "squeeze_reduce")(jnp.mean(x, (1, 2), keepdims=True))
        y = ACTIVATIONS[self.style.squeezed](y)
        y = dense(x.shape[-1], "squeeze_expand")(y)
        return ACTIVATIONS[self.style.gate](y)


def divisible(width: float, by: int = 8) -> int:
    """Round to a multiple of `by`, by at most a tenth down.

    Example:
      >>> [divisible(width) for width in (18, 35.2, 1)]
      [24, 32, 8]
    """
    rounded = max(by, int(width + by / 2) // by * by)
    return rounded + by if rounded < 0.9 * width else rounded
