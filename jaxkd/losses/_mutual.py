"""Deep mutual learning (Zhang et al., 2018)."""

from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from jaxkd import _check
from jaxkd.losses import _divergence
from jaxkd.losses._compile import compiled


@compiled(temperature=_check.positive)
def mutual(
    student_logits: Float[Array, "*batch classes"],
    peer_logits: Float[Array, "peers *batch classes"],
    *,
    temperature: ArrayLike = 1.0,
    class_mask: Bool[Array, "..."] | None = None,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    """Mean over the peers of the KL divergence from peer to student.

    With p_i = softmax(peer_logits_i / T) for each of n peers, and
    q = softmax(student_logits / T)::

        loss = T**2 / n * sum_i sum_k p_ik * (log p_ik - log q_k)

    Each network of a cohort takes its turn as the student; the caller stops the
    gradient of its peers, which this loss does not. The paper has T = 1.

    Args:
      student_logits: unnormalised log-probabilities.
      peer_logits: the same of the peers, which share the student's classes.
      temperature: T > 0; larger is softer.
      class_mask: true for the classes that exist, broadcastable to the logits; the
        others get probability 0, as do logits of -inf.
      where: true for the examples to use; the others get loss 0 and no gradient.

    Returns:
      The loss of each example, in nats times T squared.

    Raises:
      ValueError: if the shapes differ, or an argument is out of its range.

    Example:
      One peer says (3/4, 1/4), the other agrees with the student: half of 0.1308.

      >>> import jax.numpy as jnp
      >>> from jaxkd import losses
      >>> student = jnp.zeros((1, 2))
      >>> peers = jnp.log(jnp.array([[[3.0, 1.0]], [[1.0, 1.0]]]))
      >>> print(losses.mutual(student, peers).round(4))
      [0.0654]

    References:
      Zhang, Xiang, Hospedales, Lu. `Deep Mutual Learning
      <https://arxiv.org/abs/1706.00384>`_, 2018.
    """
    _check.logits(class_mask, where, student_logits=student_logits)
    _check.real(peer_logits=peer_logits)
    _check.not_empty(peer_logits=peer_logits)
    _check.rank(student_logits.ndim + 1, None, peer_logits=peer_logits)
    _check.same_shape(student_logits=student_logits, peer_logits=peer_logits[0])
    kls = [
        _divergence.kl(peer, student_logits, temperature, class_mask, where)
        for peer in peer_logits
    ]
    return sum(kls[1:], kls[0]) * temperature**2 / len(kls)
