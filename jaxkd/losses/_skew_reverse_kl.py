"""Skew reverse KL divergence (Ko, Kim, Chen & Yun, 2024)."""

from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from jaxkd import _check
from jaxkd.losses import _divergence
from jaxkd.losses._compile import compiled


@compiled(skew=_check.open_unit, temperature=_check.positive)
def skew_reverse_kl(
    student_logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "*batch classes"],
    *,
    skew: ArrayLike = 0.1,
    temperature: ArrayLike = 1.0,
    class_mask: Bool[Array, "..."] | None = None,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    """KL divergence from the student to a mixture of student and teacher.

    With p = softmax(teacher_logits / T), q = softmax(student_logits / T) and
    m = (1 - skew) * p + skew * q::

        loss = KL(q, m) = sum_k q_k * log(q_k / m_k)

    It is at most -log(skew), also where the teacher gives 0 to what the student
    expects. It is `skew_kl` with the networks exchanged; as `skew` goes to 0 it becomes
    `reverse_kd` without its T**2. There is no factor T**2.

    Args:
      student_logits: unnormalised log-probabilities.
      teacher_logits: the same of the teacher; gradients flow to it too.
      skew: the student's share of the mixture, in (0, 1).
      temperature: T > 0; larger is softer.
      class_mask: true for the classes that exist, broadcastable to the logits; the
        others get probability 0, as do logits of -inf.
      where: true for the examples to use; the others get loss 0 and no gradient.

    Returns:
      The loss of each example, in nats.

    Raises:
      ValueError: if the shapes differ, or an argument is out of its range.

    Example:
      Both are certain, of different classes: the mixture gives the student's 1/10.

      >>> import jax.numpy as jnp
      >>> from jaxkd import losses
      >>> student, teacher = jnp.array([[0.0, 99.0]]), jnp.array([[99.0, 0.0]])
      >>> print(losses.skew_reverse_kl(student, teacher).round(4))
      [2.3026]

    References:
      Ko, Kim, Chen, Yun. `DistiLLM: Towards Streamlined Distillation for Large Language
      Models <https://arxiv.org/abs/2402.03898>`_, ICML 2024. Definition 1.
    """
    _check.logits(
        class_mask, where, student_logits=student_logits, teacher_logits=teacher_logits
    )
    return _divergence.skew_kl(
        student_logits, teacher_logits, skew, temperature, class_mask, where
    )
