"""Wasserstein distance of channel statistics, WKD-F (Lv, Yang & Li, 2024)."""

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from jaxkd import _check
from jaxkd.losses import _feature_math as fm
from jaxkd.losses._compile import compiled
from jaxkd.losses._math import only, without


def _statistics(
    features: Float[Array, "batch *space channels"], epsilon: ArrayLike
) -> tuple[Float[Array, "batch channels"], Float[Array, "batch channels"]]:
    """Mean and standard deviation of each channel over the positions."""
    features = fm.flat_space(features)
    mean = jnp.mean(features, axis=1, keepdims=True)
    squares = jnp.sum(jnp.square(features - mean), axis=1)
    variance = squares / max(features.shape[1] - 1, 1)
    return mean[:, 0], jnp.sqrt(variance + epsilon)


@compiled(
    mean_weight=_check.not_negative,
    deviation_weight=_check.not_negative,
    epsilon=_check.positive,
)
def wasserstein_features(
    student_features: Float[Array, "batch *student_space channels"],
    teacher_features: Float[Array, "batch *teacher_space channels"],
    *,
    mean_weight: ArrayLike = 1.0,
    deviation_weight: ArrayLike = 1.0,
    epsilon: ArrayLike = 1e-5,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    """Squared Wasserstein distance of diagonal Gaussians fitted to the channels.

    With mu and sd the mean and standard deviation of a channel over the positions::

        loss = sum over channels of a (mu_s - mu_t)**2 + b (sd_s - sd_t)**2

    For a = b = 1 it is the squared 2-Wasserstein distance between Gaussians with
    independent channels. `epsilon` inside sd = sqrt(var + epsilon) bounds the
    derivative at a constant channel; var divides by positions - 1.

    Args:
      student_features: the student's map, with the teacher's number of channels.
      teacher_features: the teacher's map; it may have another size.
      mean_weight: a >= 0.
      deviation_weight: b >= 0.
      epsilon: > 0, added to the variances.
      where: true for the examples to use; the others get loss 0 and no gradient.

    Returns:
      The loss of each example, in squared units of the features.

    Raises:
      ValueError: if the batches, the numbers of channels or the lengths of token
        sequences differ, or a knob is out of its range.

    Example:
      Means 2 and 1, and no deviations.

      >>> import jax.numpy as jnp
      >>> from jaxkd import losses
      >>> student, teacher = jnp.full((1, 4, 1), 2.0), jnp.ones((1, 4, 1))
      >>> print(losses.wasserstein_features(student, teacher))
      [1.]

    References:
      Lv, Yang, Li. `Wasserstein Distance Rivals Kullback-Leibler Divergence for
      Knowledge Distillation <https://arxiv.org/abs/2412.08139>`_, 2024.
    """
    fm.check(
        where, 3, student_features=student_features, teacher_features=teacher_features
    )
    fm.same_channels(
        student_features=student_features, teacher_features=teacher_features
    )
    fm.same_length(student_features.shape, teacher_features.shape)
    student_features, teacher_features = without(
        where, student_features, teacher_features
    )
    student_mean, student_sd = _statistics(student_features, epsilon)
    teacher_mean, teacher_sd = _statistics(teacher_features, epsilon)
    means = jnp.sum(jnp.square(student_mean - teacher_mean), axis=-1)
    deviations = jnp.sum(jnp.square(student_sd - teacher_sd), axis=-1)
    return only(
        where,
        jnp.multiply(mean_weight, means) + jnp.multiply(deviation_weight, deviations),
    )
