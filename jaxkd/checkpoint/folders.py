"""A folder of checkpoints named after their steps: "000012"."""

import json
import os
import pathlib
import re
import warnings
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxkd import store
from jaxkd.checkpoint import whole


def at(folder: str | os.PathLike, step: int) -> pathlib.Path:
    """Return where the checkpoint of a step is."""
    return pathlib.Path(folder) / f"{step:06d}"


def steps(folder: pathlib.Path) -> list[pathlib.Path]:
    """The checkpoints of a folder, in the order of their steps; no other directory."""
    if not folder.is_dir():
        return []
    named = [p for p in folder.iterdir() if p.name.isascii() and p.name.isdecimal()]
    found = [p for p in named if p == at(folder, int(p.name)) and store.is_ours(p)]
    return sorted(found, key=lambda path: int(path.name))


def newest(
    folder: str | os.PathLike, warn: Callable[[str], None], *, wanted: Any = None
) -> whole.Checkpoint | None:
    """Return the newest whole checkpoint of a `writer`'s folder; None if there is none.

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
    return found if first or step < 0 else whole.read(at(folder, step))


def _newest(
    folder: str | os.PathLike, warn: Callable[[str], None], wanted: Any
) -> whole.Checkpoint | None:
    for path in reversed(steps(pathlib.Path(folder))):
        try:
            found = whole.read(path)
        except (OSError, ValueError) as error:
            warn(f"{error}; an earlier one is used")
            continue
        if wanted is None or wanted(found.meta):
            return found
    return None


def _scores(folder: pathlib.Path) -> dict[pathlib.Path, float]:
    found = {}
    for path in steps(folder):
        try:
            score = json.loads((path / whole.META).read_text())["score"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if score is not None:
            found[path] = score
    return found


def best_score(folder: pathlib.Path) -> float | None:
    """Return the highest score in a folder; None if none has one."""
    return max(_scores(folder).values(), default=None)


def clean(folder: pathlib.Path, keep: int, best: bool) -> None:
    """Remove what is neither among the latest nor the best."""
    found, scores = steps(folder), _scores(folder)
    kept = set(found[-keep:])
    if best and scores:
        kept.add(max(scores, key=scores.__getitem__))  # the first of several
    for path in set(found) - kept:
        _remove(path, warnings.warn)


def clear_after(
    folder: str | os.PathLike, step: int, last: int, warn: Callable[[str], None]
) -> None:
    """Remove the checkpoints of later steps than `step`, where a run resumes.

    Anything else under the name of a step up to `last` is renamed. Of several
    processes, the first one does it.
    """
    if jax.process_index() != 0 or not pathlib.Path(folder).is_dir():
        return
    for path in steps(pathlib.Path(folder)):
        if int(path.name) > step:
            _remove(path, warn)
    for path in sorted(pathlib.Path(folder).iterdir()):
        number = int(path.name) if re.fullmatch("[0-9]+", path.name) else -1
        if step < number <= last and path.name == at(folder, number).name:
            store.make_way(path, warn)


def _remove(path: pathlib.Path, warn: Callable[[str], None]) -> None:
    """Remove a checkpoint; with files of others in it, it gets another name."""
    store.make_way(path, warn)
    if path.exists():
        store.remove_dir(path)
