"""Transformed teacher matching (Zheng & Yang, 2024)."""

from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from jaxkd import _check
from jaxkd.losses import _divergence
from jaxkd.losses._compile import compiled
from jaxkd.losses._math import only, raise_probabilities, without


@compiled(gamma=_check.positive)
def ttm(
    student_logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "*batch classes"],
    *,
    gamma: ArrayLike = 0.2,
    class_mask: Bool[Array, "..."] | None = None,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    """KL divergence from the transformed teacher to the student as it is.

    With p = softmax(gamma * teacher_logits) and q = softmax(student_logits)::

        loss = sum_k p_k * (log p_k - log q_k)

    Only the teacher is softened, as with a temperature of 1 / gamma; the student keeps
    temperature 1, and there is no factor T**2. At gamma = 1 it is `kd` at T = 1.

    Args:
      student_logits: unnormalised log-probabilities.
      teacher_logits: the same of the teacher; gradients flow to it too.
      gamma: the exponent of the teacher's probabilities, > 0; smaller is softer.
      class_mask: true for the classes that exist, broadcastable to the logits; the
        others get probability 0, as do logits of -inf.
      where: true for the examples to use; the others get loss 0 and no gradient.

    Returns:
      The loss of each example, in nats.

    Raises:
      ValueError: if the shapes differ, or an argument is out of its range.

    Example:
      The teacher's (3/4, 1/4) is raised to (9/10, 1/10); the student says (1/2, 1/2).

      >>> import jax.numpy as jnp
      >>> from jaxkd import losses
      >>> student, teacher = jnp.zeros((1, 2)), jnp.log(jnp.array([[3.0, 1.0]]))
      >>> print(losses.ttm(student, teacher, gamma=2.0).round(4))
      [0.3681]

    References:
      Zheng, Yang. `Knowledge Distillation Based on Transformed Teacher Matching
      <https://arxiv.org/abs/2402.11148>`_, 2024.
    """
    _check.logits(
        class_mask, where, student_logits=student_logits, teacher_logits=teacher_logits
    )
    student_logits, teacher_logits = without(where, student_logits, teacher_logits)
    powers = raise_probabilities(teacher_logits, gamma)
    kl = _divergence.kl(powers, student_logits, 1.0, class_mask)
    return only(where, kl)
