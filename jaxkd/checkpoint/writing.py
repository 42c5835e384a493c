"""Checkpoints beside a training, written by a thread of its own."""

import copy
import os
import pathlib
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxkd import _check, mesh, processes
from jaxkd.checkpoint import folders, trees, whole


class Writer(NamedTuple):
    """Checkpoints beside a training; made by `writer`.

    Attributes:
      save: `(step, tree, meta, score=None)`; returns as soon as the arrays are on the
        host. Raises the OSError of an earlier one that failed. All processes call it.
      wait: returns when all is on the disk; raises likewise. All processes call it.
    """

    save: Callable[..., None]
    wait: Callable[[], None]


@contextmanager
def writer(
    folder: str | os.PathLike, *, keep: int = 2, best: bool = False
) -> Iterator[Writer]:
    """Write checkpoints in a thread of its own; of many that wait, the latest.

    Checkpoints are named after their step, "000012". Where steps are shorter than
    writing takes, steps are left out rather than waited for, but never the last one,
    nor one that is the best so far.

    Of many processes, which all call it, the first one writes, and `wait` and the end
    of the block wait for it. Sharded arrays come whole into the memory of every host.

    Args:
      folder: where they go; made if need be.
      keep: how many of the latest are kept, >= 1.
      best: whether the one of the highest score is kept as well, of several the first.

    Yields:
      The writer. Leaving the block waits for it.

    Raises:
      OSError: if a checkpoint cannot be written; those before it are there.
    """
    _check.whole(1)("keep", keep)
    if jax.process_index() != 0:
        yield Writer(lambda step, tree, meta, score=None: _gathered(tree), _together)
        _together()
        return
    folder = pathlib.Path(folder).absolute()
    desk = _Queue(threading.Condition(), {}, [], [])
    thread = threading.Thread(
        target=_work, args=(desk, folder, keep, best), daemon=True
    )
    top = folders.best_score(folder) if best else None
    highest = [-np.inf if top is None else top]

    def save(step: int, tree: Any, meta: Mapping[str, Any], score=None) -> None:
        _raise(desk)
        # Copies: by the time that they are written, the caller has gone on.
        notes = copy.deepcopy({**meta, "step": step, "score": score})
        job = (step, trees.as_dicts(_gathered(tree)), notes)
        with desk.changed:
            desk.waiting["last"] = job
            if best and score is not None and score > highest[0]:
                highest[0] = score
                desk.waiting["best"] = job
            desk.changed.notify_all()

    def wait() -> None:
        with desk.changed:
            desk.changed.wait_for(lambda: not desk.waiting or desk.failures)
        _raise(desk)
        _together()

    thread.start()
    try:
        yield Writer(save, wait)
    finally:
        with desk.changed:
            desk.closed.append(True)
            desk.changed.notify_all()
        thread.join()
    _raise(desk)
    _together()


def _gathered(tree: Any) -> Any:
    """The tree, where several processes have parts of it: whole in all of them."""
    return tree if jax.process_count() == 1 else mesh.fetch(tree)


def _together() -> None:
    processes.barrier("checkpoint")


class _Queue(NamedTuple):
    """What the writing thread shares: jobs stay in `waiting` until they are done."""

    changed: threading.Condition
    waiting: dict[str, tuple[int, Any, Any]]
    failures: list[Exception]
    closed: list[bool]


def _raise(desk: _Queue) -> None:
    if desk.failures:
        raise desk.failures[0]


def _work(desk: _Queue, folder: pathlib.Path, keep: int, best: bool) -> None:
    while True:
        with desk.changed:
            desk.changed.wait_for(lambda: desk.waiting or desk.closed)
            if desk.failures or not desk.waiting:
                return
            slot = "best" if "best" in desk.waiting else "last"
            job = step, tree, meta = desk.waiting[slot]
        try:
            whole.write(folders.at(folder, step), tree, meta)
            folders.clean(folder, keep, best)
        except Exception as error:
            desk.failures.append(error)
        with desk.changed:
            done = [s for s, waits in desk.waiting.items() if waits is job]
            for slot in done:
                del desk.waiting[slot]
            desk.changed.notify_all()
