"""Regression of the teacher's logits (Ba & Caruana, 2014)."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxkd import _check
from jaxkd.losses._compile import compiled
from jaxkd.losses._math import count, live, only, without


@compiled()
def logit_mse(
    student_logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "*batch classes"],
    *,
    class_mask: Bool[Array, "..."] | None = None,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    """Mean squared difference of the logits.

    With s the student's and t the teacher's logits, over the K classes that exist::

        loss = 1/K * sum_k (s_k - t_k)**2

    A constant added to all logits of an example changes this loss, though it changes no
    probability. The limit of `kd` at high temperature is half this loss with both
    logits centred first.

    Args:
      student_logits: unnormalised log-probabilities.
      teacher_logits: the same of the teacher; gradients flow to it too.
      class_mask: true for the classes that exist, broadcastable to the logits. The
        others are left out, as are those with a logit of -inf in either network.
      where: true for the examples to use; the others get loss 0 and no gradient.

    Returns:
      The loss of each example, in squared logits.

    Raises:
      ValueError: if the shapes differ, or an argument is out of its range.

    Example:
      Differences of 3 and 1: (9 + 1) / 2.

      >>> import jax.numpy as jnp
      >>> from jaxkd import losses
      >>> student, teacher = jnp.array([[0.0, 0.0]]), jnp.array([[3.0, -1.0]])
      >>> print(losses.logit_mse(student, teacher))
      [5.]

    References:
      Ba, Caruana. `Do Deep Nets Really Need to be Deep?
      <https://arxiv.org/abs/1312.6184>`_, 2014. Equation 1.
    """
    _check.logits(
        class_mask, where, student_logits=student_logits, teacher_logits=teacher_logits
    )
    student_logits, teacher_logits = without(where, student_logits, teacher_logits)
    alive = live(student_logits, class_mask) & live(teacher_logits, class_mask)
    # Each side on its own: inf - inf would be NaN before it is masked.
    difference = jnp.where(alive, student_logits, 0) - jnp.where(
        alive, teacher_logits, 0
    )
    classes = count(alive, difference, axis=-1)
    return only(where, jnp.sum(difference**2, axis=-1) / classes)
