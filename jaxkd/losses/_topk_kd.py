"""Distillation from a teacher of whom only the largest logits were kept."""

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from jaxkd import _check
from jaxkd.losses._compile import compiled
from jaxkd.losses._math import live, log_softmax, log_total, lowest, only, without


@compiled(temperature=_check.positive)
def topk_kd(
    student_logits: Float[Array, "*batch classes"],
    teacher_top_logits: Float[Array, "*batch k"],
    teacher_top_indices: Int[Array, "*batch k"],
    teacher_logsumexp: Float[Array, "*batch"],
    *,
    temperature: ArrayLike = 1.0,
    class_mask: Bool[Array, "..."] | None = None,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    """`kd` with the classes that were not kept gathered into one.

    With t the teacher's k kept logits, c their classes, L = log sum_j exp(z_j / T) over
    all logits z of the teacher, and q = softmax(student_logits / T)::

        p_i = exp(t_i / T - L),  p_rest = 1 - sum_i p_i,  q_rest = 1 - sum_i q_{c_i}
        loss = T**2 * (sum_i p_i log(p_i / q_{c_i}) + p_rest log(p_rest / q_rest))

    It is a lower bound of `kd` (what happens among the gathered classes is not seen),
    and equal to it at k = K. T**2 keeps the gradient's size about independent of
    `temperature`. What is stored belongs to one temperature: the sum of exponentials at
    another cannot be had from the kept logits, so store one for each T to be used.

    Args:
      student_logits: unnormalised log-probabilities, of all classes.
      teacher_top_logits: the teacher's kept logits, not divided by T, in any order.
      teacher_top_indices: their classes, none twice; one of -1 is no class, and its
        probability falls to the rest.
      teacher_logsumexp: log sum_j exp(z_j / T) over all the teacher's logits, or all
        that `class_mask` leaves, at the same T as `temperature`.
      temperature: T > 0; larger is softer.
      class_mask: true for the classes that exist, broadcastable to the logits; the
        others get probability 0, as do logits of -inf.
      where: true for the examples to use; the others get loss 0 and no gradient.

    Returns:
      The loss of each example, in nats times T squared.

    Raises:
      ValueError: if the shapes differ, or an argument is out of its range.

    Example:
      The teacher says (3/4, 1/8, 1/8) and keeps the first, the student is uniform:
      3/4 log(9/4) + 1/4 log(3/8).

      >>> import jax.numpy as jnp
      >>> from jaxkd import losses
      >>> top, index = jnp.log(jnp.array([[6.0]])), jnp.array([[0]])
      >>> total = jnp.log(jnp.array([8.0]))
      >>> print(losses.topk_kd(jnp.zeros((1, 3)), top, index, total).round(4))
      [0.363]

    References:
      Hinton, Vinyals, Dean. `Distilling the Knowledge in a Neural Network
      <https://arxiv.org/abs/1503.02531>`_, 2015. Section 2.
    """
    check_kept(student_logits, teacher_top_logits, teacher_top_indices)
    _check.logits(class_mask, where, student_logits=student_logits)
    _check.real(teacher_logsumexp=teacher_logsumexp)
    _check.batch(student_logits.shape[:-1], teacher_logsumexp=teacher_logsumexp)
    student_logits, top, total = without(
        where, student_logits, teacher_top_logits, teacher_logsumexp
    )
    classes, alive = student_logits.shape[-1], live(student_logits, class_mask)
    log_q = log_softmax(student_logits, class_mask, temperature=temperature)
    is_class = (teacher_top_indices >= 0) & (teacher_top_indices < classes)
    index = jnp.where(is_class, teacher_top_indices, 0)
    log_q_kept = jnp.take_along_axis(log_q, index, axis=-1)
    kept = is_class & (top != -jnp.inf) & jnp.take_along_axis(alive, index, axis=-1)
    taught = total != -jnp.inf  # the teacher has a class
    total = jnp.where(taught, total, 0)
    log_p = jnp.where(kept, top, 0) / temperature - total[..., None]
    p = jnp.where(kept, jnp.exp(log_p), 0)
    of_kept = jnp.sum(p * jnp.where(kept, log_p - log_q_kept, 0), axis=-1)
    index = jnp.where(is_class, teacher_top_indices, classes)  # past the end: dropped
    rest = jnp.put_along_axis(alive, index, False, axis=-1, inplace=False, mode="drop")
    log_q_rest = log_total(jnp.where(rest, log_q, lowest(log_q.dtype)))
    # Rounding leaves a p_rest of about 1e-7 where no class is left that could have it.
    p_rest = jnp.where(jnp.any(rest, axis=-1), 1 - jnp.sum(p, axis=-1), 0)
    some_rest = p_rest > 0
    log_p_rest = jnp.log(jnp.where(some_rest, p_rest, 1))
    of_rest = jnp.where(some_rest, p_rest * (log_p_rest - log_q_rest), 0)
    loss = jnp.where(taught & jnp.any(alive, axis=-1), of_kept + of_rest, 0)
    return only(where, temperature**2 * loss)


def check_kept(student_logits: Array, top: Array, indices: Array) -> None:
    """The kept logits and their classes have one shape, the student's up to k."""
    _check.real(student_logits=student_logits, teacher_top_logits=top)
    _check.rank(1, student_logits=student_logits, teacher_top_logits=top)
    _check.labels(indices, top.shape, "teacher_top_indices")
    _check.batch(student_logits.shape[:-1], teacher_top_logits=top[..., 0])
    if top.shape[-1] > student_logits.shape[-1]:
        raise ValueError(
            f"teacher_top_logits {top.shape} has more classes than "
            f"student_logits {student_logits.shape}"
        )
