"""Which stored row belongs to which example: by its index, checked by its content."""

import hashlib

import numpy as np

from jaxkd.data import Dataset
from jaxkd.data.dataset import names


def contents(dataset: Dataset) -> np.ndarray:
    """Return eight bytes of a hash of each example, "index" excepted, uint64 `[n]`."""
    columns = [dataset.columns[name] for name in names(dataset) if name != "index"]
    digests = bytearray()
    for example in zip(*columns, strict=True):
        digest = hashlib.blake2b(digest_size=8)
        for value in example:
            digest.update(np.ascontiguousarray(value).tobytes())
        digests += digest.digest()
    return np.frombuffer(bytes(digests), np.uint64)


def refuse_duplicates(index: np.ndarray) -> None:
    """Every example has an index of its own."""
    values, counts = np.unique(index, return_counts=True)
    if (counts > 1).any():
        raise ValueError(
            f"dataset.index must not repeat, since scores are looked up by it: "
            f"{values[counts > 1][0]} occurs {counts.max()} times; score the data "
            "without the repetitions"
        )


def rows_of(dataset: Dataset, index: np.ndarray, content: np.ndarray) -> np.ndarray:
    """The stored row of each example of a data set that is part of the stored one.

    Args:
      dataset: a subset of what was stored, in any order.
      index: of the stored rows, without repetition.
      content: of the stored rows, from `contents`.

    Returns:
      Positions `[n]`.

    Raises:
      ValueError: if an example was not stored, occurs twice, or is not the one that was
        stored under its index.
    """
    refuse_duplicates(dataset.index)
    order = np.argsort(index)
    place = np.searchsorted(index, dataset.index, sorter=order)
    rows = order[np.minimum(place, len(order) - 1)]
    missing = index[rows] != dataset.index
    if missing.any():
        raise ValueError(
            f"{missing.sum()} of {len(rows)} examples were not scored, the first has "
            f"index {dataset.index[missing][0]}; score the whole data set they are from"
        )
    found = contents(dataset)
    differs = found != content[rows]
    if differs.any():
        if np.array_equal(np.sort(found), np.sort(content[rows])):
            what = "the examples are in another order than their index says"
        else:
            what = "the data was changed, or is another data set"
        raise ValueError(
            f"{differs.sum()} of {len(rows)} examples are not those that were scored "
            f"under their index, the first has index {dataset.index[differs][0]}: "
            f"{what}; score this data under another path"
        )
    return rows
