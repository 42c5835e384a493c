"""A directory with a tree, notes and sums: whole, or found out not to be."""

import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxkd import _files
from jaxkd.checkpoint import trees

DATA, META, MANIFEST = "data", "meta.json", "manifest.json"
PARTIAL = ".partial-"


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
        trees.save(partial / DATA, trees.as_dicts(tree))
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
    tree = jax.tree.map(np.asarray, trees.load(path / DATA))
    return Checkpoint(path, tree, json.loads((path / META).read_text()))


def _contents(folder: pathlib.Path) -> list[str]:
    found = (p for p in sorted(folder.rglob("*")) if p.is_file())
    return [p.relative_to(folder).as_posix() for p in found]


def _digest(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
