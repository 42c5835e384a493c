"""Trees of arrays on disk, through orbax.

`save` and `load` keep a tree. `write` and `read` keep a tree with notes and the sha256
of every file, so that one that is not whole is found out; `writer` does so beside a
training, which does not wait for it::

    with checkpoint.writer(folder, keep=2) as saving:
        for epoch in range(epochs):
            ...
            saving.save(epoch, state, {"epoch": epoch}, score=accuracy)
    found = checkpoint.newest(folder, print)
    state = checkpoint.like(found.tree, state)

Many processes (`jaxkd.processes`) all call `writer` and `newest`, on a folder that all
of them see: what lies on several hosts is gathered, the first one writes, and all read
the same. `save` and `write` are for one process, and for whole arrays::

    whole = mesh.fetch(state)
    processes.once(lambda: checkpoint.write(path, whole, notes))

A file does not know how many processes there were: any other number can go on from it.
"""

import copy
import hashlib
import json
import os
import pathlib
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from jaxkd import _check, _files, _tree, mesh, processes

DATA, META, MANIFEST = "data", "meta.json", "manifest.json"
PARTIAL = ".partial-"


def save(path: str | os.PathLike, tree: Any) -> None:
    """Writes a tree of arrays into the directory `path`, whole or not at all.

    Args:
      path: the directory; replaced if it is there.
      tree: nested dicts, tuples and lists of arrays.
    """
    with _orbax() as checkpointer:
        checkpointer.save(pathlib.Path(path).absolute(), tree, force=True)


def load(path: str | os.PathLike, like: Any = None) -> Any:
    """Reads what `save` wrote.

    Args:
      path: the directory.
      like: a tree of the same structure, arrays or ShapeDtypeStructs, whose containers
        and types are wanted; without it, dicts come back and shapes are the file's.
        Of many processes, each reads by itself, so that these must be its own arrays.

    Raises:
      FileNotFoundError: if there is no checkpoint at `path`.
      ValueError: if `like` has another structure or other shapes.
    """
    import orbax.checkpoint as ocp

    path = pathlib.Path(path).absolute()
    if not path.is_dir():
        raise FileNotFoundError(f"no checkpoint at {path}")
    abstract = (
        None if like is None else jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    )
    with _orbax() as checkpointer:
        return checkpointer.restore(path, abstract)


def _orbax() -> Any:
    """A checkpointer of this process alone: orbax would have all of them take part."""
    import orbax.checkpoint as ocp  # costs a second, and most imports never save

    own = jax.process_index()
    options = ocp.options.MultiprocessingOptions(
        primary_host=own,
        active_processes={own} if jax.process_count() > 1 else None,
        barrier_sync_key_prefix=f"process{own}" if own else None,
    )
    return ocp.StandardCheckpointer(multiprocessing_options=options)


class Checkpoint(NamedTuple):
    """What `read` found.

    Attributes:
      path: the directory.
      tree: nested dicts of numpy arrays; `like` gives it its containers back.
      meta: the notes.
    """

    path: pathlib.Path
    tree: dict[str, Any]
    meta: dict[str, Any]


def as_dicts(tree: Any) -> dict[str, Any]:
    """The leaves of any tree as nested dicts of arrays on the host, by their paths.

    PRNG keys become their numbers. Empty containers vanish.

    Example:
      >>> as_dicts({"a": (np.ones(2), {}), "b": np.zeros(())})
      {'a': {'0': array([1., 1.])}, 'b': array(0.)}
    """
    nested: dict[str, Any] = {}
    for path, leaf in _tree.flatten(tree).items():
        *above, name = path.split("/")
        inside = nested
        for key in above:
            inside = inside.setdefault(key, {})
        inside[name] = _on_host(leaf)
    return nested


def _on_host(leaf: Any) -> np.ndarray:
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.array(leaf)  # a copy: the device's may be donated to the next step


def like(tree: Mapping[str, Any], template: Any) -> Any:
    """The arrays of `as_dicts` in the containers and types of a template.

    Args:
      tree: from `as_dicts`, perhaps through a file.
      template: arrays or ShapeDtypeStructs.

    Raises:
      ValueError: if paths, shapes or types differ, naming the first that does.
    """
    found = _tree.flatten(dict(tree))
    wanted = _tree.flatten(template)
    if odd := sorted(set(found) ^ set(wanted)):
        raise ValueError(f"the checkpoint and the state differ at {odd[0]!r}")

    def leaf(path: str, wanted: Any) -> Any:
        array = jnp.asarray(found[path])
        if jnp.issubdtype(wanted.dtype, jax.dtypes.prng_key):
            array = jax.random.wrap_key_data(array)
        if array.shape != wanted.shape or array.dtype != wanted.dtype:
            raise ValueError(
                f"{path} is {array.dtype} {array.shape} in the checkpoint, expected "
                f"{wanted.dtype} {wanted.shape}"
            )
        return array

    return _tree.map_with_path(leaf, template)


def write(path: str | os.PathLike, tree: Any, meta: Mapping[str, Any]) -> None:
    """Writes a tree and its notes into the directory `path`, whole or not at all.

    All is written and flushed to the disk under another name, with the sha256 of each
    file, and then renamed.

    Args:
      path: the directory; replaced if it is there.
      tree: any tree of arrays.
      meta: what JSON can hold.

    Raises:
      OSError: if it cannot be written; what was there before stays.
    """
    path = pathlib.Path(path).absolute()
    partial = path.with_name(f"{PARTIAL}{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        save(partial / DATA, as_dicts(tree))
        (partial / META).write_text(json.dumps(meta, indent=1) + "\n")
        sums = {name: _digest(partial / name) for name in _contents(partial)}
        (partial / MANIFEST).write_text(json.dumps(sums, indent=1) + "\n")
        for folder, _, names in os.walk(partial):
            for name in [*names, "."]:
                _files.sync(os.path.join(folder, name))
        if path.exists():
            shutil.rmtree(path)
        os.rename(partial, path)
        _files.sync(path.parent)
    except Exception as error:  # tensorstore has its own for a full disk
        shutil.rmtree(partial, ignore_errors=True)
        raise OSError(f"{path} could not be written: {error}") from error


def damage(path: str | os.PathLike) -> str | None:
    """What is wrong with a directory that `write` wrote, or None if it is whole."""
    path = pathlib.Path(path)
    try:
        sums = json.loads((path / MANIFEST).read_text())
        for name, expected in sums.items():
            if _digest(path / name) != expected:
                return f"{name} has changed"
        if missing := {DATA, META} - {name.split("/")[0] for name in sums}:
            return f"it has no {min(missing)}"
    except FileNotFoundError as error:
        return f"{pathlib.Path(error.filename).name} is missing"
    except (OSError, ValueError, AttributeError, TypeError) as error:
        return f"{MANIFEST} cannot be read ({error})"
    return None


def read(path: str | os.PathLike) -> Checkpoint:
    """Reads what `write` wrote, after checking it.

    Raises:
      FileNotFoundError: if there is no directory.
      ValueError: if it is not whole.
    """
    path = pathlib.Path(path).absolute()
    if not path.is_dir():
        raise FileNotFoundError(f"no checkpoint at {path}")
    if problem := damage(path):
        raise ValueError(f"{path} is damaged: {problem}")
    tree = jax.tree.map(np.asarray, load(path / DATA))
    return Checkpoint(path, tree, json.loads((path / META).read_text()))


def newest(
    folder: str | os.PathLike, warn: Callable[[str], None], *, wanted: Any = None
) -> Checkpoint | None:
    """The newest whole checkpoint of a `writer`'s folder; None if there is none.

    Of many processes, the first one chooses.

    Args:
      folder: the writer's.
      warn: told of each newer one that is damaged, which is then left out.
      wanted: `meta -> bool`, which of them will do; all by default.

    Raises:
      FileNotFoundError: if this process does not see what the first one has chosen.
    """
    if jax.process_count() == 1:
        return _newest(folder, warn, wanted)
    first = jax.process_index() == 0
    found = _newest(folder, warn, wanted) if first else None
    chosen = -1 if found is None else int(found.path.name)
    step = int(multihost_utils.broadcast_one_to_all(np.int32(chosen)))
    return found if first or step < 0 else read(_at(folder, step))


def _newest(
    folder: str | os.PathLike, warn: Callable[[str], None], wanted: Any
) -> Checkpoint | None:
    for path in reversed(_steps(pathlib.Path(folder))):
        try:
            found = read(path)
        except (OSError, ValueError) as error:
            warn(f"{error}; an earlier one is used")
            continue
        if wanted is None or wanted(found.meta):
            return found
    return None


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
    """Writes checkpoints in a thread of its own; of many that wait, the latest.

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
    desk = _Desk(threading.Condition(), {}, [], [])
    thread = threading.Thread(
        target=_work, args=(desk, folder, keep, best), daemon=True
    )
    top = _best_score(folder) if best else None
    highest = [-np.inf if top is None else top]

    def save(step: int, tree: Any, meta: Mapping[str, Any], score=None) -> None:
        _raise(desk)
        # Copies: by the time that they are written, the caller has gone on.
        notes = copy.deepcopy({**meta, "step": step, "score": score})
        job = (step, as_dicts(_gathered(tree)), notes)
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


class _Desk(NamedTuple):
    """What the writing thread shares: jobs stay in `waiting` until they are done."""

    changed: threading.Condition
    waiting: dict[str, tuple[int, Any, Any]]
    failures: list[Exception]
    closed: list[bool]


def _raise(desk: _Desk) -> None:
    if desk.failures:
        raise desk.failures[0]


def _work(desk: _Desk, folder: pathlib.Path, keep: int, best: bool) -> None:
    while True:
        with desk.changed:
            desk.changed.wait_for(lambda: desk.waiting or desk.closed)
            if desk.failures or not desk.waiting:
                return
            slot = "best" if "best" in desk.waiting else "last"
            job = step, tree, meta = desk.waiting[slot]
        try:
            write(_at(folder, step), tree, meta)
            _clean(folder, keep, best)
        except Exception as error:
            desk.failures.append(error)
        with desk.changed:
            done = [s for s, waits in desk.waiting.items() if waits is job]
            for slot in done:
                del desk.waiting[slot]
            desk.changed.notify_all()


def _at(folder: str | os.PathLike, step: int) -> pathlib.Path:
    return pathlib.Path(folder) / f"{step:06d}"


def _steps(folder: pathlib.Path) -> list[pathlib.Path]:
    """The checkpoints of a folder, in the order of their steps."""
    if not folder.is_dir():
        return []
    found = [p for p in folder.iterdir() if p.name.isdecimal() and p.is_dir()]
    return sorted(found, key=lambda path: int(path.name))


def _scores(folder: pathlib.Path) -> dict[pathlib.Path, float]:
    found = {}
    for path in _steps(folder):
        try:
            score = json.loads((path / META).read_text())["score"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if score is not None:
            found[path] = score
    return found


def _best_score(folder: pathlib.Path) -> float | None:
    return max(_scores(folder).values(), default=None)


def _clean(folder: pathlib.Path, keep: int, best: bool) -> None:
    """Removes what is neither among the latest nor the best."""
    steps, scores = _steps(folder), _scores(folder)
    kept = set(steps[-keep:])
    if best and scores:
        kept.add(max(scores, key=scores.__getitem__))  # the first of several
    for path in set(steps) - kept:
        # Renamed first: removing takes several steps, and none may look whole.
        gone = path.with_name(f"{PARTIAL}{path.name}")
        shutil.rmtree(gone, ignore_errors=True)
        os.rename(path, gone)
        shutil.rmtree(gone, ignore_errors=True)


def _contents(folder: pathlib.Path) -> list[str]:
    found = (p for p in sorted(folder.rglob("*")) if p.is_file())
    return [p.relative_to(folder).as_posix() for p in found]


def _digest(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
