"""A tree and its notes in a directory with checksums; a damaged one is refused."""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxkd import store
from jaxkd.checkpoint import trees

META = "meta.json"


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


def write(path: str | os.PathLike, tree: Any, meta: Mapping[str, Any]) -> None:
    """Write a tree and its notes into the directory `path`, whole or not at all.

    Args:
      path: the directory; a checkpoint or an empty directory there is replaced.
      tree: any tree of arrays.
      meta: what JSON can hold.

    Raises:
      ValueError: if something else is at `path`, or JSON cannot hold the notes.
      OSError: if it cannot be written; what was there before stays.
    """
    try:
        notes = json.dumps(meta, indent=1, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"the notes of {path} are not fit for JSON: {error}"
        ) from error

    def fill(folder: pathlib.Path) -> None:
        trees.save_data(folder / trees.DATA, trees.as_dicts(tree))
        (folder / META).write_text(notes)

    trees.write_dir(path, fill)


def has_notes(path: str | os.PathLike) -> bool:
    """Return whether `write` wrote a directory, rather than `save` or orbax alone."""
    path = pathlib.Path(path)
    store.recover(path)
    return store.is_ours(path) and (path / META).is_file()


def damage(path: str | os.PathLike) -> str | None:
    """Return what is wrong with a directory that `write` wrote, None if it is whole."""
    path = pathlib.Path(path)
    if problem := store.damage(path):
        return problem
    missing = [name for name in (trees.DATA, META) if not (path / name).exists()]
    return f"it has no {missing[0]}" if missing else None


def read(path: str | os.PathLike) -> Checkpoint:
    """Read what `write` wrote, after checking it.

    Raises:
      FileNotFoundError: if there is no directory.
      ValueError: if it is not whole.
    """
    path = pathlib.Path(path).absolute()
    store.recover(path)
    if not path.is_dir():
        raise FileNotFoundError(f"no checkpoint at {path}")
    if problem := damage(path):
        raise ValueError(f"{path} is damaged: {problem}")
    tree = jax.tree.map(np.asarray, trees.load_data(path / trees.DATA))
    return Checkpoint(path, tree, json.loads((path / META).read_text()))
