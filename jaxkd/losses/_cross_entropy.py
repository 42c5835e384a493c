"""Cross-entropy with the true class."""

from jaxtyping import Array, Bool, Float, Int

from jaxkd import _check
from jaxkd.losses import _math
from jaxkd.losses._compile import compiled


@compiled()
def cross_entropy(
    logits: Float[Array, "*batch classes"],
    labels: Int[Array, "*batch"],
    *,
    class_mask: Bool[Array, "..."] | None = None,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    """Minus the log-probability of the true class.

    With q = softmax(logits) and y the label::

        loss = -log q_y

    It is computed from the logits, so it is finite also where q_y underflows. Where the
    label's own class does not exist (masked, or a logit of -inf) the loss would be
    infinite: it is about 1e29 in float32, and its gradient finite.

    Args:
      logits: unnormalised log-probabilities.
      labels: the true class of each example; -1 for an example without one, which
        gets loss 0 and no gradient.
      class_mask: true for the classes that exist, broadcastable to the logits; the
        others get probability 0, as do logits of -inf.
      where: true for the examples to use; the others get loss 0 and no gradient.

    Returns:
      The loss of each example, in nats.

    Raises:
      ValueError: if the shapes differ, or a label is not a class.

    Example:
      The first class has probability 3/4: log(4/3). The second example has no label.

      >>> import jax.numpy as jnp
      >>> from jaxkd import losses
      >>> logits = jnp.log(jnp.array([[3.0, 1.0], [1.0, 1.0]]))
      >>> print(losses.cross_entropy(logits, jnp.array([0, -1])).round(4))
      [0.2877 0.    ]

    References:
      Shannon. `A Mathematical Theory of Communication
      <https://doi.org/10.1002/j.1538-7305.1948.tb01338.x>`_, 1948.
    """
    _check.logits(class_mask, where, logits=logits)
    _check.labels(labels, logits.shape[:-1])
    where = _math.labelled(labels, logits.shape[-1], where)
    (logits,) = _math.without(where, logits)
    target = _math.one_hot(labels, logits.shape[-1])
    return _math.only(where, _math.cross_entropy(target, logits, class_mask))
