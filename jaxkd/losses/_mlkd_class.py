"""Multi-level logit distillation: the classes (Jin et al., 2023)."""

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from jaxkd import _check
from jaxkd.losses._compile import compiled
from jaxkd.losses._math import count, flat, live, only, softmax, without


@compiled(temperature=_check.positive)
def mlkd_class(
    student_logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "*batch classes"],
    *,
    temperature: ArrayLike = 4.0,
    class_mask: Bool[Array, "..."] | None = None,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    """Squared difference of the two networks' correlations between classes.

    With P, Q of shape [batch, classes] the teacher's and the student's softmax at T,
    and K classes that exist::

        loss_i = 1/K * sum_kl ((P' P)_kl - (Q' Q)_kl)**2

    It belongs to the whole batch, and every example carries it alike. It is divided by
    the number of classes, not of examples, and has no factor T**2, as in the authors'
    code. Two arrays [classes, classes] are held. All leading axes are one batch here.

    Args:
      student_logits: unnormalised log-probabilities.
      teacher_logits: the same of the teacher; gradients flow to it too.
      temperature: T > 0; larger is softer.
      class_mask: true for the classes that exist, broadcastable to the logits; the
        others get probability 0, as do logits of -inf.
      where: true for the examples to use; the others get loss 0 and no gradient.

    Returns:
      The loss of each example, the same for all, without a unit.

    Raises:
      ValueError: if the shapes differ, or an argument is out of its range.

    Example:
      The teacher is certain of a different class each time (P'P is the identity), the
      student always says (1/2, 1/2) (all entries are 1/2): 4 * (1/2)**2 / 2.

      >>> import jax.numpy as jnp
      >>> from jaxkd import losses
      >>> student, teacher = jnp.zeros((2, 2)), 999 * jnp.eye(2)
      >>> print(losses.mlkd_class(student, teacher, temperature=1.0))
      [0.5 0.5]

    References:
      Jin, Wang, Lin. `Multi-Level Logit Distillation
      <https://openaccess.thecvf.com/content/CVPR2023/html/Jin_Multi-Level_Logit_Distillation_CVPR_2023_paper.html>`_,
      2023.
    """
    _check.logits(
        class_mask, where, student_logits=student_logits, teacher_logits=teacher_logits
    )
    batch = student_logits.shape[:-1]
    mask = live(student_logits, class_mask) | live(teacher_logits, class_mask)
    student_logits, teacher_logits = without(where, student_logits, teacher_logits)
    p = softmax(teacher_logits, class_mask, temperature=temperature)
    q = softmax(student_logits, class_mask, temperature=temperature)
    kept, p, q, mask = flat(where, p, q, mask)
    p, q = jnp.where(kept, p, 0), jnp.where(kept, q, 0)
    difference = p.T @ p - q.T @ q
    classes = count(jnp.any(mask & kept, axis=0), difference)
    loss = jnp.broadcast_to(jnp.sum(difference**2) / classes, kept.shape[0])
    return only(where, jnp.where(jnp.any(mask, axis=1), loss, 0).reshape(batch))
