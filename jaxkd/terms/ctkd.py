"""Curriculum temperature for knowledge distillation (Li et al., 2023)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxkd import _check, distill, losses
from jaxkd.distill import Term
from jaxkd.types import Batch, Outputs, Params, State


@jax.custom_jvp
def reverse(x: Float[Array, ""], strength: Float[Array, ""]) -> Float[Array, ""]:
    """`x`, whose gradient comes back times `-strength`."""
    return x


@reverse.defjvp
def _reverse_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (x, strength), (change, _) = primals, tangents
    return x, -strength * change


def ctkd(
    *,
    ramp: int,
    start: float = 1.0,
    spread: float = 20.0,
    strength: float = 1.0,
) -> Term:
    """`losses.kd` at a temperature that learns to make it harder.

    At step k, with one parameter theta, q and p the networks' softmax at T::

        T    = start + spread sigmoid(theta)
        loss = T**2 KL(p_T, q_T)
        d theta = -lambda_k d loss / d theta,
        lambda_k = strength (1 - cos(pi min(k, ramp) / ramp)) / 2

    The student descends the loss, the temperature ascends it: the more so the further
    the training is. The authors put this term, weight 0.9, beside a cross-entropy of
    weight 0.1. Their lambda moves once an epoch, here at every step.

    Args:
      ramp: steps until the reversal has its full strength, >= 1; the authors' 10
        epochs are 10 * (examples // batch_size).
      start: the lowest temperature, > 0.
      spread: the highest is `start + spread`; > 0.
      strength: largest factor of the reversed gradient, >= 0.

    Returns:
      The term. Its parameter is "theta", 1 at first, as the authors have it (T = 15.6);
      its state is the step.

    Raises:
      ValueError: if a knob is out of its range; at `init`, if the networks have
        different classes.

    References:
      Li, Li, Yang, Zhao, Song, Luo, Li, Yang. `Curriculum Temperature for Knowledge
      Distillation <https://arxiv.org/abs/2211.16231>`_, AAAI 2023. The global variant.
    """
    _check.whole(1)("ramp", ramp)
    _check.positive("start", start)
    _check.positive("spread", spread)
    _check.not_negative("strength", strength)

    def init(key: Array, s: Outputs, t: Outputs, batch: Batch) -> tuple[Params, State]:
        distill.on_logits(losses.kd).init(key, s, t, batch)  # refuses other classes
        return {"theta": jnp.ones(())}, {"step": jnp.zeros((), jnp.int32)}

    def apply(
        params: Params, state: State, s: Outputs, t: Outputs, batch: Batch
    ) -> tuple[Array, State]:
        # The counter stops where the ramp does, so that it cannot overflow.
        step = state["step"]
        grown = strength * (1 - jnp.cos(jnp.pi * step / ramp)) / 2
        theta = reverse(params["theta"], grown)
        temperature = start + spread * jax.nn.sigmoid(theta)
        loss = losses.kd(s.logits, t.logits, temperature=temperature)
        return loss, {"step": jnp.minimum(step + 1, ramp)}

    return Term(init, apply)
