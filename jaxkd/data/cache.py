"""Decoded splits on disk: .npy files, memory-mapped, and what they must hash to."""

import contextlib
import json
import os
import pathlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxkd import store
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
    """Return where a decoded split lies."""
    return data_dir / "decoded" / name / split


def write(
    where: pathlib.Path,
    dataset: Dataset,
    *,
    official_splits: Sequence[str],
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Write a split as one directory of `store.write_dir`.

    The official splits are written beside it, so that they can be listed without the
    archives that it was prepared from. Of two processes that write the same at once,
    the second finds a whole split and leaves it. `facts`, such as the files that it was
    decoded from, are what the function `facts` returns.
    """
    check(dataset)
    arrays = {name: np.asarray(getattr(dataset, name)) for name in ARRAYS}
    record = {
        "format": FORMAT,
        "name": dataset.name,
        "split": dataset.split,
        "classes": list(dataset.classes),
        "official_splits": list(official_splits),
        "arrays": {
            name: {"shape": list(array.shape), "digest": digest(array)}
            for name, array in arrays.items()
        },
        "facts": dict(facts or {}),
    }
    if _holds(where, record):
        return

    def fill(folder: pathlib.Path) -> None:
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", array)
        (folder / RECORD).write_text(json.dumps(record, indent=1))

    store.write_dir(where, fill)


def _holds(where: pathlib.Path, record: dict[str, Any]) -> bool:
    """Return whether this very split is there, undamaged."""
    try:
        _read(where)
        found = json.loads((where / RECORD).read_text())
        same = found["arrays"] == record["arrays"]
        return same and found.get("facts", {}) == record["facts"]
    except DAMAGE:
        return False


def facts(where: pathlib.Path) -> dict[str, Any]:
    """Return the facts that were written with a split; none if there is no split."""
    try:
        return json.loads((where / RECORD).read_text()).get("facts", {})
    except DAMAGE:
        return {}


def official_splits(data_dir: pathlib.Path, name: str) -> list[str] | None:
    """Return the official splits of a data set, if any split of it was decoded."""
    for record in sorted((data_dir / "decoded" / name).glob(f"[!.]*/{RECORD}")):
        with contextlib.suppress(ValueError, KeyError, OSError):
            return json.loads(record.read_text())["official_splits"]
    return None


def read(where: pathlib.Path) -> Dataset | None:
    """A cached split, its images memory-mapped; None if it has to be decoded (again).

    Warns:
      UserWarning: if something is there that is truncated or altered, saying what.
    """
    store.recover(where)
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
