"""Numerics that several losses share: probabilities and masks that are never NaN."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Shaped


def without(where: Array | None, *arrays: Array) -> tuple[Array, ...]:
    """Replace excluded examples by zeros, so that whatever they hold is never read.

    Args:
      where: boolean `[*batch]`, or None for all examples.
      *arrays: `[*batch, ...]`.
    """
    if where is None:
        return arrays
    return tuple(
        jnp.where(jnp.expand_dims(where, tuple(range(where.ndim, a.ndim))), a, 0)
        for a in arrays
    )


def labelled(
    labels: Int[Array, "*batch"], classes: int, where: Bool[Array, "*batch"] | None
) -> Bool[Array, "*batch"]:
    """Return which examples a loss of labels uses: those whose label is a class.

    A label of -1 marks an example without one. Any other label outside [0, classes) is
    refused while labels are concrete (`_check.classes`); traced, it counts as -1. Every
    loss of labels excludes such examples as `where` does: loss 0 and no gradient.
    """
    wide = _at_least_int32(labels)
    known = (wide >= 0) & (wide < classes)
    return known if where is None else known & where


def _at_least_int32(integers: Int[Array, "*shape"]) -> Int[Array, "*shape"]:
    """uint8 labels may be compared with more than 256 classes."""
    integers = jnp.asarray(integers)
    return integers if integers.dtype.itemsize >= 4 else integers.astype(jnp.int32)


def only(where: Array | None, loss: ArrayLike) -> Array:
    """Set the loss `[*batch]` of excluded examples to 0."""
    loss = jnp.asarray(loss)
    return loss if where is None else jnp.where(where, loss, 0)


def live(
    logits: Float[Array, "*batch classes"], class_mask: Bool[Array, "..."] | None
) -> Bool[Array, "*batch classes"]:
    """Return the classes that exist: those neither masked nor with a logit of -inf.

    A class whose logit is NaN does exist: a broken network has to show.
    """
    possible = logits != -jnp.inf
    if class_mask is None:
        return possible
    return possible & jnp.broadcast_to(class_mask, logits.shape)


def narrowed(
    class_mask: Bool[Array, "..."] | None, chosen: Bool[Array, "*batch classes"]
) -> Bool[Array, "*batch classes"]:
    """Return the classes that are both chosen and in the mask."""
    if class_mask is None:
        return chosen
    return chosen & jnp.broadcast_to(class_mask, chosen.shape)


def some(
    logits: Float[Array, "*batch classes"], class_mask: Bool[Array, "..."] | None
) -> Bool[Array, "*batch"]:
    """Return whether an example has any class left."""
    return jnp.any(live(logits, class_mask), axis=-1)


def count(
    mask: Bool[Array, "..."],
    like: Float[Array, "..."],
    axis: int | None = None,
    keepdims: bool = False,
) -> Float[Array, "..."]:
    """How many are true, as a number of `like`'s type to divide by: at least 1."""
    return jnp.maximum(jnp.sum(mask, axis, like.dtype, keepdims=keepdims), 1)


def lowest(dtype: jnp.dtype) -> float:
    """Return the logarithm of probability 0, about -1e29 for float32, in place of -inf.

    p * log p is 0 for p = 0, not NaN, and where a network excludes what the other one
    expects, the loss is large but finite, also times the square of a temperature.
    """
    return -(float(jnp.finfo(dtype).max) ** 0.75)


def scaled(
    logits: Float[Array, "*batch classes"],
    class_mask: Bool[Array, "..."] | None = None,
    temperature: ArrayLike = 1.0,
) -> tuple[Float[Array, "*batch classes"], Bool[Array, "*batch classes"]]:
    """Logits over the temperature, 0 where a class does not exist, and where it does.

    What a class that does not exist holds must not meet the temperature: the
    derivative with respect to that would be 0 * NaN.
    """
    alive = live(logits, class_mask)
    return jnp.where(alive, logits, 0) / temperature, alive


def log_softmax(
    logits: Float[Array, "*batch classes"],
    class_mask: Bool[Array, "..."] | None = None,
    *,
    temperature: ArrayLike = 1.0,
) -> Float[Array, "*batch classes"]:
    """Log-probabilities of softmax(logits / T), finite also for excluded classes.

    A class that is masked, or whose logit is -inf, has probability exactly 0, a
    log-probability of about `lowest`, and its logit no gradient. A row without classes
    is uniform, so that two of them are equal.
    """
    return normalize(logits, class_mask, temperature=temperature)[0]


def normalize(
    logits: Float[Array, "*batch classes"],
    class_mask: Bool[Array, "..."] | None = None,
    *,
    temperature: ArrayLike = 1.0,
) -> tuple[Float[Array, "*batch classes"], Bool[Array, "*batch"]]:
    """`log_softmax`, and whether each row has any class left."""
    z, alive = scaled(logits, class_mask, temperature)
    z = jnp.where(alive, z, lowest(z.dtype))
    total = jax.nn.logsumexp(z, axis=-1, keepdims=True)
    # Half again as fast on CPU as jax.nn.log_softmax, which keeps another array. The
    # negation, because a logit of NaN is a class.
    return z - total, ~(total[..., 0] <= lowest(z.dtype) / 2)


def softmax(
    logits: Float[Array, "*batch classes"],
    class_mask: Bool[Array, "..."] | None = None,
    *,
    temperature: ArrayLike = 1.0,
) -> Float[Array, "*batch classes"]:
    """Probabilities, 0 for classes that do not exist, even where none does."""
    log_p = log_softmax(logits, class_mask, temperature=temperature)
    return jnp.where(live(logits, class_mask), jnp.exp(log_p), 0)


def raise_probabilities(
    logits: Float[Array, "*batch classes"], gamma: ArrayLike
) -> Float[Array, "*batch classes"]:
    """Gamma * logits; a logit of -inf stays one, and leaves `gamma` its derivative."""
    alive = logits != -jnp.inf
    gamma = jnp.asarray(gamma, logits.dtype)
    return jnp.where(alive, gamma * jnp.where(alive, logits, 0), -jnp.inf)


def log_total(log_p: Float[Array, "*batch classes"]) -> Float[Array, "*batch"]:
    """Return the logarithm of the sum of probabilities, no lower than `lowest`."""
    return jnp.maximum(jax.nn.logsumexp(log_p, axis=-1), lowest(log_p.dtype))


def one_hot(labels: Int[Array, "*batch"], classes: int) -> Bool[Array, "*batch k"]:
    """True at the label. A comparison: the gradient of a gather would be a scatter."""
    wide = _at_least_int32(labels)[..., None]
    shape = (*wide.shape[:-1], classes)
    return wide == jax.lax.broadcasted_iota(wide.dtype, shape, wide.ndim - 1)


def pick(
    target: Bool[Array, "*batch classes"], values: Float[Array, "*batch classes"]
) -> Float[Array, "*batch"]:
    """Return the value at the one class where `target` is true."""
    return jnp.sum(jnp.where(target, values, 0), axis=-1)


def cross_entropy(
    target: Bool[Array, "*batch classes"],
    logits: Float[Array, "*batch classes"],
    class_mask: Bool[Array, "..."] | None,
) -> Float[Array, "*batch"]:
    """Minus the log-probability of the target; 0 for a row that has no classes."""
    log_q = log_softmax(logits, class_mask)
    return jnp.where(some(logits, class_mask), -pick(target, log_q), 0)


def label_and_rest(
    log_p: Float[Array, "*batch classes"], target: Bool[Array, "*batch classes"]
) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
    """Log-probabilities of the target and of all other classes together.

    The second is a sum over the others: log(1 - p) would lose all digits near p = 1.
    """
    others = jnp.where(target, lowest(log_p.dtype), log_p)
    return pick(target, log_p), log_total(others)


def binary_kl(log_p: Array, log_not_p: Array, log_q: Array, log_not_q: Array) -> Array:
    """KL((p, 1 - p), (q, 1 - q)) from the four logarithms."""
    yes = jnp.exp(log_p) * (log_p - log_q)
    return yes + jnp.exp(log_not_p) * (log_not_p - log_not_q)


def flat(
    where: Bool[Array, "*batch"] | None, *logits: Shaped[Array, "*batch classes"]
) -> tuple[Array, ...]:
    """`where` `[n, 1]` and logits `[n, classes]`, all leading axes made one."""
    rows = tuple(z.reshape(-1, z.shape[-1]) for z in logits)
    if where is None:
        where = jnp.ones(rows[0].shape[0], bool)
    return where.reshape(-1, 1), *rows


def safe_sqrt(x: Array) -> Array:
    """Return the square root, with gradient 0 in place of infinity at 0."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1)), 0)
