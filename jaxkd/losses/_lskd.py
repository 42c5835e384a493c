"""Logit standardisation (Sun et al., 2024)."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from jaxkd import _check
from jaxkd.losses import _divergence
from jaxkd.losses._compile import compiled
from jaxkd.losses._math import count, live, only, safe_sqrt, without


@compiled(temperature=_check.positive)
def lskd(
    student_logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "*batch classes"],
    *,
    temperature: ArrayLike = 2.0,
    class_mask: Bool[Array, "..."] | None = None,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    """KL from teacher to student, both standardised and softened, times T squared.

    With z' = (z - mean_k z) / (std_k z + 1e-7) for either network's logits z,
    p = softmax(teacher' / T) and q = softmax(student' / T)::

        loss = T**2 * sum_k p_k * (log p_k - log q_k)

    The standard deviation divides by K - 1, as the authors' code does. The student is
    free to choose the mean and the scale of its logits: any a * z + b with a > 0 has
    the same loss. Constant logits standardise to 0. The paper weighs this loss by 9.

    Args:
      student_logits: unnormalised log-probabilities.
      teacher_logits: the same of the teacher; gradients flow to it too.
      temperature: T > 0; larger is softer.
      class_mask: true for the classes that exist, broadcastable to the logits; the
        others get probability 0, as do logits of -inf.
      where: true for the examples to use; the others get loss 0 and no gradient.

    Returns:
      The loss of each example, in nats times T squared.

    Raises:
      ValueError: if the shapes differ, or an argument is out of its range.

    Example:
      The logits differ in scale and mean only.

      >>> import jax.numpy as jnp
      >>> from jaxkd import losses
      >>> student, teacher = jnp.array([[1.0, 2.0]]), jnp.array([[-9.0, 9.0]])
      >>> print(losses.lskd(student, teacher).round(4) + 0)
      [0.]

    References:
      Sun, Ren, Li, Wang, Cao. `Logit Standardization in Knowledge Distillation
      <https://arxiv.org/abs/2403.01427>`_, 2024. Algorithm 1.
    """
    _check.logits(
        class_mask, where, student_logits=student_logits, teacher_logits=teacher_logits
    )
    student_logits, teacher_logits = without(where, student_logits, teacher_logits)
    kl = _divergence.kl(
        standardise(teacher_logits, class_mask),
        standardise(student_logits, class_mask),
        temperature,
        class_mask,
    )
    return only(where, temperature**2 * kl)


def standardise(
    logits: Float[Array, "*batch classes"], class_mask: Bool[Array, "..."] | None
) -> Float[Array, "*batch classes"]:
    """(z - mean) / (std + 1e-7) over the classes that exist; the others are -inf."""
    alive = live(logits, class_mask)
    z = jnp.where(alive, logits, 0)
    # Constant logits are 0 after this, so that rounding is not blown up to 1. Nothing
    # else depends on it, and so neither does the gradient.
    top = jnp.max(z, axis=-1, keepdims=True, where=alive, initial=-jnp.inf)
    z = jnp.where(alive, z - jax.lax.stop_gradient(top), 0)
    classes = count(alive, z, axis=-1, keepdims=True)
    z = z - jnp.sum(z, axis=-1, keepdims=True) / classes
    square = jnp.sum(jnp.where(alive, z, 0) ** 2, axis=-1, keepdims=True)
    deviation = safe_sqrt(square / jnp.maximum(classes - 1, 1))
    return jnp.where(alive, z / (deviation + 1e-7), -jnp.inf)
