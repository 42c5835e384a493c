"""Representation distillation by a simple recipe (Miles & Mikolajczyk, 2024)."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxkd.distill import Term, fitting
from jaxkd.losses import _feature_math as fm
from jaxkd.terms import _pairs
from jaxkd.types import Batch, Outputs, Params, State

EPSILON = 1e-4  # of the authors' BatchNorms


def srd(pair: _pairs.Pairs = "pooled") -> Term:
    """Logarithm of the summed fourth powers between standardised features.

    With W a linear projector and BN a BatchNorm without scale and shift, by the
    statistics of the batch, over features averaged over their positions::

        loss = log sum_{examples, units} (BN(W s + c) - BN(t))**4

    The logarithm makes large differences count less, the fourth power small ones. The
    loss belongs to the whole batch and every example carries it alike; it may be
    negative, and is at least the logarithm of the smallest normal number (-87), where
    it has no gradient. The sum grows with the batch: the gradient does not.

    Args:
      pair: the taps, embeddings or maps; the authors have the last stage.

    Returns:
      The term. Its parameters are the projector's, "kernel" and "bias" (which the
      BatchNorm cancels).

    Raises:
      ValueError: at `init`, if taps are token sequences of different lengths.

    Example:
      >>> from jaxkd import terms
      >>> spec = {"srd": (1.0, terms.srd())}

    References:
      Miles, Mikolajczyk. `Understanding the Role of the Projector in Knowledge
      Distillation <https://arxiv.org/abs/2303.11098>`_, AAAI 2024.
    """
    student, teacher = _pairs.one(pair)

    def features(s: Outputs, t: Outputs) -> tuple[Any, Array, Array]:
        here, there = s.tap(student), t.tap(teacher)
        fm.same_length(here.shape, there.shape)
        return nn.Dense(there.shape[-1]), fm.average(here), fm.average(there)

    def init(key: Array, s: Outputs, t: Outputs, batch: Batch) -> tuple[Params, State]:
        projector, here, _ = features(s, t)
        return projector.init(key, here)["params"], {}

    def apply(
        params: Params, state: State, s: Outputs, t: Outputs, batch: Batch
    ) -> tuple[Array, State]:
        projector, here, there = features(s, t)
        projected = projector.apply({"params": params}, here)
        difference = standardize(projected) - standardize(there)
        total = jnp.sum(jnp.square(jnp.square(difference)))
        least = jnp.finfo(total.dtype).tiny
        return jnp.full(len(there), jnp.log(jnp.maximum(total, least))), state

    return fitting(Term(init, apply))


def standardize(x: Float[Array, "batch dims"]) -> Float[Array, "batch dims"]:
    """Subtract the mean over the batch and divide by the deviation."""
    x = x - jnp.mean(x, axis=0, keepdims=True)
    return x / jnp.sqrt(jnp.mean(jnp.square(x), axis=0, keepdims=True) + EPSILON)
