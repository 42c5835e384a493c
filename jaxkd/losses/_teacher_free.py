"""Teacher-free distillation by regularisation (Yuan et al., 2020)."""

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from jaxkd import _check
from jaxkd.losses import _divergence
from jaxkd.losses._compile import compiled
from jaxkd.losses._math import count, labelled, live, one_hot, only, without


@compiled(confidence=_check.open_unit, temperature=_check.positive)
def teacher_free(
    student_logits: Float[Array, "*batch classes"],
    labels: Int[Array, "*batch"],
    *,
    confidence: ArrayLike = 0.99,
    temperature: ArrayLike = 20.0,
    class_mask: Bool[Array, "..."] | None = None,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    """KL divergence from a softened hand-made teacher to the softened student.

    The virtual teacher gives the label the probability c, and each of the K - 1 other
    classes (1 - c) / (K - 1). With p its softened form and q the student's::

        loss = sum_k p_k * (log p_k - log q_k)
        p = softmax(log(teacher) / T),  q = softmax(student_logits / T)

    There is no factor T**2: the paper has none. The authors' code softens the
    teacher's probabilities as if they were logits, which at T = 20 leaves them uniform
    to within a twentieth; here, as in the paper, a distribution is softened as anywhere
    else. With one class the loss is 0.

    Args:
      student_logits: unnormalised log-probabilities.
      labels: the true class of each example; -1 for an example without one, which
        gets loss 0 and no gradient.
      confidence: c, the virtual teacher's probability of the label, in (0, 1).
      temperature: T > 0; larger is softer.
      class_mask: true for the classes that exist, broadcastable to the logits; the
        others get probability 0, as do logits of -inf.
      where: true for the examples to use; the others get loss 0 and no gradient.

    Returns:
      The loss of each example, in nats.

    Raises:
      ValueError: if the shapes differ, a label is not a class, or an argument is out
        of its range.

    Example:
      The virtual teacher says (3/4, 1/4), the student (1/2, 1/2).

      >>> import jax.numpy as jnp
      >>> from jaxkd import losses
      >>> student, labels = jnp.zeros((1, 2)), jnp.array([0])
      >>> loss = losses.teacher_free(student, labels, confidence=0.75, temperature=1.0)
      >>> print(loss.round(4))
      [0.1308]

    References:
      Yuan, Tay, Li, Wang, Feng. `Revisiting Knowledge Distillation via Label Smoothing
      Regularization <https://arxiv.org/abs/1909.11723>`_, 2020.
    """
    _check.logits(class_mask, where, student_logits=student_logits)
    _check.labels(labels, student_logits.shape[:-1])
    where = labelled(labels, student_logits.shape[-1], where)
    (student_logits,) = without(where, student_logits)
    alive = live(student_logits, class_mask)
    target = one_hot(labels, student_logits.shape[-1])
    others = count(alive & ~target, student_logits, axis=-1, keepdims=True)
    confidence = jnp.asarray(confidence, student_logits.dtype)
    log_teacher = jnp.where(
        target, jnp.log(confidence), jnp.log1p(-confidence) - jnp.log(others)
    ).astype(student_logits.dtype)
    return only(where, _divergence.kl(log_teacher, student_logits, temperature, alive))
