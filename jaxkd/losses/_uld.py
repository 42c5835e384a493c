"""Universal logit distillation across vocabularies (Boizard et al., 2024)."""

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from jaxkd import _check
from jaxkd.losses._compile import compiled
from jaxkd.losses._math import only, softmax, without


@compiled(temperature=_check.positive)
def uld(
    student_logits: Float[Array, "*batch student_classes"],
    teacher_logits: Float[Array, "*batch teacher_classes"],
    *,
    temperature: ArrayLike = 1.0,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    """Distance of the sorted probabilities of networks with different classes.

    With p = softmax(teacher_logits / T) and q = softmax(student_logits / T), both
    sorted from the largest down, the shorter one filled up with zeros::

        loss = sum_i abs(p_(i) - q_(i))

    Which class is which does not count, only how probability is spread: it is the
    Wasserstein distance where every class costs the same to every other. It compares
    language models of different vocabularies, position by position, where their tokens
    align. The authors add 1.5 times it to the cross-entropy.

    Args:
      student_logits: unnormalised log-probabilities; -inf for classes that do not
        exist.
      teacher_logits: the same of the teacher, of its own classes; gradients flow to it
        too.
      temperature: T > 0; larger is softer.
      where: true for the examples to use; the others get loss 0 and no gradient.

    Returns:
      The loss of each example, from 0 to 2.

    Raises:
      ValueError: if the batches differ, or an argument is out of its range.

    Example:
      (3/4, 1/4) against (1/3, 1/3, 1/3): 5/12 + 1/12 + 1/3.

      >>> import jax.numpy as jnp
      >>> from jaxkd import losses
      >>> student, teacher = jnp.zeros((1, 3)), jnp.log(jnp.array([[1.0, 3.0]]))
      >>> print(losses.uld(student, teacher).round(4))
      [0.8333]

    References:
      Boizard, El Haddad, Hudelot, Colombo. `Towards Cross-Tokenizer Distillation: the
      Universal Logit Distillation Loss for LLMs <https://arxiv.org/abs/2402.12030>`_,
      2024. Equation 5.
    """
    _check.logits(None, where, student_logits=student_logits)
    _check.logits(None, where, teacher_logits=teacher_logits)
    _check.same_shape(
        student_logits=student_logits[..., 0], teacher_logits=teacher_logits[..., 0]
    )
    student_logits, teacher_logits = without(where, student_logits, teacher_logits)
    p = jnp.sort(softmax(teacher_logits, temperature=temperature), descending=True)
    q = jnp.sort(softmax(student_logits, temperature=temperature), descending=True)
    shared = min(p.shape[-1], q.shape[-1])
    difference = jnp.abs(p[..., :shared] - q[..., :shared])
    tail = jnp.sum(p[..., shared:], axis=-1) + jnp.sum(q[..., shared:], axis=-1)
    return only(where, jnp.sum(difference, axis=-1) + tail)
