"""Knowledge distillation from softened logits (Hinton, Vinyals & Dean, 2015)."""

from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from jaxkd import _check
from jaxkd.losses import _divergence
from jaxkd.losses._compile import compiled


@compiled(temperature=_check.positive)
def kd(
    student_logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "*batch classes"],
    *,
    temperature: ArrayLike = 4.0,
    class_mask: Bool[Array, "..."] | None = None,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    """KL divergence from the softened teacher to the softened student, times T squared.

    With p = softmax(teacher_logits / T) and q = softmax(student_logits / T)::

        loss = T**2 * sum_k p_k * (log p_k - log q_k)

    T**2 keeps the gradient's size about independent of `temperature`, so a weight
    tuned at one temperature carries over. The sum over classes is not divided by their
    number.

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
      The teacher says (3/4, 1/4), the student (1/2, 1/2).

      >>> import jax.numpy as jnp
      >>> from jaxkd import losses
      >>> student, teacher = jnp.zeros((1, 2)), jnp.log(jnp.array([[3.0, 1.0]]))
      >>> print(losses.kd(student, teacher, temperature=1.0).round(4))
      [0.1308]

    References:
      Hinton, Vinyals, Dean. `Distilling the Knowledge in a Neural Network
      <https://arxiv.org/abs/1503.02531>`_, 2015. Equations 1 to 4.
    """
    _check.logits(
        class_mask, where, student_logits=student_logits, teacher_logits=teacher_logits
    )
    kl = _divergence.kl(teacher_logits, student_logits, temperature, class_mask, where)
    return kl * temperature**2
