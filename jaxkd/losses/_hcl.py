"""Hierarchical context loss of review distillation (Chen et al., 2021)."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxkd.losses import _feature_math as fm
from jaxkd.losses._compile import compiled
from jaxkd.losses._math import only, without


def _levels(name: str, value: object) -> None:
    """Refuse `levels` unless it is a tuple of integers >= 1."""
    ok = isinstance(value, tuple) and all(
        isinstance(level, int) and not isinstance(level, bool) and level >= 1
        for level in value
    )
    if not ok:
        raise ValueError(f"{name} must be a tuple of integers >= 1, got {value!r}")


@compiled(static=("levels",), levels=_levels)
def hcl(
    student_features: Float[Array, "batch *student_space channels"],
    teacher_features: Float[Array, "batch *teacher_space channels"],
    *,
    levels: tuple[int, ...] = (4, 2, 1),
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    """Mean squared difference of two maps at several resolutions.

    With P_l the average pooling to l positions along each axis, and P_0 none::

        loss = sum_l w_l mean (P_l F_s - P_l F_t)**2 / sum_l w_l

    The full map has weight 1 and every further level half of the one before. A level
    that does not make the map smaller is left out of both sums. Where the maps differ
    in size the larger is averaged down to the smaller first.

    Args:
      student_features: the student's map, fused and adapted to the teacher's channels.
      teacher_features: the teacher's map.
      levels: sizes >= 1 to pool to, in the order of their weights.
      where: true for the examples to use; the others get loss 0 and no gradient.

    Returns:
      The loss of each example for this pair of maps, in squared units of the features.

    Raises:
      ValueError: if the batches, the numbers of channels or of spatial axes, or the
        lengths of token sequences differ, or `levels` is not a tuple of integers >= 1.

    Example:
      The difference is (2, 0), its average 1: (1 * 2 + 1/2 * 1) / (1 + 1/2).

      >>> import jax.numpy as jnp
      >>> from jaxkd import losses
      >>> student, teacher = jnp.array([[[2.0], [0.0]]]), jnp.zeros((1, 2, 1))
      >>> print(losses.hcl(student, teacher).round(4))
      [1.6667]

    References:
      Chen, Liu, Zhao, Jia. `Distilling Knowledge via Knowledge Review
      <https://arxiv.org/abs/2104.09044>`_, 2021. Section 3.3.
    """
    fm.check(
        where, 3, student_features=student_features, teacher_features=teacher_features
    )
    fm.same_channels(
        student_features=student_features, teacher_features=teacher_features
    )
    student_features, teacher_features = fm.to_smaller(
        *without(where, student_features, teacher_features)
    )
    # Pooling is linear: the difference is pooled, not the two maps.
    difference = student_features - teacher_features
    space = difference.shape[1:-1]
    loss = fm.mean_of_example(jnp.square(difference))
    weight, total = 1.0, 1.0
    for level in levels:
        if level >= min(space):
            continue
        weight /= 2
        pooled = fm.pool(difference, (level,) * len(space))
        loss += weight * fm.mean_of_example(jnp.square(pooled))
        total += weight
    return only(where, loss / total)
