"""Weighted soft labels (Zhou et al., 2021)."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from jaxkd import _check
from jaxkd.losses import _divergence
from jaxkd.losses._compile import compiled
from jaxkd.losses._math import cross_entropy, labelled, one_hot, only, without


@compiled(temperature=_check.positive)
def wsld(
    student_logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "*batch classes"],
    labels: Int[Array, "*batch"],
    *,
    temperature: ArrayLike = 4.0,
    class_mask: Bool[Array, "..."] | None = None,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    """Soft cross-entropy, weighted down where the student already is the better one.

    With p, q = softmax of teacher_logits / T, student_logits / T, and CE the
    cross-entropy of a network with the label at temperature 1::

        loss = -w * T**2 * sum_k p_k * log q_k
        w = 1 - exp(-CE(student) / (CE(teacher) + 1e-7))

    The weight is part of the definition as a constant: no gradient flows through it.
    T**2 keeps the gradient's size about independent of `temperature`. The 1e-7 is in
    the authors' program; with it the weight is 1 where the teacher is perfect and the
    student is not.

    Args:
      student_logits: unnormalised log-probabilities.
      teacher_logits: the same of the teacher; gradients flow to it too.
      labels: the true class of each example; -1 for an example without one, which
        gets loss 0 and no gradient.
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
      Both give the label 1/2, so w = 1 - 1/e; the soft cross-entropy is log 2.

      >>> import jax.numpy as jnp
      >>> from jaxkd import losses
      >>> student, teacher = jnp.zeros((1, 2)), jnp.zeros((1, 2))
      >>> print(losses.wsld(student, teacher, jnp.array([0]), temperature=1.0).round(4))
      [0.4382]

    References:
      Zhou, Song, Chen, Zhou, Wang, Yuan, Zhang. `Rethinking Soft Labels for Knowledge
      Distillation: A Bias-Variance Tradeoff Perspective
      <https://arxiv.org/abs/2102.00650>`_, 2021.
    """
    _check.logits(
        class_mask, where, student_logits=student_logits, teacher_logits=teacher_logits
    )
    _check.labels(labels, student_logits.shape[:-1])
    where = labelled(labels, student_logits.shape[-1], where)
    student_logits, teacher_logits = without(where, student_logits, teacher_logits)
    target = one_hot(labels, student_logits.shape[-1])
    of_student = cross_entropy(target, student_logits, class_mask)
    of_teacher = cross_entropy(target, teacher_logits, class_mask)
    weight = -jnp.expm1(-of_student / (of_teacher + 1e-7))
    soft = _divergence.cross_entropy(
        teacher_logits, student_logits, temperature, class_mask
    )
    return only(where, jax.lax.stop_gradient(weight) * temperature**2 * soft)
