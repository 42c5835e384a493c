"""Multi-level logit distillation: instances (Jin et al., 2023)."""

from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from jaxkd import _check
from jaxkd.losses import _divergence
from jaxkd.losses._compile import compiled


@compiled(temperatures=_check.positives)
def mlkd_instance(
    student_logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "*batch classes"],
    *,
    temperatures: tuple[ArrayLike, ...] = (2.0, 3.0, 4.0, 5.0, 6.0),
    class_mask: Bool[Array, "..."] | None = None,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    """`kd` at several temperatures, summed.

    With p^T = softmax(teacher_logits / T) and q^T = softmax(student_logits / T)::

        loss = sum_T T**2 * sum_k p^T_k * (log p^T_k - log q^T_k)

    The prediction is augmented by looking at it more and less softened. T**2 keeps the
    temperatures' gradients of about one size.

    Args:
      student_logits: unnormalised log-probabilities.
      teacher_logits: the same of the teacher; gradients flow to it too.
      temperatures: each T > 0.
      class_mask: true for the classes that exist, broadcastable to the logits; the
        others get probability 0, as do logits of -inf.
      where: true for the examples to use; the others get loss 0 and no gradient.

    Returns:
      The loss of each example, in nats times T squared.

    Raises:
      ValueError: if the shapes differ, or an argument is out of its range.

    Example:
      One temperature is `kd`, and the same one twice is twice that.

      >>> import jax.numpy as jnp
      >>> from jaxkd import losses
      >>> student, teacher = jnp.zeros((1, 2)), jnp.log(jnp.array([[3.0, 1.0]]))
      >>> loss = losses.mlkd_instance(student, teacher, temperatures=(1.0, 1.0))
      >>> print(loss.round(4))
      [0.2616]

    References:
      Jin, Wang, Lin. `Multi-Level Logit Distillation
      <https://openaccess.thecvf.com/content/CVPR2023/html/Jin_Multi-Level_Logit_Distillation_CVPR_2023_paper.html>`_,
      2023.
    """
    _check.logits(
        class_mask, where, student_logits=student_logits, teacher_logits=teacher_logits
    )
    losses = [
        _divergence.kl(teacher_logits, student_logits, temperature, class_mask, where)
        * temperature**2
        for temperature in temperatures
    ]
    return sum(losses[1:], losses[0])
