"""Multi-level logit distillation: the batch (Jin et al., 2023)."""

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from jaxkd import _check
from jaxkd.losses._compile import compiled
from jaxkd.losses._math import flat, only, softmax, without


@compiled(temperature=_check.positive)
def mlkd_batch(
    student_logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "*batch classes"],
    *,
    temperature: ArrayLike = 4.0,
    class_mask: Bool[Array, "..."] | None = None,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    """Squared difference of the two networks' similarities between examples.

    With P, Q of shape [batch, classes] the teacher's and the student's softmax at T::

        loss_i = sum_j ((P P')_ij - (Q Q')_ij)**2

    The mean over the batch is the squared Frobenius norm over the batch size. There is
    no factor T**2, as in the authors' code. All leading axes are one batch here.

    Args:
      student_logits: unnormalised log-probabilities.
      teacher_logits: the same of the teacher; gradients flow to it too.
      temperature: T > 0; larger is softer.
      class_mask: true for the classes that exist, broadcastable to the logits; the
        others get probability 0, as do logits of -inf.
      where: true for the examples to use; the others get loss 0 and no gradient.

    Returns:
      The loss of each example (its row), without a unit.

    Raises:
      ValueError: if the shapes differ, or an argument is out of its range.

    Example:
      The teacher is certain of a different class each time (similarities 1, 0), the
      student always says (1/2, 1/2) (similarities 1/2): 2 * (1/2)**2 in each row.

      >>> import jax.numpy as jnp
      >>> from jaxkd import losses
      >>> student, teacher = jnp.zeros((2, 2)), 999 * jnp.eye(2)
      >>> print(losses.mlkd_batch(student, teacher, temperature=1.0))
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
    student_logits, teacher_logits = without(where, student_logits, teacher_logits)
    p = softmax(teacher_logits, class_mask, temperature=temperature)
    q = softmax(student_logits, class_mask, temperature=temperature)
    kept, p, q = flat(where, p, q)
    p, q = jnp.where(kept, p, 0), jnp.where(kept, q, 0)
    difference = p @ p.T - q @ q.T
    return only(where, jnp.sum(difference**2, axis=1).reshape(batch))
