"""A teacher scores the training set once; students are trained on what it said.

The fixed set {(x, y_T(x))} is scored, laid onto the device, and trained on::

    scores = offline.score(teacher, variables, images, view=view, path="runs/a/scores")
    columns = offline.on_device(images, scores)
    run = train.learn(student, columns, teacher="cached", spec=spec, tx=tx, view=view,
                      batch_size=64, epochs=20)

where what was kept of the teacher's logits decides how the student learns from it:

* "soft", all of them: the teacher is "cached", and any spec of `distill.on_logits`.
* "topk", the largest: there is no teacher, and the term is `on_topk(scores)`.
* "hard", the class: there is no teacher, and the term is `on_hard_labels(scores)`; or
  the columns are `{**columns, "label": columns["teacher_label"]}`.

A random view is scored as a number of fixed ones, and the epochs go through them in
turn, so that the student is told what the teacher said about this very image::

    view = offline.replayed(augment.chain(flip(), to_float()), seed=0, views=8)

`score` keeps a folder: `manifest.json` with the digests of teacher, data and
arrays, and memory-mapped `.npy` files. What does not belong is refused with the reason.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxkd import data, losses
from jaxkd.cache import Scores, load, replayed, score, showing
from jaxkd.cache.replay import VIEWS
from jaxkd.distill import Term
from jaxkd.types import Batch, Outputs, Params, State

__all__ = [
    "Scores",
    "load",
    "on_device",
    "on_hard_labels",
    "on_topk",
    "replayed",
    "score",
    "showing",
]


def on_device(dataset: data.Dataset, scores: Scores) -> Batch:
    """Put a data set and its scores on the device.

    Args:
      dataset: the one for which `score` or `load` gave the scores.
      scores: of all its examples.

    Returns:
      The fields of `data.on_device` and those of the scores, "teacher" `[n, classes]`
      for instance. Several views of each example give "teacher_views"
      `[n, views, classes]` instead, of which an epoch sees one.

    Raises:
      ValueError: if the scores are those of other data, or in another order.
    """
    if data.fingerprint(dataset) != scores.data:
        raise ValueError(
            "these are the scores of other data, or of these in another order: load "
            "them for this data set with offline.load(path, dataset, ...)"
        )
    resident = data.on_device(dataset)
    for name, field in scores.fields.items():
        if np.issubdtype(field.dtype, np.integer):
            field = field.astype(np.int32)  # stored as small as the classes allow
        if scores.views == 1:
            resident[name] = jnp.asarray(field[:, 0])
        else:
            resident[name + VIEWS] = jnp.asarray(field)
    return resident


def on_hard_labels(
    scores: Scores,
    loss: Callable[..., Array] = losses.cross_entropy,
    **knobs: Any,
) -> Term:
    """Lifts `loss(student_logits, labels, **knobs)` to the teacher's labels.

    Args:
      scores: of kind "hard".
      loss: e.g. `losses.label_smoothing`.
      **knobs: passed to `loss`.

    Raises:
      ValueError: if the scores are of another kind; at `init`, if the student has other
        classes.
    """
    _of_kind(scores, "hard")
    label = lambda batch: _field(batch, "teacher_label")
    return _term(scores, lambda s, batch: loss(s.logits, label(batch), **knobs))


def on_topk(
    scores: Scores, loss: Callable[..., Array] = losses.topk_kd, **knobs: Any
) -> Term:
    """Lifts a loss of the teacher's largest logits, at the temperature of the scores.

    Args:
      scores: of kind "topk".
      loss: `(student_logits, top, indices, logsumexp, *, temperature)`.
      **knobs: passed to `loss`, the temperature excepted.

    Raises:
      ValueError: if the scores are of another kind, or a temperature is given; at
        `init`, if the student has other classes.
    """
    _of_kind(scores, "topk")
    temperature = scores.kept.temperature
    if "temperature" in knobs:
        raise ValueError(
            f"temperature is that of the scores, {temperature}; score again for another"
        )

    def apply(s: Outputs, batch: Batch) -> Array:
        names = ("teacher_top", "teacher_top_index", "teacher_logsumexp")
        stored = [_field(batch, name) for name in names]
        return loss(s.logits, *stored, temperature=temperature, **knobs)

    return _term(scores, apply)


def _of_kind(scores: Scores, kind: str) -> None:
    if scores.kept.kind != kind:
        raise ValueError(
            f"the scores must be of kind {kind!r}, got {scores.kept.kind!r}"
        )


def _field(batch: Batch, name: str) -> Array:
    if name not in batch:
        raise ValueError(
            f"the data has no field {name!r}, but {sorted(batch)}: take it from "
            "offline.on_device, and several views through offline.showing"
        )
    return batch[name]


def _term(scores: Scores, loss: Callable[[Outputs, Batch], Array]) -> Term:
    """Return a term that reads the batch, not the teacher's outputs."""

    def init(key: Array, s: Outputs, t: Outputs, batch: Batch) -> tuple[Params, State]:
        if s.logits.shape[-1] != scores.classes:
            raise ValueError(
                "teacher and student must have the same classes, got "
                f"{scores.classes} (teacher) and {s.logits.shape[-1]} (student)"
            )
        jax.eval_shape(loss, s, batch)  # a field that is missing is noticed here
        return {}, {}

    def apply(
        params: Params, state: State, s: Outputs, t: Outputs, batch: Batch
    ) -> tuple[Array, State]:
        return loss(s, batch), state

    return Term(init, apply)
