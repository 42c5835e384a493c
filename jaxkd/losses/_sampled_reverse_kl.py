"""Reverse KL estimated from the student's own samples (Agarwal et al., 2024)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxkd import _check
from jaxkd.losses._compile import compiled
from jaxkd.losses._math import labelled, normalize, one_hot, only, pick, without


@compiled(static=("estimator",), estimator=_check.one_of("k1", "k3"))
def sampled_reverse_kl(
    student_logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "*batch classes"],
    samples: Int[Array, "*batch"],
    *,
    estimator: str = "k3",
    class_mask: Bool[Array, "..."] | None = None,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    """KL divergence from student to teacher, estimated at one sample of the student.

    With p, q the softmax of teacher and student and y ~ q the sample, the value is::

        k1 = log q_y - log p_y
        k3 = p_y / q_y - 1 - log(p_y / q_y)

    both unbiased for KL(q, p); k3 is never negative and varies less. The gradient is,
    with either value, the unbiased one::

        (log q_y - log p_y) * d log q_y   for the student
        -d log p_y                        for the teacher

    The values' own derivatives are not gradients of KL(q, p): that of k1 is 0 in the
    mean, that of k3 the gradient of KL(p, q). The gradient is part of the definition:
    the factor before d log q_y is a constant.

    Args:
      student_logits: unnormalised log-probabilities, at temperature 1.
      teacher_logits: the same of the teacher.
      samples: classes drawn from the student's softmax; -1 for an example without one,
        which gets loss 0 and no gradient.
      estimator: "k1" or "k3".
      class_mask: true for the classes that exist, broadcastable to the logits; the
        others get probability 0, as do logits of -inf.
      where: true for the examples to use; the others get loss 0 and no gradient.

    Returns:
      The estimate of each example, in nats.

    Raises:
      ValueError: if the shapes differ, a sample is not a class, or an argument is out
        of its range.

    Example:
      At a class of probability 1/2 (student) and 3/4 (teacher): 3/2 - 1 - log(3/2).

      >>> import jax.numpy as jnp
      >>> from jaxkd import losses
      >>> student, teacher = jnp.zeros((1, 2)), jnp.log(jnp.array([[3.0, 1.0]]))
      >>> print(losses.sampled_reverse_kl(student, teacher, jnp.array([0])).round(4))
      [0.0945]

    References:
      Agarwal, Vieillard, Zhou, Stanczyk, Ramos, Geist, Bachem. `On-Policy Distillation
      of Language Models: Learning from Self-Generated Mistakes
      <https://arxiv.org/abs/2306.13649>`_, 2024.
      Schulman. `Approximating KL Divergence <http://joschu.net/blog/kl-approx.html>`_,
      2020.
    """
    _check.logits(
        class_mask, where, student_logits=student_logits, teacher_logits=teacher_logits
    )
    _check.labels(samples, student_logits.shape[:-1], "samples")
    where = labelled(samples, student_logits.shape[-1], where)
    student_logits, teacher_logits = without(where, student_logits, teacher_logits)
    sampled = one_hot(samples, student_logits.shape[-1])
    log_q, exists = normalize(student_logits, class_mask)
    log_p, taught = normalize(teacher_logits, class_mask)
    log_q, log_p = pick(sampled, log_q), pick(sampled, log_p)
    fixed_q, fixed_p = jax.lax.stop_gradient((log_q, log_p))
    ratio = fixed_q - fixed_p
    # exp overflows for a class that the student cannot have drawn.
    most = 0.9 * jnp.log(jnp.finfo(ratio.dtype).max)
    value = ratio if estimator == "k1" else jnp.expm1(jnp.minimum(-ratio, most)) + ratio
    loss = value + ratio * (log_q - fixed_q) - (log_p - fixed_p)
    return only(where & exists & taught, loss)
