"""Distillation across architectures, one for all (Hao et al., 2023)."""

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from jaxkd import _check
from jaxkd.losses._compile import compiled
from jaxkd.losses._math import labelled, normalize, one_hot, only, without


@compiled(gamma=_check.positive, temperature=_check.positive)
def ofa(
    student_logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "*batch classes"],
    labels: Int[Array, "*batch"],
    *,
    gamma: ArrayLike = 1.5,
    temperature: ArrayLike = 1.0,
    class_mask: Bool[Array, "..."] | None = None,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    """Soft cross-entropy whose target is raised at the label.

    With p, q = softmax of teacher_logits / T, student_logits / T and y the label::

        loss = -sum_k w_k * log q_k
        w_y = (1 + p_y)**gamma - 1,   w_k = p_k**gamma for the other classes

    At gamma = 1 it is the cross-entropy with the teacher's probabilities. A larger
    gamma raises the label and lowers what the teacher says of the other classes, which
    between unlike architectures is less alike; the paper has values from 1 to 1.6.
    There is no factor T**2; the authors' program has T = 1.

    Args:
      student_logits: unnormalised log-probabilities, also those of a head on an inner
        stage of the student: the paper sums the loss over several.
      teacher_logits: the same of the teacher; gradients flow to it too.
      labels: the true class of each example; -1 for an example without one, which
        gets loss 0 and no gradient.
      gamma: the exponent, > 0.
      temperature: T > 0; larger is softer.
      class_mask: true for the classes that exist, broadcastable to the logits; the
        others get probability 0, as do logits of -inf.
      where: true for the examples to use; the others get loss 0 and no gradient.

    Returns:
      The loss of each example, in nats times the sum of the weights.

    Raises:
      ValueError: if the shapes differ, a label is not a class, or an argument is out
        of its range.

    Example:
      The teacher says (3/4, 1/4), the student (1/2, 1/2): the weights are
      (7/4)**2 - 1 and 1/16, together 2.125, and each pays log 2.

      >>> import jax.numpy as jnp
      >>> from jaxkd import losses
      >>> student, teacher = jnp.zeros((1, 2)), jnp.log(jnp.array([[3.0, 1.0]]))
      >>> loss = losses.ofa(student, teacher, jnp.array([0]), gamma=2.0)
      >>> print(f"{loss[0]:.4f}")
      1.4729

    References:
      Hao, Guo, Han, Tang, Hu, Wang, Xu. `One-for-All: Bridge the Gap Between
      Heterogeneous Architectures in Knowledge Distillation
      <https://arxiv.org/abs/2310.19444>`_, NeurIPS 2023. Equation 6.
    """
    _check.logits(
        class_mask, where, student_logits=student_logits, teacher_logits=teacher_logits
    )
    _check.labels(labels, student_logits.shape[:-1])
    where = labelled(labels, student_logits.shape[-1], where)
    student_logits, teacher_logits = without(where, student_logits, teacher_logits)
    target = one_hot(labels, student_logits.shape[-1])
    log_p, taught = normalize(teacher_logits, class_mask, temperature=temperature)
    log_q, exists = normalize(student_logits, class_mask, temperature=temperature)
    gamma = jnp.asarray(gamma, log_p.dtype)
    # Without a loss of digits where p_y is small.
    raised = jnp.expm1(gamma * jnp.log1p(jnp.exp(log_p)))
    weight = jnp.where(target, raised, jnp.exp(gamma * log_p))
    loss = -jnp.sum(weight * log_q, axis=-1)
    return only(where & taught & exists, loss)
