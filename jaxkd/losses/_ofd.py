"""The overhaul of feature distillation (Heo et al., 2019)."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxkd import _check
from jaxkd.losses import _feature_math as fm
from jaxkd.losses._compile import compiled
from jaxkd.losses._math import only, without


@compiled()
def ofd(
    student_features: Float[Array, "batch *space channels"],
    teacher_features: Float[Array, "batch *space channels"],
    margin: Float[Array, " channels"],
    *,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    """Partial squared distance to the teacher's features behind a margin ReLU.

    With the target r = max(t, margin of the channel)::

        loss = sum over units of (s - r)**2, but 0 where s <= r <= 0

    What the teacher's own ReLU drops is kept only as "negative": the student's value
    need not come closer once it is below. The sum over units (not the mean) is the
    paper's; its weight is 1e-3 and smaller.

    Args:
      student_features: the student's features before the ReLU, after the adapter.
      teacher_features: the teacher's features before the ReLU.
      margin: < 0, one for each channel: the expectation of the channel's negative
        values, which the scale and shift of its batch normalisation give.
      where: true for the examples to use; the others get loss 0 and no gradient.

    Returns:
      The loss of each example, in squared units of the features.

    Raises:
      ValueError: if the shapes differ, or `margin` is not one number for each channel.

    Example:
      Targets 2 and -1. The first unit is 3 away; the second is below already.

      >>> import jax.numpy as jnp
      >>> from jaxkd import losses
      >>> student, teacher = jnp.array([[-1.0, -4.0]]), jnp.array([[2.0, -3.0]])
      >>> print(losses.ofd(student, teacher, jnp.array([-1.0, -1.0])))
      [9.]

    References:
      Heo, Kim, Yun, Park, Kwak, Choi. `A Comprehensive Overhaul of Feature Distillation
      <https://arxiv.org/abs/1904.01866>`_, 2019.
    """
    fm.check(
        where, 2, student_features=student_features, teacher_features=teacher_features
    )
    _check.same_shape(
        student_features=student_features, teacher_features=teacher_features
    )
    _check.real(margin=margin)
    _check.rank(1, 1, margin=margin)
    fm.same_channels(margin=margin, teacher_features=teacher_features)
    student_features, teacher_features = without(
        where, student_features, teacher_features
    )
    s, t = fm.flat_space(student_features), fm.flat_space(teacher_features)
    target = jnp.maximum(t, margin.reshape(1, 1, -1))
    counts = (s > target) | (target > 0)
    error = jnp.where(counts, jnp.square(s - target), 0)
    return only(where, jnp.sum(error, axis=(1, 2)))
