"""Variational information distillation with its regressor (Ahn et al., 2019)."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array

from jaxkd import _check, losses
from jaxkd.distill import Term, fitting
from jaxkd.losses import _feature_math as fm
from jaxkd.models.convolution import conv_general_dilated
from jaxkd.terms import _pairs
from jaxkd.types import Batch, Outputs, Params, State

EPSILON = 1e-5


class Regressor(nn.Module):
    """Three 1x1 convolutions without bias, or Dense layers; ReLU between them.

    Attributes:
      channels: of the teacher's features, and of the layers between.
    """

    channels: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Predict the mean of the teacher's features; height and width stay."""
        for i in (1, 2, 3):
            if i > 1:
                x = nn.relu(x)
            x = self._layer(x.ndim - 2, f"layer{i}")(x)
        return x

    def _layer(self, axes: int, name: str) -> Any:
        if axes == 0:
            return nn.Dense(self.channels, use_bias=False, name=name)
        how: dict[str, Any] = {"use_bias": False, "name": name}
        if axes == 2:
            how["conv_general_dilated"] = conv_general_dilated
        return nn.Conv(self.channels, (1,) * axes, **how)


def vid(pairs: _pairs.Pairs, *, variance: float = 5.0) -> Term:
    """How well the student's features predict the teacher's, summed: `losses.vid`.

    With mu the regressor and v = softplus(raw_scale) + 1e-5 one variance for each of
    the teacher's channels, both trained along::

        loss = sum over pairs of mean_u ((mu(s)_u - t_u)**2 / v + log v) / 2

    The regressor is three 1x1 convolutions without bias, of the teacher's width, with
    ReLU between them (Dense layers for embeddings), as in the usual protocol, where the
    weight is 1 beside a cross-entropy of weight 1. Where maps differ in size the larger
    is averaged down to the smaller first. The loss may be negative.

    Args:
      pairs: taps, usually every stage.
      variance: where v starts, > 1e-5.

    Returns:
      The term. Its parameters are "regressor" and "raw_scale" for each pair.

    Raises:
      ValueError: if `variance` is too small; at `init`, if one tap is a map and the
        other is not.

    Example:
      >>> from jaxkd import terms
      >>> spec = {"vid": (1.0, terms.vid(["stage1", "stage2", "stage3"]))}

    References:
      Ahn, Hu, Damianou, Lawrence, Dai. `Variational Information Distillation for
      Knowledge Transfer <https://arxiv.org/abs/1904.05835>`_, 2019.
    """
    _check.positive("variance", variance)
    if variance <= EPSILON:
        raise ValueError(f"variance must be > {EPSILON}, got {variance}")
    return _pairs.total(pairs, lambda s, t: _predicted(s, t, variance))


def _predicted(student: str, teacher: str, variance: float) -> Term:
    def features(s: Outputs, t: Outputs) -> tuple[Regressor, Array, Array]:
        here, there = fm.to_smaller(s.tap(student), t.tap(teacher))
        return Regressor(there.shape[-1]), here, there

    def init(key: Array, s: Outputs, t: Outputs, batch: Batch) -> tuple[Params, State]:
        regressor, here, there = features(s, t)
        # The inverse of softplus, in a form that does not overflow.
        excess = jnp.full(there.shape[-1], variance - EPSILON, jnp.float32)
        raw_scale = excess + jnp.log(-jnp.expm1(-excess))
        params = regressor.init(key, here)["params"]
        return {"regressor": params, "raw_scale": raw_scale}, {}

    def apply(
        params: Params, state: State, s: Outputs, t: Outputs, batch: Batch
    ) -> tuple[Array, State]:
        regressor, here, there = features(s, t)
        mean: Any = regressor.apply({"params": params["regressor"]}, here)
        scale = params["raw_scale"]
        return losses.vid(mean, there, scale, epsilon=EPSILON), state

    return fitting(Term(init, apply))
