"""Channel-wise distillation (Shu et al., 2021)."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from jaxkd import _check
from jaxkd.losses import _feature_math as fm
from jaxkd.losses._compile import compiled
from jaxkd.losses._math import only, without


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
      Prediction <https://arxiv.org/abs/2011.13256>`_, 2021. Equations 3 and 4.
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
    log_p = jax.nn.log_softmax(fm.flat_space(teacher_features) / temperature, axis=1)
    log_q = jax.nn.log_softmax(fm.flat_space(student_features) / temperature, axis=1)
    kl = jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=1)
    return only(where, jnp.square(temperature) * jnp.mean(kl, axis=-1))
