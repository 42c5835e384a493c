"""Variational information distillation (Ahn et al., 2019)."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from jaxkd import _check
from jaxkd.losses import _feature_math as fm
from jaxkd.losses._compile import compiled
from jaxkd.losses._math import only, without


@compiled(epsilon=_check.positive)
def vid(
    predicted_features: Float[Array, "batch *space channels"],
    teacher_features: Float[Array, "batch *space channels"],
    raw_scale: Float[Array, " channels"],
    *,
    epsilon: ArrayLike = 1e-5,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    """Negative log-likelihood of the teacher's features under a Gaussian.

    With one variance for each channel, v = softplus(raw_scale) + epsilon::

        loss = mean over units of ((mu - F_t)**2 / v + log v) / 2

    The constant log(2 pi) / 2 is left out, so the loss may be negative. The variance
    must be trained along: it decides which of the teacher's channels matter. softplus
    is evaluated without the exponential's overflow.

    Args:
      predicted_features: mu, the Gaussian's mean, regressed from the student.
      teacher_features: where the density is evaluated.
      raw_scale: one number for each channel; log(exp(v0 - epsilon) - 1) starts the
        variance at v0, usually 5.
      epsilon: > 0, the least variance.
      where: true for the examples to use; the others get loss 0 and no gradient.

    Returns:
      The loss of each example, in nats a unit, without the constant.

    Raises:
      ValueError: if the shapes differ, `raw_scale` is not one number for each channel,
        or `epsilon` is not positive.

    Example:
      The variance is 1, so half the squared error of 2 is left.

      >>> import jax.numpy as jnp
      >>> from jaxkd import losses
      >>> raw_scale = jnp.log(jnp.expm1(jnp.array([1.0 - 1e-5])))
      >>> predicted, teacher = jnp.zeros((1, 1)), jnp.full((1, 1), 2.0)
      >>> print(losses.vid(predicted, teacher, raw_scale).round(4))
      [2.]

    References:
      Ahn, Hu, Damianou, Lawrence, Dai. `Variational Information Distillation for
      Knowledge Transfer <https://arxiv.org/abs/1904.05835>`_, 2019.
    """
    fm.check(
        where,
        2,
        predicted_features=predicted_features,
        teacher_features=teacher_features,
    )
    _check.same_shape(
        predicted_features=predicted_features, teacher_features=teacher_features
    )
    _check.real(raw_scale=raw_scale)
    _check.rank(1, 1, raw_scale=raw_scale)
    fm.same_channels(raw_scale=raw_scale, teacher_features=teacher_features)
    predicted_features, teacher_features = without(
        where, predicted_features, teacher_features
    )
    error = jnp.square(predicted_features - teacher_features)
    # The variance is constant over space: it meets the mean, not the map.
    error = jnp.mean(fm.flat_space(error), axis=1)
    variance = jnp.expand_dims(jax.nn.softplus(raw_scale) + epsilon, 0)
    return only(where, 0.5 * jnp.mean(error / variance + jnp.log(variance), axis=-1))
