"""Distillation from a stronger teacher by correlations (Huang et al., 2022)."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from jaxkd import _check
from jaxkd.losses._compile import compiled
from jaxkd.losses._math import count, flat, live, only, safe_sqrt, softmax, without


@compiled(
    beta=_check.not_negative, gamma=_check.not_negative, temperature=_check.positive
)
def dist(
    student_logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "*batch classes"],
    *,
    beta: ArrayLike = 1.0,
    gamma: ArrayLike = 1.0,
    temperature: ArrayLike = 1.0,
    class_mask: Bool[Array, "..."] | None = None,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    """One minus the correlation of teacher and student, over classes and over examples.

    With P, Q of shape [batch, classes] the teacher's and the student's softmax at T,
    and r Pearson's correlation::

        inter_i = 1 - r(P_i:, Q_i:)
        intra = 1 - mean_k r(P_:k, Q_:k)
        loss_i = T**2 * (beta * inter_i + gamma * intra)

    The student has to rank as the teacher does, but not to be as sharp. `intra` belongs
    to the whole batch and every example carries it alike. As in the authors' code 1e-8
    is added to the product of the norms; a constant row or column correlates with
    nothing (r = 0) and has no gradient. All leading axes are one batch here.

    Args:
      student_logits: unnormalised log-probabilities.
      teacher_logits: the same of the teacher; gradients flow to it too.
      beta: weight of the relation between classes, >= 0.
      gamma: weight of the relation between examples, >= 0.
      temperature: T > 0; larger is softer.
      class_mask: true for the classes that exist, broadcastable to the logits; the
        others get probability 0, as do logits of -inf.
      where: true for the examples to use; the others get loss 0 and no gradient.

    Returns:
      The loss of each example, without a unit; their mean is the paper's loss.

    Raises:
      ValueError: if the shapes differ, or an argument is out of its range.

    Example:
      The student agrees in the first example and says the opposite in the second
      (1 - r = 0 and 2); each class goes up where it should go down (1 - r = 2).

      >>> import jax.numpy as jnp
      >>> from jaxkd import losses
      >>> student = jnp.log(jnp.array([[3.0, 1.0], [7.0, 1.0]]))
      >>> teacher = jnp.log(jnp.array([[3.0, 1.0], [1.0, 3.0]]))
      >>> print(losses.dist(student, teacher).round(4))
      [2. 4.]

    References:
      Huang, You, Wang, Qian, Xu. `Knowledge Distillation from A Stronger Teacher
      <https://arxiv.org/abs/2205.10536>`_, 2022.
    """
    _check.logits(
        class_mask, where, student_logits=student_logits, teacher_logits=teacher_logits
    )
    batch = student_logits.shape[:-1]
    mask = live(student_logits, class_mask) & live(teacher_logits, class_mask)
    student_logits, teacher_logits = without(where, student_logits, teacher_logits)
    p = softmax(teacher_logits, class_mask, temperature=temperature)
    q = softmax(student_logits, class_mask, temperature=temperature)
    kept, p, q, mask = flat(where, p, q, mask)
    mask &= kept
    inter = 1 - correlation(p, q, mask, axis=1)
    classes = jnp.any(mask, axis=0)
    r = jnp.where(classes, correlation(p, q, mask, axis=0), 0)
    intra = 1 - jnp.sum(r) / count(classes, r)
    loss = temperature**2 * (beta * inter + gamma * intra)
    return only(where, jnp.where(jnp.any(mask, axis=1), loss, 0).reshape(batch))


def correlation(
    p: Float[Array, "n classes"],
    q: Float[Array, "n classes"],
    mask: Bool[Array, "n classes"],
    axis: int,
) -> Float[Array, "rest"]:
    """Pearson's correlation of p and q along an axis, where the mask is true."""
    p, q = centre(p, mask, axis), centre(q, mask, axis)
    norms = safe_sqrt(jnp.sum(p * p, axis=axis)) * safe_sqrt(jnp.sum(q * q, axis=axis))
    # Next to a constant, 1e-8 would make of the gradient a direction of size 1e8.
    return jnp.where(norms > 0, jnp.sum(p * q, axis=axis) / (norms + 1e-8), 0)


def centre(
    x: Float[Array, "n classes"], mask: Bool[Array, "n classes"], axis: int
) -> Float[Array, "n classes"]:
    """Subtracts the mean along an axis, exactly 0 where x is constant."""
    one = jnp.max(x, axis=axis, keepdims=True, where=mask, initial=0)
    x = jnp.where(mask, x - jax.lax.stop_gradient(one), 0)
    mean = jnp.sum(x, axis=axis, keepdims=True) / count(mask, x, axis, keepdims=True)
    return jnp.where(mask, x - mean, 0)
