"""What a trained network is worth: its predictions, and pure functions of them."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxkd import _check, losses
from jaxkd.data import Stream, count, gather
from jaxkd.data.augment import View
from jaxkd.data.stream import once
from jaxkd.distill import Inputs, Teacher, TrainState, fit_mask, frozen
from jaxkd.models.net import Net
from jaxkd.types import Batch, Metrics, Params, State

Metric = Callable[..., Array]  # (logits, labels, *, where) -> scalar


def predict(
    teacher: Teacher,
    variables: Any,
    resident: Batch,
    *,
    view: View,
    batch_size: int = 500,
) -> Float[Array, "examples *rest classes"]:
    """Return the logits of every example of data on the device, in their order.

    Pure, so that it can be compiled with the network and mapped over seeds. The last
    batch is filled up by repeating examples, whose logits are then cut off.

    Args:
      teacher: the network to evaluate, also a student, e.g. `distill.frozen(net)`.
      variables: its variables.
      resident: the data, e.g. from `data.on_device`.
      view: how the network is to see them, e.g. `augment.chain(to_float, ...)`; its key
        is constant, so it should not be random.
      batch_size: examples in one pass; no effect on the values.

    Raises:
      ValueError: if the columns differ in length, or the first axis of the logits is
        not the batch's, as of an ensemble.
    """
    n = count(resident)
    batches = -(-n // batch_size)
    indices = (jnp.arange(batches * batch_size) % n).reshape(batches, batch_size)

    def logits(rows: Array) -> Array:
        answer = teacher(variables, view(jax.random.key(0), gather(resident, rows)))
        shape = answer.logits.shape
        if len(shape) < 2 or shape[0] != batch_size:
            raise ValueError(
                f"logits must be [batch, ..., classes] of a batch of {batch_size}, got "
                f"{shape}; reduce an ensemble first, e.g. schemes.ensemble.mean"
            )
        return answer.logits

    found = jax.lax.map(logits, indices)
    return found.reshape(batches * batch_size, *found.shape[2:])[:n]


def scorer(
    net: Net,
    examples: Batch | Stream,
    *,
    view: View,
    batch_size: int = 500,
    inputs: Inputs = "image",
    metrics: Mapping[str, Metric] | None = None,
) -> Callable[[TrainState], Metrics]:
    """Build the compiled measurement of a student that `train.fit` takes.

    Args:
      net: the student.
      examples: the data to measure it on, e.g. from `data.on_device`, or a stream:
        "label", and "where" if only some entries count.
      view: how the network sees the data; not random.
      batch_size: examples in one pass; a stream has its own.
      inputs: what the network sees of a batch, as in `distill.distiller`.
      metrics: functions `(logits, labels)` of the whole data, each a scalar, by name;
        one that takes `where=` is given the mask. By default `accuracy` and `nll`. Over
        a stream each must take `where=`, and is the mean over batches, weighted by what
        counts in them: exact for whatever is a mean over examples.

    Returns:
      `state -> {name: value}`: scalars, or `[seeds]` for stacked states.

    Raises:
      ValueError: if the columns differ in length, there is no "label", or a metric over
        a stream takes no mask.
    """
    wanted = {"accuracy": accuracy, "nll": nll} if metrics is None else dict(metrics)
    teacher = frozen(net, inputs=inputs)
    if isinstance(examples, Stream):
        return _stream_scorer(teacher, examples, view, wanted)
    _check.columns(examples)
    size = min(batch_size, count(examples))
    if "label" not in examples:
        raise ValueError(f'data to measure on need "label", got {sorted(examples)}')

    def score(variables: tuple[Params, State], examples: Batch) -> Metrics:
        logits = predict(teacher, variables, examples, view=view, batch_size=size)
        return _measure(wanted, logits, examples)

    @jax.jit
    def score_each(variables: tuple[Params, State], examples: Batch) -> Metrics:
        return jax.lax.map(lambda v: score(v, examples), variables)

    score_one = jax.jit(score)

    def measure(state: TrainState) -> Metrics:
        return (score_each if state.key.ndim else score_one)(state.student, examples)

    return measure


def _measure(wanted: Mapping[str, Metric], logits: Array, batch: Batch) -> Metrics:
    mask = {}
    if "where" in batch:
        mask = {"where": fit_mask(batch["where"], logits.shape[:-1])}
    return {
        name: metric(logits, batch["label"], **(mask if _takes_mask(metric) else {}))
        for name, metric in wanted.items()
    }


def _stream_scorer(
    teacher: Teacher, stream: Stream, view: View, wanted: Mapping[str, Metric]
) -> Callable[[TrainState], Metrics]:
    for name, metric in wanted.items():
        if not _takes_mask(metric):
            raise ValueError(f"metric {name!r} over a stream must take where=")
    n, size = stream.source.examples, stream.batch_size

    @jax.jit
    def score(variables: Any, batch: Batch, rows: Array) -> tuple[Metrics, Array]:
        seen = view(jax.random.key(0), batch)
        logits = teacher(variables, seen).logits
        where = fit_mask(jnp.arange(size) < rows, logits.shape[:-1])
        if "where" in batch:
            where &= fit_mask(batch["where"], logits.shape[:-1])
        weight = jnp.sum(where).astype(jnp.float32)
        found = _measure(wanted, logits, {**batch, "where": where})
        return jax.tree.map(lambda value: value * weight, found), weight

    def measure(state: TrainState) -> Metrics:
        if state.key.ndim:
            raise ValueError("a stream is measured on one seed at a time")
        parts = []
        with once(stream) as feed:
            for first in range(0, n, size):
                rows = np.int32(min(size, n - first))
                parts.append(score(state.student, feed.take(), rows))
        total, weight = jax.tree.map(lambda *values: np.sum(values), *parts)
        return {name: value / max(weight, 1) for name, value in total.items()}

    return measure


def _takes_mask(metric: Metric) -> bool:
    return "where" in inspect.signature(metric).parameters


def _labelled(labels: Array, where: Array | None) -> Array:
    """Return what counts: the entries of the mask that have a label, -1 being none."""
    return labels >= 0 if where is None else where & (labels >= 0)


def _mean(values: Array, where: Array | None) -> Array:
    """Return the mean over what counts; 0 if nothing does."""
    if where is None:
        return jnp.mean(values, dtype=jnp.float32)
    _check.mask("where", where, values.shape)
    total = jnp.sum(jnp.where(where, values, 0), dtype=jnp.float32)
    return total / jnp.maximum(jnp.sum(where), 1).astype(jnp.float32)


def accuracy(
    logits: Float[Array, "*batch classes"],
    labels: Int[Array, "*batch"],
    *,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, ""]:
    """Share of examples whose largest logit is the label's, in [0, 1].

    >>> print(accuracy(jnp.array([[2.0, 1.0], [0.0, 1.0]]), jnp.array([0, 0])))
    0.5
    """
    _check.labels(labels, logits.shape[:-1])
    return _mean(jnp.argmax(logits, -1) == labels, _labelled(labels, where))


def agreement(
    logits: Float[Array, "*batch classes"],
    others: Float[Array, "*batch classes"],
    *,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, ""]:
    """Share of examples on which two networks name the same class, in [0, 1]."""
    _check.same_shape(logits=logits, others=others)
    return _mean(jnp.argmax(logits, -1) == jnp.argmax(others, -1), where)


def nll(
    logits: Float[Array, "*batch classes"],
    labels: Int[Array, "*batch"],
    *,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, ""]:
    """Mean negative log-likelihood of the labels, in nats.

    A label without a class among the logits has probability 0, and so the mean is inf,
    when traced; else it is refused.
    """
    _check.labels(labels, logits.shape[:-1])
    loss = losses.cross_entropy(logits, labels)
    loss = jnp.where(labels < logits.shape[-1], loss, jnp.inf)
    return _mean(loss, _labelled(labels, where))


def ece(
    logits: Float[Array, "*batch classes"],
    labels: Int[Array, "*batch"],
    *,
    where: Bool[Array, "*batch"] | None = None,
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
    _check.mask("where", where, logits.shape[:-1])
    confidence = jnp.max(jax.nn.softmax(logits), -1).ravel()
    correct = (jnp.argmax(logits, -1) == labels).ravel()
    # Bins are (a, b], as in the paper: a confidence of exactly 1 is in the last.
    which = jnp.clip(jnp.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    counts = jnp.ones_like(correct) if where is None else where.ravel()
    gaps = jax.ops.segment_sum(jnp.where(counts, correct - confidence, 0), which, bins)
    return jnp.sum(jnp.abs(gaps)) / jnp.maximum(jnp.sum(counts), 1)


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
