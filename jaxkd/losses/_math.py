"""Numerics that several losses share: log-probabilities and masks that are never NaN."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float


def without(where: Array | None, *arrays: Array) -> tuple[Array, ...]:
    """Replaces excluded examples by zeros, so that whatever they hold is never read.

    Args:
      where: boolean `[*batch]`, or None for all examples.
      *arrays: `[*batch, ...]`.
    """
    if where is None:
        return arrays
    return tuple(
        jnp.where(jnp.expand_dims(where, tuple(range(where.ndim, a.ndim))), a, 0)
        for a in arrays
    )


def only(where: Array | None, loss: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Sets the loss of excluded examples to 0."""
    return loss if where is None else jnp.where(where, loss, 0)


def log_softmax(
    logits: Float[Array, "*batch classes"],
    class_mask: Bool[Array, "..."] | None = None,
    *,
    temperature: ArrayLike = 1.0,
) -> Float[Array, "*batch classes"]:
    """Log-probabilities of softmax(logits / T), finite also for excluded classes.

    A class that is masked, or whose logit is -inf, has probability exactly 0 and a
    log-probability of about -1e38 in place of -inf: p * log p is then 0, not NaN, and
    so is its gradient.
    """
    logits = logits / temperature
    # A quarter of the range: the difference of two of these is still finite.
    lowest = jnp.finfo(logits.dtype).min / 4
    live = logits > -jnp.inf
    if class_mask is not None:
        live &= jnp.broadcast_to(class_mask, logits.shape)
    return jax.nn.log_softmax(jnp.where(live, logits, lowest), axis=-1)
