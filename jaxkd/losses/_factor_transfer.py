"""Factor transfer (Kim, Park & Kwak, 2018)."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxkd import _check
from jaxkd.losses import _feature_math as fm
from jaxkd.losses._compile import compiled
from jaxkd.losses._math import only, without


@compiled()
def factor_transfer(
    student_factors: Float[Array, "batch *space channels"],
    teacher_factors: Float[Array, "batch *space channels"],
    *,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    """Mean absolute difference of the normalised factors.

    With f the flattened factor of an example divided by its norm, over its units u::

        loss = mean_u abs(f_s[u] - f_t[u])

    The norm makes the loss blind to the factors' scale. The mean rather than the sum is
    what weights of 200 to 500 belong to. Another loss of the same name averages the
    channels of raw features first; call this one on such maps to get it.

    Args:
      student_factors: the output of the student's translator.
      teacher_factors: the code of the teacher's paraphraser.
      where: true for the examples to use; the others get loss 0 and no gradient.

    Returns:
      The loss of each example, a pure number, at most 2 / sqrt(units).

    Raises:
      ValueError: if the shapes differ.

    Example:
      The factors are (1, 0) and (0, 1).

      >>> import jax.numpy as jnp
      >>> from jaxkd import losses
      >>> student, teacher = jnp.array([[3.0, 0.0]]), jnp.array([[0.0, 7.0]])
      >>> print(losses.factor_transfer(student, teacher))
      [1.]

    References:
      Kim, Park, Kwak. `Paraphrasing Complex Network: Network Compression via Factor
      Transfer <https://arxiv.org/abs/1802.04977>`_, 2018.
    """
    fm.check(where, 2, student_factors=student_factors, teacher_factors=teacher_factors)
    _check.same_shape(student_factors=student_factors, teacher_factors=teacher_factors)
    student_factors, teacher_factors = without(where, student_factors, teacher_factors)
    difference = fm.unit(fm.flat(student_factors)) - fm.unit(fm.flat(teacher_factors))
    return only(where, jnp.mean(jnp.abs(difference), axis=-1))
