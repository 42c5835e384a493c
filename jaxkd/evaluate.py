"""What a trained network is worth: its predictions, and pure functions of them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxkd import _check
from jaxkd.data.augment import View
from jaxkd.distill import Teacher, TrainState, frozen
from jaxkd.models.net import Net
from jaxkd.types import Batch, Metrics, Params, State


def predict(
    teacher: Teacher,
    variables: Any,
    resident: Batch,
    *,
    view: View,
    batch_size: int = 500,
) -> Float[Array, "examples classes"]:
    """Logits of every example of a data set that lies on the device, in its order.

    Pure, so that it can be compiled with the network and mapped over seeds. The last
    batch is filled up by repeating examples, whose logits are then cut off.

    Args:
      teacher: what answers, e.g. `distill.frozen(net)`.
      variables: its variables.
      resident: the data set, from `data.on_device`.
      view: how the network is to see the images, e.g. `augment.chain(to_float, ...)`;
        its key is constant, so it should not be random.
      batch_size: examples in one pass; no effect on the values.

    Raises:
      ValueError: if the answer is not `[batch, classes]`, as that of an ensemble.
    """
    n = len(resident["image"])
    batches = -(-n // batch_size)
    indices = (jnp.arange(batches * batch_size) % n).reshape(batches, batch_size)

    def logits(rows: Array) -> Array:
        batch = jax.tree.map(lambda a: a[rows], resident)
        answer = teacher(variables, view(jax.random.key(0), batch)).logits
        _check.rank(2, 2, logits=answer)
        return answer

    return jax.lax.map(logits, indices).reshape(batches * batch_size, -1)[:n]


def scorer(
    net: Net, resident: Batch, *, view: View, batch_size: int = 500
) -> Callable[[TrainState], Metrics]:
    """Builds the compiled measurement of a student that `train.fit` takes.

    Args:
      net: the student.
      resident: the data to measure it on, from `data.on_device`.
      view: how the network sees the images; not random.
      batch_size: examples in one pass.

    Returns:
      `state -> {"accuracy", "nll"}`: scalars, or `[seeds]` for stacked states.
    """

    def score(variables: tuple[Params, State], resident: Batch) -> Metrics:
        logits = predict(
            frozen(net), variables, resident, view=view, batch_size=batch_size
        )
        labels = resident["label"]
        return {"accuracy": accuracy(logits, labels), "nll": nll(logits, labels)}

    @jax.jit
    def measure(state: TrainState, resident: Batch) -> Metrics:
        variables = (state.params["student"], state.state["student"])
        if state.key.ndim:
            return jax.lax.map(lambda v: score(v, resident), variables)
        return score(variables, resident)

    return lambda state: measure(state, resident)


def accuracy(
    logits: Float[Array, "*batch classes"], labels: Int[Array, "*batch"]
) -> Float[Array, ""]:
    """Share of examples whose largest logit is the label's, in [0, 1].

    >>> print(accuracy(jnp.array([[2.0, 1.0], [0.0, 1.0]]), jnp.array([0, 0])))
    0.5
    """
    _check.labels(labels, logits.shape[:-1])
    return jnp.mean(jnp.argmax(logits, -1) == labels, dtype=jnp.float32)


def agreement(
    logits: Float[Array, "*batch classes"], others: Float[Array, "*batch classes"]
) -> Float[Array, ""]:
    """Share of examples on which two networks name the same class, in [0, 1]."""
    _check.same_shape(logits=logits, others=others)
    same = jnp.argmax(logits, -1) == jnp.argmax(others, -1)
    return jnp.mean(same, dtype=jnp.float32)


def nll(
    logits: Float[Array, "*batch classes"], labels: Int[Array, "*batch"]
) -> Float[Array, ""]:
    """Mean negative log-likelihood of the labels, in nats."""
    _check.labels(labels, logits.shape[:-1])
    log_p = jax.nn.log_softmax(
        logits.astype(jnp.promote_types(logits.dtype, "float32"))
    )
    return -jnp.mean(jnp.take_along_axis(log_p, labels[..., None], -1))


def ece(
    logits: Float[Array, "*batch classes"],
    labels: Int[Array, "*batch"],
    *,
    bins: int = 15,
) -> Float[Array, ""]:
    """Expected calibration error: how far confidence is from accuracy, in [0, 1].

    Examples fall into equal bins of confidence max_k softmax(z)_k; with n_b of N in bin
    b::

        ece = sum_b n_b / N * |accuracy_b - mean confidence_b|

    References:
      Guo, Pleiss, Sun, Weinberger. `On Calibration of Modern Neural Networks
      <https://arxiv.org/abs/1706.04599>`_, 2017. Eq. 3.
    """
    _check.labels(labels, logits.shape[:-1])
    confidence = jnp.max(jax.nn.softmax(logits), -1).ravel()
    correct = (jnp.argmax(logits, -1) == labels).ravel()
    # Bins are (a, b], as in the paper: a confidence of exactly 1 is in the last.
    which = jnp.clip(jnp.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = jax.ops.segment_sum(correct - confidence, which, bins)
    return jnp.sum(jnp.abs(gaps)) / confidence.size


def cka(
    features: Float[Array, "batch dims"], others: Float[Array, "batch other_dims"]
) -> Float[Array, ""]:
    """Linear centred kernel alignment of two sets of features, in [0, 1].

    With X and Y centred over the batch::

        cka = ||X'Y||_F^2 / (||X'X||_F ||Y'Y||_F)

    It is 1 for features equal up to rotation and scale. Features that do not vary
    give 0.

    References:
      Kornblith, Norouzi, Lee, Hinton. `Similarity of Neural Network Representations
      Revisited <https://arxiv.org/abs/1905.00414>`_, 2019. Section 3.
    """
    _check.rank(2, 2, features=features, others=others)
    if len(features) != len(others):
        raise ValueError(
            f"features and others must describe the same examples, got {len(features)} "
            f"and {len(others)}"
        )
    x, y = (f - f.mean(0, keepdims=True) for f in (features, others))
    dot = jnp.sum(jnp.square(x.T @ y))
    sizes = jnp.sqrt(jnp.sum(jnp.square(x.T @ x)) * jnp.sum(jnp.square(y.T @ y)))
    return jnp.where(sizes > 0, dot / jnp.where(sizes > 0, sizes, 1), 0)
