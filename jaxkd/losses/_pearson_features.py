"""Feature distillation by Pearson's correlation, PKD (Cao et al., 2022)."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxkd import _check
from jaxkd.losses import _feature_math as fm
from jaxkd.losses._compile import compiled
from jaxkd.losses._math import only, without


def _standardise(
    x: Float[Array, "batch positions channels"], where: Bool[Array, " batch"] | None
) -> Float[Array, "batch positions channels"]:
    """Mean 0 and variance 1 for each channel; 0 for one that is constant."""
    count = fm.kept(where, x) * x.shape[1]
    (centred,) = without(where, x)
    for _ in range(2):  # again: a sum taken one by one loses digits of a large mean
        centred = centred - jnp.sum(centred, axis=(0, 1), keepdims=True) / count
        (centred,) = without(where, centred)
    # A constant channel leaves the rounding error of its mean, which is not to be blown
    # up to unit size.
    noise = 16 * float(jnp.finfo(x.dtype).eps)
    largest = jnp.max(jnp.abs(x), axis=(0, 1), keepdims=True)
    alive = jnp.max(jnp.abs(centred), axis=(0, 1), keepdims=True) > noise * largest
    centred = jnp.where(alive, centred, 0)
    return fm.unit(centred.reshape(-1, x.shape[-1]), axis=0).reshape(x.shape) * (
        jnp.sqrt(count)
    )


@compiled()
def pearson_features(
    student_features: Float[Array, "batch *space channels"],
    teacher_features: Float[Array, "batch *space channels"],
    *,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    """Half the mean squared difference of standardised channels.

    Each channel is given mean 0 and variance 1 over all positions of all examples::

        loss = mean over units of (z_s - z_t)**2 / 2

    The mean over the batch is 1 - r, with r Pearson's correlation of a channel of the
    student with the same of the teacher, averaged over channels; so neither scale nor
    offset of a channel matters. The variance is the population's (divided by the number
    of values), which makes that exact. A channel that is constant counts as z = 0.

    Args:
      student_features: the student's map, after the adapter.
      teacher_features: the teacher's map.
      where: true for the examples to use; the others get loss 0 and no gradient, and
        are not in the means and variances.

    Returns:
      Each example's share, a pure number; the mean over the batch is from 0 to 2.

    Raises:
      ValueError: if the shapes differ.

    Example:
      The channels go opposite ways, r = -1.

      >>> import jax.numpy as jnp
      >>> from jaxkd import losses
      >>> student, teacher = jnp.array([[0.0], [1.0]]), jnp.array([[5.0], [3.0]])
      >>> print(losses.pearson_features(student, teacher).round(4))
      [2. 2.]

    References:
      Cao, Zhang, Gao, Cheng, Cheng, Cheng. `PKD: General Distillation Framework for
      Object Detectors via Pearson Correlation Coefficient
      <https://arxiv.org/abs/2207.02039>`_, 2022.
    """
    fm.check(
        where, 2, student_features=student_features, teacher_features=teacher_features
    )
    _check.same_shape(
        student_features=student_features, teacher_features=teacher_features
    )
    s, t = map(fm.flat_space, without(where, student_features, teacher_features))
    difference = _standardise(s, where) - _standardise(t, where)
    return only(where, 0.5 * fm.mean_of_example(jnp.square(difference)))
