"""Knowledge distillation from softened logits (Hinton, Vinyals & Dean, 2015)."""

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from jaxkd import _check
from jaxkd.losses._compile import compiled
from jaxkd.losses._math import log_softmax, only, without


@compiled(temperature=_check.positive)
def kd(
    student_logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "*batch classes"],
    *,
    temperature: ArrayLike = 4.0,
    class_mask: Bool[Array, "..."] | None = None,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    _check.same_shape(student_logits=student_logits, teacher_logits=teacher_logits)
    student_logits, teacher_logits = without(where, student_logits, teacher_logits)
    log_p = log_softmax(teacher_logits, class_mask, temperature=temperature)
    log_q = log_softmax(student_logits, class_mask, temperature=temperature)
    loss = temperature**2 * jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)
    return only(where, loss)
