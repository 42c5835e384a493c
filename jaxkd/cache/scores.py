"""A teacher scores a data set once: what it said, kept on disk and recognised."""

import os
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import _check, data, store as files
from jaxkd.cache import align, keep, recognise, replay, store
from jaxkd.cache.keep import Kept
from jaxkd.data.augment import View
from jaxkd.data.dataset import check as check_dataset, take
from jaxkd.distill import Teacher
from jaxkd.evaluate import predict

Say = Callable[[data.Dataset], np.ndarray]  # -> logits [examples, views, classes]


class Scores(NamedTuple):
    """What a teacher said about a data set.

    Attributes:
      kept: which part of its logits.
      classes: how many it knows.
      views: how many of each example were scored.
      fields: arrays `[examples, views, ...]` in the order of the data set. "hard":
        "teacher_label" `[n, v]`; "soft": "teacher" `[n, v, classes]`; "topk":
        "teacher_top" and "teacher_top_index" `[n, v, k]`, largest first, and
        "teacher_logsumexp" `[n, v]`.
      data: fingerprint of the data set whose order this is.
    """

    kept: Kept
    classes: int
    views: int
    fields: store.Arrays
    data: str


def score(
    teacher: Teacher,
    variables: Any,
    dataset: data.Dataset,
    *,
    view: View,
    path: str | os.PathLike | None = None,
    kind: str = "soft",
    k: int | None = None,
    temperature: float | None = None,
    dtype: str = "float32",
    batch_size: int = 500,
    chunk_size: int = 5000,
) -> Scores:
    """Return what the teacher says about every example, computed once.

    If the set is at `path` already, it is checked and read (see `load`), and some
    examples are scored again to see that it was this network. If a run was killed while
    it computed, its finished chunks, in `path.partial`, are kept and the others
    computed. Nothing is ever deleted, or computed anew, without being asked for.

    Args:
      teacher: e.g. `distill.frozen(net)`.
      variables: its variables.
      dataset: what to score; of a set that is there already, any part in any order.
      view: how the student will see the images too; a random one as
        `replayed(view, seed=..., views=...)`, of which all views are scored.
      path: the folder to keep it in; None keeps nothing.
      kind: "soft" keeps all logits, "topk" the `k` largest with their classes and
        log sum_j exp(z_j / T) over all, "hard" the predicted class.
      k: for "topk", 1 to the number of classes.
      temperature: for "topk", the T > 0 at which the student will be taught.
      dtype: of kept logits, "float32" or "float16". What "topk" keeps is taken from the
        rounded ones; "hard" keeps none.
      batch_size: examples in one pass of the teacher; no effect on the values.
      chunk_size: the most examples that a killed run has to score again.

    Returns:
      The scores in the order of `dataset`, memory-mapped if that is the stored order.

    Raises:
      ValueError: if the view is random, an index occurs twice, a logit is NaN, infinite
        or too large for `dtype`; if what is at `path` does not belong to these
        arguments, or is damaged.
    """
    kept = keep.kept(kind, k, temperature, dtype)
    _check.whole(1)("batch_size", batch_size)
    _check.whole(1)("chunk_size", chunk_size)
    _refuse_random(view)
    check_dataset(dataset)
    align.refuse_duplicates(dataset.index)
    say, classes = _speaker(teacher, variables, dataset, view, batch_size)
    keep.fits(kept, classes)
    _, views = replay.settings(view)
    identity = data.fingerprint(dataset)
    if path is None:
        fields = _compute(say, dataset, kept, np.arange(len(dataset.index)))
        return Scores(kept, classes, views, fields, identity)
    path = pathlib.Path(path)
    who = files.digest(variables)
    fresh = False
    if not store.exists(path):
        plan = _plan(kept, classes, view, who, identity, len(dataset.index))
        fresh = _fill(path, plan, say, dataset, view, kept, chunk_size)
    found = load(path, dataset, view=view, teacher=who)
    files.require_same(path, found.kept._asdict(), kept._asdict())
    if not fresh:
        logits = say(recognise.first(dataset))
        recognise.same_network(path, found.kept, found.fields, logits)
    return found


def load(
    path: str | os.PathLike, dataset: data.Dataset, *, view: View, teacher: str
) -> Scores:
    """Read the scores of a data set, or explain why they are not its scores.

    Scores belong to an example's index. The scored data set in another order, or any
    part of it, gets its rows by index, and each image and label is then compared with
    what was scored under that index.

    Args:
      path: where `score` kept them.
      dataset: whose scores are wanted; no index twice.
      view: how the student will see the images.
      teacher: `store.digest(variables)` of the teacher that is meant.

    Returns:
      The scores in the order of `dataset`, memory-mapped if that is the stored order.

    Raises:
      ValueError: if there are no complete scores at `path`; if they are in an unknown
        format, truncated or changed; or if they belong to a different teacher, view or
        data set.
    """
    path = pathlib.Path(path)
    _refuse_random(view)
    check_dataset(dataset)
    manifest, arrays = store.open_arrays(path)
    if manifest["teacher"] != teacher:
        raise ValueError(
            f"{path} was scored by another teacher: its digest is "
            f"{manifest['teacher']}, here it is {teacher}; score with this one under "
            "another path"
        )
    recognise.same_view(path, view, manifest, arrays)
    identity = data.fingerprint(dataset)
    kept = Kept(*(manifest[name] for name in Kept._fields))
    fields = {name: arrays[name] for name in keep.FIELDS[kept.kind]}
    if identity != manifest["data"]:
        rows = align.rows_of(dataset, arrays["index"], arrays["content"])
        fields = {name: array[rows] for name, array in fields.items()}
    return Scores(kept, manifest["classes"], manifest["views"], fields, identity)


def cache_teacher(
    teacher: Teacher,
    variables: Any,
    dataset: data.Dataset,
    *,
    view: View,
    path: str | os.PathLike | None = None,
    batch_size: int = 500,
) -> np.ndarray:
    """`score` for the plainest case: all logits, under a view that is not random.

    Args:
      teacher: e.g. `distill.frozen(net)`.
      variables: its variables.
      dataset: what to score.
      view: how the student will see the images too.
      path: the folder to keep them in; None keeps nothing.
      batch_size: examples in one pass.

    Returns:
      Float32 logits `[examples, classes]` in the order of `dataset`, memory-mapped if
      they were kept: the field "teacher" of the resident data.

    Raises:
      ValueError: as `score` does, and if the view is a replayed one.
    """
    if replay.settings(view)[0] is not None:
        raise ValueError(
            "a replayed view has several logits for an example: use offline.score"
        )
    found = score(
        teacher, variables, dataset, view=view, path=path, batch_size=batch_size
    )
    return found.fields["teacher"][:, 0]


def _refuse_random(view: View) -> None:
    if view.random:
        raise ValueError(
            "cached logits would be inexact: the view is random, so that a live "
            "teacher would see other images in every epoch; cache under a view without "
            "augmentation, replay it (schemes.offline.replayed), or use the live "
            "teacher"
        )


def _speaker(
    teacher: Teacher,
    variables: Any,
    dataset: data.Dataset,
    view: View,
    batch_size: int,
) -> tuple[Say, int]:
    """Return what gives the logits of a data set under every view, and its classes."""
    _, views = replay.settings(view)

    def resident(dataset: data.Dataset, number: int) -> dict[str, jax.Array]:
        column = jnp.full(len(dataset.index), number, jnp.int32)
        return {**data.on_device(dataset), "view": column}

    def logits(variables: Any, resident: dict[str, jax.Array]) -> jax.Array:
        size = min(batch_size, data.count(resident))
        return predict(teacher, variables, resident, view=view, batch_size=size)

    program = jax.jit(logits)

    def say(dataset: data.Dataset) -> np.ndarray:
        now = resident(dataset, 0)
        heard = []
        for number in range(views):
            now["view"] = jnp.full_like(now["view"], number)
            heard.append(np.asarray(program(variables, now), np.float32))
        return np.stack(heard, axis=1)

    shape = jax.eval_shape(
        logits, variables, resident(recognise.first(dataset), 0)
    ).shape
    return say, shape[-1]


def _compute(
    say: Say, dataset: data.Dataset, kept: Kept, rows: np.ndarray
) -> store.Arrays:
    return keep.reduce(say(take(dataset, rows, dataset.split)), kept)


def _plan(
    kept: Kept, classes: int, view: View, teacher: str, identity: str, examples: int
) -> dict[str, Any]:
    seed, views = replay.settings(view)
    return {
        **kept._asdict(),
        "classes": classes,
        "examples": examples,
        "seed": seed,
        "views": views,
        "teacher": teacher,
        "data": identity,
    }


def _fill(
    path: pathlib.Path,
    plan: dict[str, Any],
    say: Say,
    dataset: data.Dataset,
    view: View,
    kept: Kept,
    chunk_size: int,
) -> bool:
    """Scores chunk by chunk, in chunks of one length: one compiled program."""
    n = len(dataset.index)
    chunks = -(-n // chunk_size)
    size = -(-n // chunks)

    def compute(number: int) -> store.Arrays:
        rows = np.arange(number * size, (number + 1) * size)
        fields = _compute(say, dataset, kept, np.minimum(rows, n - 1))
        return {name: array[rows < n] for name, array in fields.items()}

    fixed = {
        "index": dataset.index,
        "content": align.contents(dataset),
        **recognise.probe(view, dataset),
    }
    return store.fill(
        path,
        {**plan, "chunk": size},
        compute,
        chunks,
        fixed=fixed,
        agree=lambda begun: recognise.same_view(store.partial(path), view, plan, begun),
    )
