"""Weighted transformed teacher matching (Zheng & Yang, 2024)."""

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from jaxkd import _check
from jaxkd.losses import _divergence
from jaxkd.losses._compile import compiled
from jaxkd.losses._math import (
    live,
    log_softmax,
    log_total,
    only,
    raise_probabilities,
    without,
)


@compiled(gamma=_check.positive)
def wttm(
    student_logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "*batch classes"],
    *,
    gamma: ArrayLike = 0.2,
    class_mask: Bool[Array, "..."] | None = None,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    """KL from the transformed teacher to the student, more where the teacher is unsure.

    With t = softmax(teacher_logits), p = softmax(gamma * teacher_logits) and
    q = softmax(student_logits)::

        loss = (sum_k t_k**gamma) * sum_k p_k * (log p_k - log q_k)

    The weight grows with the Rényi entropy of the teacher, so that examples it is
    unsure of count more. There is no factor T**2. At gamma = 1 it is `kd` at T = 1.

    Args:
      student_logits: unnormalised log-probabilities.
      teacher_logits: the same of the teacher; gradients flow to it too.
      gamma: the exponent of the teacher's probabilities, > 0; smaller is softer.
      class_mask: true for the classes that exist, broadcastable to the logits; the
        others get probability 0, as do logits of -inf.
      where: true for the examples to use; the others get loss 0 and no gradient.

    Returns:
      The loss of each example, in nats times the weight.

    Raises:
      ValueError: if the shapes differ, or an argument is out of its range.

    Example:
      `ttm` of the same is 0.3681, and (3/4)**2 + (1/4)**2 = 5/8.

      >>> import jax.numpy as jnp
      >>> from jaxkd import losses
      >>> student, teacher = jnp.zeros((1, 2)), jnp.log(jnp.array([[3.0, 1.0]]))
      >>> print(losses.wttm(student, teacher, gamma=2.0).round(3))
      [0.23]

    References:
      Zheng, Yang. `Knowledge Distillation Based on Transformed Teacher Matching
      <https://arxiv.org/abs/2402.11148>`_, 2024.
    """
    _check.logits(
        class_mask, where, student_logits=student_logits, teacher_logits=teacher_logits
    )
    student_logits, teacher_logits = without(where, student_logits, teacher_logits)
    log_t = log_softmax(teacher_logits, class_mask)
    log_t = jnp.where(live(teacher_logits, class_mask), log_t, -jnp.inf)
    weight = jnp.exp(log_total(raise_probabilities(log_t, gamma)))
    powers = raise_probabilities(teacher_logits, gamma)
    kl = _divergence.kl(powers, student_logits, 1.0, class_mask)
    return only(where, weight * kl)
