"""Transfer of activation boundaries (Heo et al., 2019)."""

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from jaxkd import _check
from jaxkd.losses import _feature_math as fm
from jaxkd.losses._compile import compiled
from jaxkd.losses._math import only, without


@compiled(margin=_check.not_negative)
def ab(
    student_features: Float[Array, "batch *space channels"],
    teacher_features: Float[Array, "batch *space channels"],
    *,
    margin: ArrayLike = 1.0,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    """Squared hinge on the side of zero where the teacher's neurons are.

    For a unit u with pre-activations s (student) and t (teacher)::

        loss = mean_u max(margin - s, 0)**2   where t > 0
                      max(margin + s, 0)**2   where t <= 0

    Only the sign of t counts: the student learns which neurons fire, not how strongly.
    The paper sums over units; the mean does not depend on the size of the map.
    RepDistiller takes 3/1000 of the sum, see `terms.ab`.

    Args:
      student_features: the student's features before the activation function, after the
        adapter.
      teacher_features: the teacher's features before the activation function.
      margin: >= 0; how far on the right side the student has to be.
      where: true for the examples to use; the others get loss 0 and no gradient.

    Returns:
      The loss of each example, in squared units of the features.

    Raises:
      ValueError: if the shapes differ, or `margin` is negative.

    Example:
      The first unit is 2 short of the margin, the second 1 beyond it.

      >>> import jax.numpy as jnp
      >>> from jaxkd import losses
      >>> student, teacher = jnp.array([[-1.0, -2.0]]), jnp.array([[0.1, -0.1]])
      >>> print(losses.ab(student, teacher))
      [2.]

    References:
      Heo, Lee, Yun, Choi. `Knowledge Transfer via Distillation of Activation Boundaries
      Formed by Hidden Neurons <https://arxiv.org/abs/1811.03233>`_, 2019.
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
    right_side = jnp.where(teacher_features > 0, student_features, -student_features)
    short = jnp.maximum(margin - right_side, 0)
    return only(where, fm.mean_of_example(jnp.square(short)))
