"""Label smoothing (Szegedy et al., 2016)."""

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from jaxkd import _check
from jaxkd.losses._compile import compiled
from jaxkd.losses._math import (
    count,
    labelled,
    live,
    log_softmax,
    one_hot,
    only,
    pick,
    without,
)


@compiled(epsilon=_check.closed_unit)
def label_smoothing(
    student_logits: Float[Array, "*batch classes"],
    labels: Int[Array, "*batch"],
    *,
    epsilon: ArrayLike = 0.1,
    class_mask: Bool[Array, "..."] | None = None,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    """Cross-entropy with the label, mixed with the uniform distribution.

    With q = softmax(student_logits), y the label, and K classes that exist::

        loss = -(1 - epsilon) * log q_y - epsilon / K * sum_k log q_k

    It is the least a distilled student should be compared with: a teacher that knows
    nothing but the label.

    Args:
      student_logits: unnormalised log-probabilities.
      labels: the true class of each example; -1 for an example without one, which
        gets loss 0 and no gradient.
      epsilon: share of the uniform distribution, in [0, 1]; 0 is cross-entropy.
      class_mask: true for the classes that exist, broadcastable to the logits; the
        others get probability 0, as do logits of -inf.
      where: true for the examples to use; the others get loss 0 and no gradient.

    Returns:
      The loss of each example, in nats.

    Raises:
      ValueError: if the shapes differ, a label is not a class, or an argument is out
        of its range.

    Example:
      A student that says (1/2, 1/2) pays log 2 whatever the target.

      >>> import jax.numpy as jnp
      >>> from jaxkd import losses
      >>> print(losses.label_smoothing(jnp.zeros((1, 2)), jnp.array([0])).round(4))
      [0.6931]

    References:
      Szegedy, Vanhoucke, Ioffe, Shlens, Wojna. `Rethinking the Inception Architecture
      for Computer Vision <https://arxiv.org/abs/1512.00567>`_, 2016. Section 7.
    """
    _check.logits(class_mask, where, student_logits=student_logits)
    _check.labels(labels, student_logits.shape[:-1])
    where = labelled(labels, student_logits.shape[-1], where)
    (student_logits,) = without(where, student_logits)
    log_q = log_softmax(student_logits, class_mask)
    alive = live(student_logits, class_mask)
    classes = count(alive, log_q, axis=-1)
    of_label = -pick(one_hot(labels, log_q.shape[-1]), log_q)
    of_all = -jnp.sum(jnp.where(alive, log_q, 0), axis=-1) / classes
    loss = (1 - epsilon) * of_label + epsilon * of_all
    return only(where, jnp.where(jnp.any(alive, axis=-1), loss, 0))
