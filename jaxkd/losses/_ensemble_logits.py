"""One teacher made of several."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from jaxkd import _check
from jaxkd.losses._compile import compiled
from jaxkd.losses._math import live, log_softmax, lowest


@compiled(
    static=("mode",),
    mode=_check.one_of("probabilities", "logits"),
    temperature=_check.positive,
)
def ensemble_logits(
    teacher_logits: Float[Array, "teachers *batch classes"],
    *,
    weights: Float[Array, "teachers"] | None = None,
    mode: str = "probabilities",
    temperature: ArrayLike = 1.0,
    class_mask: Bool[Array, "..."] | None = None,
) -> Float[Array, "*batch classes"]:
    """Logits of the mean of several teachers; not a loss, but a teacher for one.

    With z_i the logits of teacher i and w the weights, divided by their sum::

        probabilities: T * log sum_i w_i * softmax(z_i / T)
        logits:        sum_i w_i * z_i

    The first is the arithmetic mean of the softened probabilities, as logits: softened
    at the same T it gives that mean, and `kd` to it has the student gradient of the
    mean of the `kd` to each teacher. The second is their geometric mean, which a single
    teacher can veto.

    Args:
      teacher_logits: the teachers' logits, stacked on the first axis.
      weights: one for each teacher, >= 0, not all 0; None for equal ones.
      mode: "probabilities" or "logits".
      temperature: T > 0 at which probabilities are averaged; unused by "logits".
      class_mask: true for the classes that exist, broadcastable to the logits of one
        teacher; the others get a logit of -inf, as do those that have it in all
        teachers ("probabilities") or in any ("logits").

    Returns:
      The logits of one teacher, in nats; they carry gradients to all teachers.

    Raises:
      ValueError: if there is no teacher, or an argument is out of its range.

    Example:
      Probabilities (3/4, 1/4) and (1/4, 3/4) have the mean (1/2, 1/2).

      >>> import jax.numpy as jnp
      >>> from jaxkd import losses
      >>> teachers = jnp.log(jnp.array([[[3.0, 1.0]], [[1.0, 3.0]]]))
      >>> print(jnp.exp(losses.ensemble_logits(teachers)).round(4))
      [[0.5 0.5]]

    References:
      Hinton, Vinyals, Dean. `Distilling the Knowledge in a Neural Network
      <https://arxiv.org/abs/1503.02531>`_, 2015. Section 1.
      You, Xu, Xu, Tao. `Learning from Multiple Teacher Networks
      <https://doi.org/10.1145/3097983.3098135>`_, 2017.
    """
    _check.real(teacher_logits=teacher_logits)
    _check.rank(2, teacher_logits=teacher_logits)
    _check.not_empty(teacher_logits=teacher_logits)
    _check.class_mask(class_mask, teacher_logits.shape[1:])
    teachers = teacher_logits.shape[0]
    if weights is None:
        weights = jnp.ones(teachers, teacher_logits.dtype)
    if jnp.shape(weights) != (teachers,):
        raise ValueError(
            f"weights must have shape ({teachers},), got {jnp.shape(weights)}"
        )
    weights = jnp.reshape(weights, (teachers,) + (1,) * (teacher_logits.ndim - 1))
    weights = weights / jnp.sum(weights)
    alive = live(teacher_logits, class_mask)
    if mode == "logits":
        mean = jnp.sum(weights * jnp.where(alive, teacher_logits, 0), axis=0)
        return jnp.where(jnp.all(alive | (weights == 0), axis=0), mean, -jnp.inf)
    log_p = log_softmax(teacher_logits, class_mask, temperature=temperature)
    used = alive & (weights > 0)
    log_p = jnp.where(used, log_p, lowest(log_p.dtype))
    mean = jax.nn.logsumexp(log_p, axis=0, b=weights)
    return jnp.where(jnp.any(used, axis=0), temperature * mean, -jnp.inf)
