"""Distillation by the generalised Jensen-Shannon divergence (Agarwal et al., 2024)."""

from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from jaxkd import _check
from jaxkd.losses import _divergence
from jaxkd.losses._compile import compiled


@compiled(beta=_check.open_unit, temperature=_check.positive)
def jsd(
    student_logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "*batch classes"],
    *,
    beta: ArrayLike = 0.5,
    temperature: ArrayLike = 1.0,
    class_mask: Bool[Array, "..."] | None = None,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    """Generalised Jensen-Shannon divergence of the softened teacher and student.

    With p = softmax(teacher_logits / T), q = softmax(student_logits / T) and their
    mixture m = beta * p + (1 - beta) * q::

        loss = beta * KL(p, m) + (1 - beta) * KL(q, m)

    It is bounded, by log 2 at beta = 1/2. There is no factor T**2: the paper has none.
    Divided by `beta` it becomes `kd` without its T**2 as `beta` goes to 0, and divided
    by 1 - beta `reverse_kd` as it goes to 1, so the ends themselves are not offered.

    Args:
      student_logits: unnormalised log-probabilities.
      teacher_logits: the same of the teacher; gradients flow to it too.
      beta: the weight of the teacher in the mixture, in the open interval (0, 1).
      temperature: T > 0; larger is softer.
      class_mask: true for the classes that exist, broadcastable to the logits; the
        others get probability 0, as do logits of -inf.
      where: true for the examples to use; the others get loss 0 and no gradient.

    Returns:
      The loss of each example, in nats.

    Raises:
      ValueError: if the shapes differ, or an argument is out of its range.

    Example:
      Two networks that are certain of different classes: log 2.

      >>> import jax.numpy as jnp
      >>> from jaxkd import losses
      >>> student, teacher = jnp.array([[0.0, 99.0]]), jnp.array([[99.0, 0.0]])
      >>> print(losses.jsd(student, teacher).round(4))
      [0.6931]

    References:
      Agarwal, Vieillard, Zhou, Stanczyk, Ramos, Geist, Bachem. `On-Policy Distillation
      of Language Models: Learning from Self-Generated Mistakes
      <https://arxiv.org/abs/2306.13649>`_, 2024. Section 2.
    """
    _check.logits(
        class_mask, where, student_logits=student_logits, teacher_logits=teacher_logits
    )
    return _divergence.jensen_shannon(
        teacher_logits, student_logits, beta, temperature, class_mask, where
    )
