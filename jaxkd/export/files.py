"""Files that are whole or not there, and the notes kept inside them."""

import importlib
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from jaxkd.data import Preprocessing
from jaxkd.export.edges import FLOAT, Ends

VERSION = 1  # of the notes; files of another version are refused
KEY = "jaxkd"


def check_directory(path: str | os.PathLike) -> None:
    """There is a directory to write `path` to; asked before any work starts."""
    parent = pathlib.Path(path).absolute().parent
    if not parent.is_dir():
        raise FileNotFoundError(f"no directory {parent} to write {path} to")
    if pathlib.Path(path).is_dir():
        raise ValueError(f"path must be a file, got the directory {path}")


def notes(
    format: str,
    image_shape: Sequence[int],
    batch: int | None,
    name: str,
    classes: Sequence[str],
    ends: Ends = FLOAT,
    preprocessing: Preprocessing | None = None,
) -> str:
    """Return what `load` wants to know of a file, as JSON."""
    return json.dumps(
        {
            "version": VERSION,
            "format": format,
            "name": name,
            "image_shape": [int(n) for n in image_shape],
            "batch": batch,
            "classes": list(classes),
            "input": ends[0]._asdict(),
            "output": ends[1]._asdict(),
            "preprocessing": preprocessing and preprocessing.to_json(),
        }
    )


def read_notes(text: str | bytes, path: Any) -> dict[str, Any]:
    """Return the notes of a file.

    Raises:
      ValueError: if they are not notes of this version.
    """
    try:
        found = json.loads(text)
        version = found["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} was not written by jaxkd.export") from error
    if version != VERSION:
        raise ValueError(
            f"{path} is of format version {version!r}; this jaxkd reads {VERSION}"
        )
    return found


def optional(package: str, extra: str) -> Any:
    """Return a package that not everybody installs.

    Raises:
      ImportError: without it, saying what to install.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(
            f"{package} is needed: pip install 'jaxkd-distill[{extra}]'"
        ) from error
