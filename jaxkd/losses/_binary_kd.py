"""Distillation of heads whose classes do not exclude each other."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from jaxkd import _check
from jaxkd.losses._compile import compiled
from jaxkd.losses._math import count, live, only, without


@compiled(temperature=_check.positive)
def binary_kd(
    student_logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "*batch classes"],
    *,
    temperature: ArrayLike = 1.0,
    class_mask: Bool[Array, "..."] | None = None,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    """Bernoulli KL from the softened teacher to the softened student, class by class.

    With p = sigmoid(teacher_logits / T), q = sigmoid(student_logits / T) and K classes
    that exist::

        KL_k = p_k * log(p_k / q_k) + (1 - p_k) * log((1 - p_k) / (1 - q_k))
        loss = T**2 * 1/K * sum_k KL_k

    For multi-label heads, where every class is a decision of its own. T**2 keeps the
    gradient's size about independent of `temperature`; the mean over classes keeps it
    independent of their number.

    Args:
      student_logits: log-odds of each class.
      teacher_logits: the same of the teacher; gradients flow to it too.
      temperature: T > 0; larger is softer.
      class_mask: true for the classes that exist, broadcastable to the logits. The
        others are left out, as are those with a logit of -inf in either network.
      where: true for the examples to use; the others get loss 0 and no gradient.

    Returns:
      The loss of each example, in nats per class, times T squared.

    Raises:
      ValueError: if the shapes differ, or an argument is out of its range.

    Example:
      One class; the teacher says 3/4, the student 1/2.

      >>> import jax.numpy as jnp
      >>> from jaxkd import losses
      >>> student, teacher = jnp.zeros((1, 1)), jnp.log(jnp.array([[3.0]]))
      >>> print(losses.binary_kd(student, teacher).round(4))
      [0.1308]

    References:
      Yang, Xie, Zong, Feng, Niu, Sugiyama, Huang. `Multi-Label Knowledge Distillation
      <https://arxiv.org/abs/2308.06453>`_, 2023. Its distillation of logits, with a
      temperature.
    """
    _check.logits(
        class_mask, where, student_logits=student_logits, teacher_logits=teacher_logits
    )
    student_logits, teacher_logits = without(where, student_logits, teacher_logits)
    alive = live(student_logits, class_mask) & live(teacher_logits, class_mask)
    t = jnp.where(alive, teacher_logits, 0) / temperature
    s = jnp.where(alive, student_logits, 0) / temperature
    # Yes and no may change places. With the teacher's answer as yes, log(1 - p) is
    # log(p) - t without a loss of digits, which saves half of the logarithms.
    answer = jnp.where(t < 0, -1, 1)
    t, s = answer * t, answer * s
    log_p, log_q = jax.nn.log_sigmoid(t), jax.nn.log_sigmoid(s)
    kl = log_p - log_q + jnp.exp(log_p - t) * (s - t)
    classes = count(alive, kl, axis=-1)
    total = jnp.sum(jnp.where(alive, kl, 0), axis=-1)
    return only(where, temperature**2 * total / classes)
