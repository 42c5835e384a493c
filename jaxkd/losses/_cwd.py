"""Channel-wise distillation (Shu et al., 2021)."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from jaxkd import _check
from jaxkd.losses import _feature_math as fm
from jaxkd.losses._compile import compiled
from jaxkd.losses._math import only, without


def _below_zero(
    features: Float[Array, "batch *space channels"], temperature: ArrayLike
) -> Float[Array, "batch positions channels"]:
    """The softmax's logits, their greatest 0: no exponential of them overflows."""
    logits = fm.flat_space(features) / temperature
    return logits - jax.lax.stop_gradient(jnp.max(logits, axis=1, keepdims=True))


@compiled(temperature=_check.positive)
def cwd(
    student_features: Float[Array, "batch *space channels"],
    teacher_features: Float[Array, "batch *space channels"],
    *,
    temperature: ArrayLike = 1.0,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    """KL divergence from the teacher's spatial softmax to the student's, per channel.

    For a channel with features F, over positions n, p = softmax_n(F_t / T) and
    q = softmax_n(F_s / T)::

        loss = T**2 * mean over channels of sum_n p_n * (log p_n - log q_n)

    Each channel becomes a distribution over the map, so its scale stays but its offset
    does not matter. T**2 keeps the gradient's size about independent of `temperature`.

    Args:
      student_features: the student's map, after the adapter (or a segmentation
        network's logits).
      teacher_features: the teacher's map.
      temperature: T > 0; larger is softer.
      where: true for the examples to use; the others get loss 0 and no gradient.

    Returns:
      The loss of each example, in nats a channel times T squared.

    Raises:
      ValueError: if the shapes differ, or `temperature` is not positive.

    Example:
      The teacher says (3/4, 1/4), the student (1/2, 1/2).

      >>> import jax.numpy as jnp
      >>> from jaxkd import losses
      >>> teacher = jnp.log(jnp.array([[[3.0], [1.0]]]))
      >>> print(losses.cwd(jnp.zeros((1, 2, 1)), teacher).round(4))
      [0.1308]

    References:
      Shu, Liu, Gao, Yan, Shen. `Channel-wise Knowledge Distillation for Dense
      Prediction <https://arxiv.org/abs/2011.13256>`_, 2021.
    """
    fm.check(
        where, 3, student_features=student_features, teacher_features=teacher_features
    )
    _check.same_shape(
        student_features=student_features, teacher_features=teacher_features
    )
    student_features, teacher_features = without(
        where, student_features, teacher_features
    )
    u = _below_zero(teacher_features, temperature)
    v = _below_zero(student_features, temperature)
    p, q = jnp.exp(u), jnp.exp(v)
    p_total, q_total = jnp.sum(p, axis=1), jnp.sum(q, axis=1)
    # The normalisers do not depend on the position: left outside the sum, they save
    # the compiler most of the work of the backward pass.
    kl = jnp.sum(p * (u - v), axis=1) / p_total + jnp.log(q_total) - jnp.log(p_total)
    return only(where, jnp.square(temperature) * jnp.mean(kl, axis=-1))
