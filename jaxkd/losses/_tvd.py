"""Total variation distance (Wen, Li, Du & Mou, 2023)."""

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from jaxkd import _check
from jaxkd.losses._compile import compiled
from jaxkd.losses._math import only, softmax, without


@compiled(temperature=_check.positive)
def tvd(
    student_logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "*batch classes"],
    *,
    temperature: ArrayLike = 1.0,
    class_mask: Bool[Array, "..."] | None = None,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    """Total variation distance of the softened teacher and student.

    With p = softmax(teacher_logits / T) and q = softmax(student_logits / T)::

        loss = 1/2 * sum_k abs(p_k - q_k)

    It is symmetric and bounded, and only the signs of the differences count for its
    gradient. There is no factor T**2.

    Args:
      student_logits: unnormalised log-probabilities.
      teacher_logits: the same of the teacher; gradients flow to it too.
      temperature: T > 0; larger is softer.
      class_mask: true for the classes that exist, broadcastable to the logits; the
        others get probability 0, as do logits of -inf.
      where: true for the examples to use; the others get loss 0 and no gradient.

    Returns:
      The loss of each example, a probability: from 0 to 1.

    Raises:
      ValueError: if the shapes differ, or an argument is out of its range.

    Example:
      The teacher says (3/4, 1/4), the student (1/2, 1/2).

      >>> import jax.numpy as jnp
      >>> from jaxkd import losses
      >>> student, teacher = jnp.zeros((1, 2)), jnp.log(jnp.array([[3.0, 1.0]]))
      >>> print(losses.tvd(student, teacher).round(4))
      [0.25]

    References:
      Wen, Li, Du, Mou. `f-Divergence Minimization for Sequence-Level Knowledge
      Distillation <https://arxiv.org/abs/2307.15190>`_, ACL 2023. Section 3.4.
    """
    _check.logits(
        class_mask, where, student_logits=student_logits, teacher_logits=teacher_logits
    )
    student_logits, teacher_logits = without(where, student_logits, teacher_logits)
    p = softmax(teacher_logits, class_mask, temperature=temperature)
    q = softmax(student_logits, class_mask, temperature=temperature)
    return only(where, jnp.sum(jnp.abs(p - q), axis=-1) / 2)
