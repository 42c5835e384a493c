"""Decoded splits on disk: .npy files, memory-mapped, and what they must hash to."""

import contextlib
import json
import os
import pathlib
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxkd.data.dataset import Dataset, check, digest

FORMAT = 1
RECORD = "split.json"
ARRAYS = ("images", "labels", "index")

# What reading a truncated or altered file raises.
DAMAGE = (ValueError, KeyError, TypeError, OSError, EOFError)


def default_data_dir() -> pathlib.Path:
    """JAXKD_DATA, or jaxkd's folder in the user's cache."""
    if given := os.environ.get("JAXKD_DATA"):
        return pathlib.Path(given).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return pathlib.Path(base).expanduser() / "jaxkd"


def folder(data_dir: pathlib.Path, name: str, split: str) -> pathlib.Path:
    """Where a decoded split lies."""
    return data_dir / "decoded" / name / split


def write(
    where: pathlib.Path, dataset: Dataset, *, official_splits: Sequence[str]
) -> None:
    """Writes a split under a temporary name, then renames the whole folder.

    The official splits are written beside it, so that a cached data set can say which
    it has without what it was prepared with.

    A crash leaves a folder whose name starts with a dot, which nothing reads. Of two
    processes that write the same at once, the second finds a whole split and leaves it.
    """
    check(dataset)
    where.parent.mkdir(parents=True, exist_ok=True)
    work = pathlib.Path(tempfile.mkdtemp(dir=where.parent, prefix=f".{where.name}-"))
    try:
        arrays = {}
        for name in ARRAYS:
            array = getattr(dataset, name)
            np.save(work / f"{name}.npy", array)
            arrays[name] = {"shape": list(array.shape), "digest": digest(array)}
        record = {
            "format": FORMAT,
            "name": dataset.name,
            "split": dataset.split,
            "classes": list(dataset.classes),
            "official_splits": list(official_splits),
            "arrays": arrays,
        }
        (work / RECORD).write_text(json.dumps(record, indent=1))
        if not _holds(where, arrays):
            _put(work, where)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _holds(where: pathlib.Path, arrays: dict[str, dict[str, Any]]) -> bool:
    """Whether these very arrays are there, undamaged."""
    try:
        _read(where)
        return json.loads((where / RECORD).read_text())["arrays"] == arrays
    except DAMAGE:
        return False


def _put(work: pathlib.Path, where: pathlib.Path) -> None:
    """Moves a complete folder into place, moving a previous one out of the way."""
    for _ in range(10):
        if where.exists():
            old = tempfile.mkdtemp(dir=where.parent, prefix=".old-")
            with contextlib.suppress(OSError):  # another process was quicker
                os.rename(where, os.path.join(old, "split"))
            shutil.rmtree(old, ignore_errors=True)
        try:
            os.rename(work, where)
            return
        except OSError:
            continue
    raise OSError(f"cannot put a decoded split at {where}: it keeps reappearing")


def official_splits(data_dir: pathlib.Path, name: str) -> list[str] | None:
    """The official splits of a data set, if any split of it was decoded."""
    for record in sorted((data_dir / "decoded" / name).glob(f"[!.]*/{RECORD}")):
        with contextlib.suppress(ValueError, KeyError, OSError):
            return json.loads(record.read_text())["official_splits"]
    return None


def read(where: pathlib.Path) -> Dataset | None:
    """A cached split, its images memory-mapped; None if it has to be decoded (again).

    Warns:
      UserWarning: if something is there that is truncated or altered, saying what.
    """
    if not (where / RECORD).exists():
        return None
    try:
        return _read(where)
    except DAMAGE as error:
        message = f"{where} is damaged and will be decoded again: {error}"
        warnings.warn(message, stacklevel=2)
        return None


def _read(where: pathlib.Path) -> Dataset:
    record = json.loads((where / RECORD).read_text())
    if record["format"] != FORMAT:
        raise ValueError(f"format {record['format']}, expected {FORMAT}")
    arrays = {}
    for name in ARRAYS:
        array = np.load(where / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        expected = record["arrays"][name]
        # The whole content, every time: about 0.1 s for CIFAR, and a wrong byte in a
        # training set would never be noticed later.
        if (
            list(array.shape) != expected["shape"]
            or digest(array) != expected["digest"]
        ):
            raise ValueError(f"{name}.npy is not what was written")
        arrays[name] = array
    classes = tuple(record["classes"])
    dataset = Dataset.of_images(
        record["name"], record["split"], classes=classes, **arrays
    )
    check(dataset)
    return dataset
