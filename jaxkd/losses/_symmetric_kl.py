"""Symmetric KL divergence (Jeffreys, 1946; Wen, Li, Du & Mou, 2023)."""

from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from jaxkd import _check
from jaxkd.losses import _divergence
from jaxkd.losses._compile import compiled


@compiled(temperature=_check.positive)
def symmetric_kl(
    student_logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "*batch classes"],
    *,
    temperature: ArrayLike = 1.0,
    class_mask: Bool[Array, "..."] | None = None,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    """Mean of the KL divergences from teacher to student and from student to teacher.

    With p = softmax(teacher_logits / T) and q = softmax(student_logits / T)::

        loss = (KL(p, q) + KL(q, p)) / 2 = 1/2 * sum_k (p_k - q_k) * log(p_k / q_k)

    There is no factor T**2.

    Args:
      student_logits: unnormalised log-probabilities.
      teacher_logits: the same of the teacher; gradients flow to it too.
      temperature: T > 0; larger is softer.
      class_mask: true for the classes that exist, broadcastable to the logits; the
        others get probability 0, as do logits of -inf.
      where: true for the examples to use; the others get loss 0 and no gradient.

    Returns:
      The loss of each example, in nats.

    Raises:
      ValueError: if the shapes differ, or an argument is out of its range.

    Example:
      The teacher says (3/4, 1/4), the student (1/2, 1/2): log(3) / 8.

      >>> import jax.numpy as jnp
      >>> from jaxkd import losses
      >>> student, teacher = jnp.zeros((1, 2)), jnp.log(jnp.array([[3.0, 1.0]]))
      >>> print(losses.symmetric_kl(student, teacher).round(4))
      [0.1373]

    References:
      Wen, Li, Du, Mou. `f-Divergence Minimization for Sequence-Level Knowledge
      Distillation <https://arxiv.org/abs/2307.15190>`_, ACL 2023.
    """
    _check.logits(
        class_mask, where, student_logits=student_logits, teacher_logits=teacher_logits
    )
    knobs = temperature, class_mask, where
    forward = _divergence.kl(teacher_logits, student_logits, *knobs)
    return (forward + _divergence.kl(student_logits, teacher_logits, *knobs)) / 2
