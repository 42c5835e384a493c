"""Hints from an intermediate layer (Romero et al., 2015)."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxkd import _check
from jaxkd.losses import _feature_math as fm
from jaxkd.losses._compile import compiled
from jaxkd.losses._math import only, without


@compiled()
def hint(
    student_features: Float[Array, "batch *space channels"],
    teacher_features: Float[Array, "batch *space channels"],
    *,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    """Mean squared difference of two feature maps.

    Over the units u of an example (positions and channels)::

        loss = mean_u (F_s[u] - F_t[u])**2

    The paper has half the sum in place of the mean; the mean keeps the weight the same
    for maps of every size, and is what the usual weight of 100 belongs to.

    Args:
      student_features: the student's map, after the adapter that gives it the
        teacher's shape.
      teacher_features: the teacher's map.
      where: true for the examples to use; the others get loss 0 and no gradient.

    Returns:
      The loss of each example, in squared units of the features.

    Raises:
      ValueError: if the shapes differ.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxkd import losses
      >>> print(losses.hint(jnp.array([[1.0, 2.0]]), jnp.array([[0.0, 5.0]])))
      [5.]

    References:
      Romero, Ballas, Ebrahimi Kahou, Chassang, Gatta, Bengio. `FitNets: Hints for Thin
      Deep Nets <https://arxiv.org/abs/1412.6550>`_, 2015. Equation 3.
    """
    fm.check(
        where, 2, student_features=student_features, teacher_features=teacher_features
    )
    _check.same_shape(
        student_features=student_features, teacher_features=teacher_features
    )
    student_features, teacher_features = without(
        where, student_features, teacher_features
    )
    error = jnp.square(student_features - teacher_features)
    return only(where, fm.mean_of_example(error))
