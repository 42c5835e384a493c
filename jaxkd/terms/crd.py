"""Contrastive representation distillation with its memory (Tian et al., 2020)."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxkd import _check, losses
from jaxkd.distill import Term, counted, fitting
from jaxkd.losses import _feature_math as fm
from jaxkd.terms import _pairs
from jaxkd.types import Batch, Outputs, Params, State


class Rows(NamedTuple):
    """Where examples lie in the banks, whose rows are sorted by class.

    The rows of one class are neighbours, so that the rows of all other classes are one
    interval, wrapped around the end: a negative is an offset into it, drawn uniformly.

    Attributes:
      index: the examples' indices, ascending.
      row: the row of each of them.
      stop: for each row, the first row after its class.
      others: for each row, how many rows are not of its class.
    """

    index: Int[np.ndarray, " data"]  # type: ignore[assignment]
    row: Int[np.ndarray, " data"]
    stop: Int[np.ndarray, " data"]
    others: Int[np.ndarray, " data"]


def rows(index: np.ndarray, labels: np.ndarray | None) -> Rows:
    """Return the layout of the banks for these examples.

    Args:
      index: one whole number for each example, no two equal.
      labels: their classes; None makes every example a class of its own.

    Raises:
      ValueError: if an index occurs twice, or no example has a negative.

    Example:
      Two of class 0, one of class 1, in rows 0 to 2.

      >>> layout = rows(np.array([7, 5, 9]), np.array([1, 0, 0]))
      >>> layout.index.tolist(), layout.row.tolist()
      ([5, 7, 9], [0, 2, 1])
      >>> layout.stop.tolist(), layout.others.tolist()
      ([2, 2, 3], [1, 1, 2])
    """
    index = np.asarray(index)
    _check.rank(1, 1, index=index)
    _check.labels(index, index.shape, "index")
    labels = np.arange(len(index)) if labels is None else np.asarray(labels)
    _check.labels(labels, index.shape)
    if len(np.unique(index)) < len(index):
        raise ValueError("index must name every example once, but some occur twice")
    by_class = np.lexsort((index, labels))
    row = np.empty(len(index), np.int32)
    row[by_class] = np.arange(len(index))
    by_index = np.argsort(index)
    ordered = labels[by_class]
    start = np.searchsorted(ordered, ordered, "left")
    stop = np.searchsorted(ordered, ordered, "right")
    others = len(index) - (stop - start)
    if len(index) == 0 or others.min() == 0:
        raise ValueError("there must be two classes or more, to draw negatives from")
    narrow = lambda a: a.astype(np.int32)
    return Rows(narrow(index[by_index]), row[by_index], narrow(stop), narrow(others))


def find(
    layout: Rows, index: Int[Array, " batch"]
) -> tuple[Int[Array, " batch"], Bool[Array, " batch"]]:
    """The rows of examples, and whether they have one; without one, row is `data`."""
    place = jnp.searchsorted(layout.index, index)
    place = jnp.minimum(place, len(layout.index) - 1)
    known = layout.index[place] == index
    return jnp.where(known, layout.row[place], len(layout.index)), known


def draw(
    key: Array, layout: Rows, row: Int[Array, " batch"], count: int
) -> Int[Array, "batch count"]:
    """Rows of other classes than each example's, uniformly, with replacement."""
    row = jnp.minimum(row, len(layout.stop) - 1)  # of an unknown example: any
    shape = (len(row), count)
    offset = jax.random.randint(key, shape, 0, layout.others[row][:, None])
    return (layout.stop[row][:, None] + offset) % len(layout.stop)


def _normalizers(
    s: Array, t: Array, banks: State, candidates: Array, temperature: float
) -> Float[Array, "2"]:
    """Data times the mean of exp(a' b / T) over the candidates, both ways."""

    def one(anchors: Array, bank: Array) -> Array:
        scores = fm.einsum("bd,nd->bn", anchors, bank) / temperature
        scores = jnp.take_along_axis(scores, candidates, axis=1, mode="clip")
        mean = jax.nn.logsumexp(scores) - jnp.log(float(scores.size))
        return len(bank) * jnp.exp(mean)

    return jnp.stack([one(s, banks["teacher"]), one(t, banks["student"])])


def crd(
    pair: _pairs.Pairs = "pooled",
    *,
    index: np.ndarray,
    labels: np.ndarray | None = None,
    dims: int = 128,
    negatives: int = 16384,
    momentum: float = 0.5,
    temperature: float = 0.07,
) -> Term:
    """Recognising an example across the two networks among many, `losses.crd`.

    With a = unit(W_s s + c_s) and b = unit(W_t t + c_t) the projected features, and a
    bank of each network's projections of every example of the data::

        loss = NCE(a; positive and N negatives from the teacher's bank)
               + NCE(b; the same rows of the student's bank)
        bank row <- unit(momentum bank row + (1 - momentum) a or b)

    The authors' weight is 0.8, beside a cross-entropy of weight 1. The normalisers Z
    are set at the first batch and kept; no gradient goes through them. Negatives are
    drawn uniformly from the other classes, independently, with replacement (the
    authors' loader draws them without, if there are enough). The banks start as
    random vectors of length 1.

    The state holds the two banks `[data, dims]`, 51 MB together for 50,000 examples at
    128 dims, rows sorted by (class, index). A step computes the scores of the batch
    with all of them, `[batch, data]`, twice: at 16,384 negatives and a batch of 64 this
    takes 140 MB besides the state and about 0.2 s of processor time on a CPU.

    Args:
      pair: the taps; maps are flattened.
      index: `dataset.index` of the training data; a batch is found by its "index".
      labels: `dataset.labels`; None takes every other example for a negative.
      dims: length of the projected vectors.
      negatives: N, how many for each example.
      momentum: of the banks, in [0, 1]: share of the old row that stays.
      temperature: T > 0.

    Returns:
      The term. Its parameters are the two projections; its state are the banks, the
      normalisers (0 before the first batch), the layout of the rows and a seed. An
      example of unknown index gets the loss NaN, at which `train.fit` stops, and
      writes no row.

    Raises:
      ValueError: if an index occurs twice, there are no negatives, or a knob is out of
        its range; at `init`, if the batch has an index not in `index`; when traced, if
        the batch is mixed: a blend of two images has no row.
      KeyError: when traced, if the batch has no "index".

    References:
      Tian, Krishnan, Isola. `Contrastive Representation Distillation
      <https://arxiv.org/abs/1910.10699>`_, ICLR 2020.
    """
    student, teacher = _pairs.one(pair)
    for name, whole in {"dims": dims, "negatives": negatives}.items():
        _check.whole(1)(name, whole)
    _check.closed_unit("momentum", momentum)
    _check.positive("temperature", temperature)
    layout = rows(index, labels)
    head: Any = nn.Dense(dims)

    def project(params: Params, features: Array) -> Float[Array, "batch dims"]:
        return fm.unit(head.apply({"params": params}, fm.flat(features)))

    def init(key: Array, s: Outputs, t: Outputs, batch: Batch) -> tuple[Params, State]:
        _refuse(batch, layout)
        keys = jax.random.split(key, 5)
        shape = (len(layout.row), dims)
        params = {
            "student": head.init(keys[0], fm.flat(s.tap(student)))["params"],
            "teacher": head.init(keys[1], fm.flat(t.tap(teacher)))["params"],
        }
        banks = {
            "student": fm.unit(jax.random.normal(keys[2], shape)),
            "teacher": fm.unit(jax.random.normal(keys[3], shape)),
        }
        # A plain array, whatever kind of key the caller's is.
        seed = jax.random.bits(keys[4], (2,), jnp.uint32)
        state = {"banks": banks, "normalizers": jnp.zeros(2), "seed": seed}
        return params, {**state, "rows": jax.tree.map(jnp.asarray, layout._asdict())}

    def apply(
        params: Params, state: State, s: Outputs, t: Outputs, batch: Batch
    ) -> tuple[Array, State]:
        _refuse(batch)
        where, banks = Rows(**state["rows"]), state["banks"]
        a = project(params["student"], s.tap(student))
        b = project(params["teacher"], t.tap(teacher))
        row, known = find(where, batch["index"])
        key = jax.random.wrap_key_data(state["seed"], impl="threefry2x32")
        key, draw_key = jax.random.split(key)
        others = draw(draw_key, where, row, negatives)

        # The normalisers are constants of the method, not functions of the features.
        fixed = jax.lax.stop_gradient((a, b))
        candidates = jnp.concatenate([row[:, None], others], axis=1)
        z = jax.lax.cond(
            state["normalizers"][0] > 0,
            lambda: state["normalizers"],
            lambda: _normalizers(*fixed, banks, candidates, temperature),
        )
        loss = losses.crd(
            a,
            b,
            banks["student"],
            banks["teacher"],
            row,
            others,
            temperature=temperature,
            student_normalizer=z[0],
            teacher_normalizer=z[1],
        )

        def moved(bank: Array, seen: Array) -> Array:
            old = bank.at[row].get(mode="clip")
            new = fm.unit(momentum * old + (1 - momentum) * seen)
            return bank.at[row].set(new, mode="drop")  # an unknown example's is past it

        banks = {
            "student": moved(banks["student"], a),
            "teacher": moved(banks["teacher"], b),
        }
        state = {**state, "banks": banks, "normalizers": z}
        state["seed"] = jax.random.key_data(key)
        return jnp.where(known, loss, jnp.nan), state

    check = lambda columns: _refuse_unknown(columns, layout)
    return fitting(Term(init, apply, check))


def _refuse(batch: Batch, layout: Rows | None = None) -> None:
    """What can be seen of a batch before it is used."""
    if "label_other" in batch:
        raise ValueError("crd cannot use mixed batches: a blend has no row in a bank")
    if "index" not in batch:
        raise KeyError(f'crd needs the batch\'s "index"; there are {sorted(batch)}')
    index = batch["index"]
    if index.ndim != 1 or not jnp.issubdtype(index.dtype, jnp.integer):
        raise ValueError(
            'the column "index" must hold one whole number for each example, got '
            f"{index.dtype} with shape {index.shape}"
        )
    if layout is not None:
        _refuse_unknown(batch, layout)


def _refuse_unknown(columns: Batch, layout: Rows) -> None:
    """Examples that count, and have no row in a bank."""
    if "index" not in columns or isinstance(columns["index"], jax.core.Tracer):
        return
    used = np.asarray(columns["index"])
    if "where" in columns:
        used = used[np.asarray(counted(columns["where"], columns["index"]))]
    unknown = np.setdiff1d(used, layout.index)
    if len(unknown):
        raise ValueError(
            f'the column "index" has {len(unknown)} examples that are not in the '
            f"index= of crd, which has {len(layout.index)}, such as {unknown[:5]}; "
            "make the term with the index of the data that it is trained on"
        )
