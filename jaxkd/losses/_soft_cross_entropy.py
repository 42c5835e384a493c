"""Cross-entropy with the teacher's softened probabilities as targets."""

from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from jaxkd import _check
from jaxkd.losses import _divergence
from jaxkd.losses._compile import compiled


@compiled(temperature=_check.positive)
def soft_cross_entropy(
    student_logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "*batch classes"],
    *,
    temperature: ArrayLike = 1.0,
    class_mask: Bool[Array, "..."] | None = None,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    """Cross-entropy of softened student under softened teacher, times T squared.

    With p = softmax(teacher_logits / T) and q = softmax(student_logits / T)::

        loss = -T**2 * sum_k p_k * log q_k

    It is `kd` plus T**2 times the teacher's entropy: the same gradient for the student,
    another value, and at best that entropy rather than 0. T**2 keeps the gradient's
    size about independent of `temperature`.

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
      A student that says (1/2, 1/2) pays log 2 whatever the teacher says.

      >>> import jax.numpy as jnp
      >>> from jaxkd import losses
      >>> student, teacher = jnp.zeros((1, 2)), jnp.array([[5.0, -1.0]])
      >>> print(losses.soft_cross_entropy(student, teacher).round(4))
      [0.6931]

    References:
      Hinton, Vinyals, Dean. `Distilling the Knowledge in a Neural Network
      <https://arxiv.org/abs/1503.02531>`_, 2015. Section 2.
    """
    _check.logits(
        class_mask, where, student_logits=student_logits, teacher_logits=teacher_logits
    )
    entropy = _divergence.cross_entropy(
        teacher_logits, student_logits, temperature, class_mask, where
    )
    return entropy * temperature**2
