"""Neuron selectivity transfer (Huang & Wang, 2017)."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxkd.losses import _feature_math as fm
from jaxkd.losses._compile import compiled
from jaxkd.losses._math import only, without


def _mean_kernel(
    a: Float[Array, "batch positions c1"], b: Float[Array, "batch positions c2"]
) -> Float[Array, " batch"]:
    """Return the mean of (a'b)**2 over all pairs of channels."""
    return fm.mean_of_example(jnp.square(fm.einsum("bnc,bnd->bcd", a, b)))


@compiled()
def nst(
    student_features: Float[Array, "batch *student_space student_channels"],
    teacher_features: Float[Array, "batch *teacher_space teacher_channels"],
    *,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    """Squared maximum mean discrepancy between the two networks' channels.

    With s_i, t_j the channels' spatial patterns divided by their norms, and the
    polynomial kernel k(a, b) = (a'b)**2::

        loss = mean_ij k(s_i, s_j) + mean_ij k(t_i, t_j) - 2 mean_ij k(s_i, t_j)

    The norm makes the loss blind to each channel's scale; a channel that is zero
    everywhere counts as the zero pattern. The teacher's own term is constant, and makes
    the loss 0 at equal features. Where the maps differ in size the larger is averaged
    down to the smaller.

    Args:
      student_features: the student's map; any number of channels.
      teacher_features: the teacher's map; any number of channels.
      where: true for the examples to use; the others get loss 0 and no gradient.

    Returns:
      The loss of each example, a pure number from 0 to 2 (but for rounding: the terms
      cancel).

    Raises:
      ValueError: if the batches, the numbers of spatial axes or the lengths of token
        sequences differ.

    Example:
      Two orthogonal patterns: 1 + 1 - 2 * 0.

      >>> import jax.numpy as jnp
      >>> from jaxkd import losses
      >>> student, teacher = jnp.array([[[3.0], [0.0]]]), jnp.array([[[0.0], [7.0]]])
      >>> print(losses.nst(student, teacher))
      [2.]

    References:
      Huang, Wang. `Like What You Like: Knowledge Distill via Neuron Selectivity
      Transfer <https://arxiv.org/abs/1707.01219>`_, 2017.
    """
    fm.check(
        where, 3, student_features=student_features, teacher_features=teacher_features
    )
    s, t = (
        fm.unit(fm.flat_space(features), axis=1)
        for features in fm.to_smaller(
            *without(where, student_features, teacher_features)
        )
    )
    return only(where, _mean_kernel(s, s) + _mean_kernel(t, t) - 2 * _mean_kernel(s, t))
