"""Masked generative distillation (Yang et al., 2022)."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxkd import _check, losses
from jaxkd.distill import Term, fitting
from jaxkd.models.convolution import conv_general_dilated
from jaxkd.terms import _pairs
from jaxkd.terms.adapters import Match
from jaxkd.types import Batch, Outputs, Params, State

Map = Float[Array, "batch height width channels"]


class Generator(nn.Module):
    """A student's map of the teacher's shape, masked, through two 3x3 convolutions.

    Attributes:
      shape: of the teacher's map.
    """

    shape: tuple[int, ...]

    @nn.compact
    def __call__(self, x: Map, kept: Array) -> Map:
        """Return the regenerated map; `kept` broadcasts to it."""
        x = Match(self.shape, name="align")(x) * kept.astype(x.dtype)
        x = nn.relu(self._conv("first")(x))
        return self._conv("second")(x)

    def _conv(self, name: str) -> Any:
        return nn.Conv(
            self.shape[-1],
            (3, 3),
            conv_general_dilated=conv_general_dilated,
            name=name,
        )


def mgd(pairs: _pairs.Pairs, *, masked: float = 0.15, of: str = "channels") -> Term:
    """Regenerate the teacher's map from a part of the student's, summed over pairs.

    With r(s) the student's map after a 1x1 convolution (only where the channels differ)
    and a resizing (only where the maps do), m a random mask of zeros and ones, and G
    two 3x3 convolutions with a ReLU between::

        loss = sum over pairs of sum_u (G(m * r(s))_u - t_u)**2

    The mask is drawn anew at every step and for every example: each channel, or each
    position, is 0 with probability `masked`. The loss is the authors' sum over units:
    for classification their weight is 7e-5 with 0.15 of the channels masked, for
    detection 2e-5 with 0.65 of the positions, beside a task loss of weight 1.

    Args:
      pairs: taps that are maps, usually the last stage.
      masked: probability of a zero, in [0, 1].
      of: "channels" or "positions".

    Returns:
      The term. Its parameters are "first" and "second", the convolutions, and "align"
      where the channels differ; its state is the seed of the masks.

    Raises:
      ValueError: if a knob is out of its range; at `init`, if a tap is not a map.

    Example:
      >>> from jaxkd import terms
      >>> spec = {"mgd": (7e-5, terms.mgd("stage3"))}

    References:
      Yang, Li, Shao, Shi, Yuan, Yuan. `Masked Generative Distillation
      <https://arxiv.org/abs/2205.01529>`_, ECCV 2022.
    """
    _check.closed_unit("masked", masked)
    _check.one_of("channels", "positions")("of", of)
    return _pairs.total(pairs, lambda s, t: _one(s, t, masked, of))


def _one(student: str, teacher: str, masked: float, of: str) -> Term:
    def maps(s: Outputs, t: Outputs) -> tuple[Map, Map]:
        here, there = s.tap(student), t.tap(teacher)
        for name, features in ((student, here), (teacher, there)):
            if features.ndim != 4:
                raise ValueError(
                    f"{name} must be a map [batch, height, width, channels], got "
                    f"{features.shape}"
                )
        return here, there

    def init(key: Array, s: Outputs, t: Outputs, batch: Batch) -> tuple[Params, State]:
        here, there = maps(s, t)
        params_key, seed_key = jax.random.split(key)
        module = Generator(there.shape)
        params = module.init(params_key, here, jnp.ones((1, 1, 1, 1), bool))["params"]
        # A plain array, whatever kind of key the caller's is.
        return params, {"seed": jax.random.bits(seed_key, (2,), jnp.uint32)}

    def apply(
        params: Params, state: State, s: Outputs, t: Outputs, batch: Batch
    ) -> tuple[Array, State]:
        here, there = maps(s, t)
        key = jax.random.wrap_key_data(state["seed"], impl="threefry2x32")
        key, mask_key = jax.random.split(key)
        shape = list(there.shape)
        for axis in (1, 2) if of == "channels" else (3,):
            shape[axis] = 1
        kept = jax.random.bernoulli(mask_key, 1 - masked, shape)
        again: Any = Generator(there.shape).apply({"params": params}, here, kept)
        units = math.prod(there.shape[1:])
        loss = units * losses.hint(again, there)
        return loss, {"seed": jax.random.key_data(key)}

    return fitting(Term(init, apply))
