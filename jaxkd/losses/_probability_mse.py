"""Regression of the teacher's probabilities (Kim et al., 2021)."""

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from jaxkd import _check
from jaxkd.losses._compile import compiled
from jaxkd.losses._math import only, softmax, without


@compiled(temperature=_check.positive)
def probability_mse(
    student_logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "*batch classes"],
    *,
    temperature: ArrayLike = 1.0,
    class_mask: Bool[Array, "..."] | None = None,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    """Squared distance of the two probability vectors.

    With p = softmax(teacher_logits / T) and q = softmax(student_logits / T)::

        loss = sum_k (q_k - p_k)**2

    It is bounded by 2, so that an example the student gets entirely wrong weighs
    little, and no factor of T is applied.

    Args:
      student_logits: unnormalised log-probabilities.
      teacher_logits: the same of the teacher; gradients flow to it too.
      temperature: T > 0; larger is softer.
      class_mask: true for the classes that exist, broadcastable to the logits; the
        others get probability 0, as do logits of -inf.
      where: true for the examples to use; the others get loss 0 and no gradient.

    Returns:
      The loss of each example, between 0 and 2, without a unit.

    Raises:
      ValueError: if the shapes differ, or an argument is out of its range.

    Example:
      The teacher says (3/4, 1/4), the student (1/2, 1/2): 2 * (1/4)**2.

      >>> import jax.numpy as jnp
      >>> from jaxkd import losses
      >>> student, teacher = jnp.zeros((1, 2)), jnp.log(jnp.array([[3.0, 1.0]]))
      >>> print(losses.probability_mse(student, teacher).round(4))
      [0.125]

    References:
      Kim, Oh, Kim, Cho, Yun. `Comparing Kullback-Leibler Divergence and Mean Squared
      Error Loss in Knowledge Distillation <https://arxiv.org/abs/2105.08919>`_, 2021.
      The paper regresses logits (`logit_mse`); this is the same on probabilities.
    """
    _check.logits(
        class_mask, where, student_logits=student_logits, teacher_logits=teacher_logits
    )
    student_logits, teacher_logits = without(where, student_logits, teacher_logits)
    p = softmax(teacher_logits, class_mask, temperature=temperature)
    q = softmax(student_logits, class_mask, temperature=temperature)
    return only(where, jnp.sum((q - p) ** 2, axis=-1))
