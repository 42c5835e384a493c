"""Normalised knowledge distillation (Yang et al., 2023)."""

from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from jaxkd import _check
from jaxkd.losses import _divergence
from jaxkd.losses._compile import compiled
from jaxkd.losses._math import (
    cross_entropy,
    labelled,
    narrowed,
    one_hot,
    only,
    pick,
    softmax,
    without,
)


@compiled(gamma=_check.not_negative, temperature=_check.positive)
def nkd(
    student_logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "*batch classes"],
    labels: Int[Array, "*batch"],
    *,
    gamma: ArrayLike = 1.5,
    temperature: ArrayLike = 1.0,
    class_mask: Bool[Array, "..."] | None = None,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    """Teacher-weighted cross-entropy of the label, plus that of the other classes.

    With p, q = softmax of teacher_logits, student_logits, y the label, and p', q' the
    softmax of the same over T and over the classes other than y::

        loss = -p_y * log q_y - gamma * T**2 * sum_{k != y} p'_k * log q'_k

    The other classes are normalised to sum to 1 in both networks, without which their
    cross-entropy could not reach its least value. The label's term stays at temperature
    1. T**2 keeps the gradient's size about independent of `temperature`.

    Args:
      student_logits: unnormalised log-probabilities.
      teacher_logits: the same of the teacher; gradients flow to it too.
      labels: the true class of each example; -1 for an example without one, which
        gets loss 0 and no gradient.
      gamma: weight of the other classes, >= 0.
      temperature: T > 0; larger is softer.
      class_mask: true for the classes that exist, broadcastable to the logits; the
        others get probability 0, as do logits of -inf.
      where: true for the examples to use; the others get loss 0 and no gradient.

    Returns:
      The loss of each example, in nats (the second term times T squared).

    Raises:
      ValueError: if the shapes differ, a label is not a class, or an argument is out
        of its range.

    Example:
      With two classes only the label's term is left: 3/4 * log 2.

      >>> import jax.numpy as jnp
      >>> from jaxkd import losses
      >>> student, teacher = jnp.zeros((1, 2)), jnp.log(jnp.array([[3.0, 1.0]]))
      >>> loss = losses.nkd(student, teacher, jnp.array([0]))
      >>> print(f"{loss[0]:.4f}")
      0.5199

    References:
      Yang, Zeng, Li, Zhang, Yuan, Li. `From Knowledge Distillation to Self-Knowledge
      Distillation: A Unified Approach with Normalized Loss and Customized Soft Labels
      <https://arxiv.org/abs/2303.13005>`_, 2023. The NKD loss.
    """
    _check.logits(
        class_mask, where, student_logits=student_logits, teacher_logits=teacher_logits
    )
    _check.labels(labels, student_logits.shape[:-1])
    where = labelled(labels, student_logits.shape[-1], where)
    student_logits, teacher_logits = without(where, student_logits, teacher_logits)
    target = one_hot(labels, student_logits.shape[-1])
    p_label = pick(target, softmax(teacher_logits, class_mask))
    of_label = p_label * cross_entropy(target, student_logits, class_mask)
    others = narrowed(class_mask, ~target)
    of_others = _divergence.cross_entropy(
        teacher_logits, student_logits, temperature, others
    )
    return only(where, of_label + gamma * temperature**2 * of_others)
