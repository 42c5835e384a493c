"""Refined logit distillation (Sun et al., 2024)."""

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
    pick,
    some,
    without,
)


@compiled(
    alpha=_check.not_negative, beta=_check.not_negative, temperature=_check.positive
)
def rld(
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
    """KL from teacher to student without what the teacher gets wrong about the label.

    With p = softmax(teacher_logits / T), q = softmax(student_logits / T), y the label,
    and p', q' the same two over the classes whose teacher logit is below the label's::

        SCD = KL((max p, 1 - max p), (q_y, 1 - q_y))
        MCD = KL(p', q')
        loss = T**2 * (alpha * SCD + beta * MCD)

    The teacher's confidence is taught on the label, whichever class it was about; the
    label and all classes that the teacher prefers to it are left out of the relations
    taught. Where either network has no class left
    there, MCD is 0. T**2 keeps the gradient's size about
    independent of `temperature`.

    Args:
      student_logits: unnormalised log-probabilities.
      teacher_logits: the same of the teacher; gradients flow to it too.
      labels: the true class of each example; -1 for an example without one, which
        gets loss 0 and no gradient.
      alpha: weight of the confidence, >= 0.
      beta: weight of the relations, >= 0.
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
      The teacher prefers the wrong class with 3/4: the label is taught that confidence,
      and no class is left for the rest.

      >>> import jax.numpy as jnp
      >>> from jaxkd import losses
      >>> student, teacher = jnp.zeros((1, 2)), jnp.log(jnp.array([[1.0, 3.0]]))
      >>> labels = jnp.array([0])
      >>> print(losses.rld(student, teacher, labels, temperature=1.0).round(4))
      [0.1308]

    References:
      Sun, Chen, Lyu, Chen, Chen, Wang. `Knowledge Distillation with Refined Logits
      <https://arxiv.org/abs/2408.07703>`_, 2024.
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
    decision = one_hot(jnp.argmax(log_p, axis=-1), log_p.shape[-1])
    scd = binary_kl(*label_and_rest(log_p, decision), *label_and_rest(log_q, target))
    scd = jnp.where(
        some(student_logits, class_mask) & some(teacher_logits, class_mask), scd, 0
    )
    below = teacher_logits < pick(target, teacher_logits)[..., None]
    below = narrowed(class_mask, below)
    mcd = _divergence.kl(teacher_logits, student_logits, temperature, below)
    return only(where, temperature**2 * (alpha * scd + beta * mcd))
