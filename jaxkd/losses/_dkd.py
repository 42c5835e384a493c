"""Decoupled knowledge distillation (Zhao et al., 2022)."""

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from jaxkd import _check
from jaxkd.losses import _divergence
from jaxkd.losses._compile import compiled
from jaxkd.losses._math import (
    binary_kl,
    label_and_rest,
    labelled,
    log_softmax,
    narrowed,
    one_hot,
    only,
    some,
    without,
)


@compiled(
    alpha=_check.not_negative, beta=_check.not_negative, temperature=_check.positive
)
def dkd(
    student_logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "*batch classes"],
    labels: Int[Array, "*batch"],
    *,
    alpha: ArrayLike = 1.0,
    beta: ArrayLike = 8.0,
    temperature: ArrayLike = 4.0,
    class_mask: Bool[Array, "..."] | None = None,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    """KL from teacher to student, the label's share and the others' weighted apart.

    With p = softmax(teacher_logits / T), q = softmax(student_logits / T), y the label,
    and p', q' the same two over the classes other than y::

        TCKD = KL((p_y, 1 - p_y), (q_y, 1 - q_y))
        NCKD = KL(p', q')
        loss = T**2 * (alpha * TCKD + beta * NCKD)

    `kd` is alpha = 1 with 1 - p_y in place of `beta`: there a confident teacher
    silences its own knowledge of the other classes. T**2 keeps the gradient's size
    about independent of `temperature`. With two classes NCKD is 0.

    Args:
      student_logits: unnormalised log-probabilities.
      teacher_logits: the same of the teacher; gradients flow to it too.
      labels: the true class of each example; -1 for an example without one, which
        gets loss 0 and no gradient.
      alpha: weight of the label's share, >= 0.
      beta: weight of the other classes' share, >= 0. The authors take 0.5 to 8,
        more for a more confident teacher.
      temperature: T > 0; larger is softer.
      class_mask: true for the classes that exist, broadcastable to the logits; the
        others get probability 0, as do logits of -inf.
      where: true for the examples to use; the others get loss 0 and no gradient.

    Returns:
      The loss of each example, in nats times T squared.

    Raises:
      ValueError: if the shapes differ, a label is not a class, or an argument is out
        of its range.

    Example:
      With two classes and alpha = 1 it is `kd`.

      >>> import jax.numpy as jnp
      >>> from jaxkd import losses
      >>> student, teacher = jnp.zeros((1, 2)), jnp.log(jnp.array([[3.0, 1.0]]))
      >>> labels = jnp.array([0])
      >>> print(losses.dkd(student, teacher, labels, temperature=1.0).round(4))
      [0.1308]

    References:
      Zhao, Cui, Song, Qiu, Liang. `Decoupled Knowledge Distillation
      <https://arxiv.org/abs/2203.08679>`_, 2022. Equation 7.
    """
    _check.logits(
        class_mask, where, student_logits=student_logits, teacher_logits=teacher_logits
    )
    _check.labels(labels, student_logits.shape[:-1])
    where = labelled(labels, student_logits.shape[-1], where)
    student_logits, teacher_logits = without(where, student_logits, teacher_logits)
    target = one_hot(labels, student_logits.shape[-1])
    log_p = log_softmax(teacher_logits, class_mask, temperature=temperature)
    log_q = log_softmax(student_logits, class_mask, temperature=temperature)
    tckd = binary_kl(*label_and_rest(log_p, target), *label_and_rest(log_q, target))
    tckd = jnp.where(
        some(student_logits, class_mask) & some(teacher_logits, class_mask), tckd, 0
    )
    others = narrowed(class_mask, ~target)
    nckd = _divergence.kl(teacher_logits, student_logits, temperature, others)
    return only(where, temperature**2 * (alpha * tckd + beta * nckd))
