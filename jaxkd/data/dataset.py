"""A decoded split, and what can be asked of it: a subset, its statistics, its hash."""

import hashlib
import json
import pathlib
from typing import NamedTuple

import numpy as np

from jaxkd import _check

MASK = (1 << 64) - 1
CHUNK = 4096  # images at a time, so that float copies of a whole split never exist


class Dataset(NamedTuple):
    """A decoded split on the host.

    Attributes:
      name: the data set's name, as `load` takes it.
      split: the split's name, as `load` takes it.
      images: uint8 `[n, height, width, channels]`, memory-mapped where it comes from
        the cache.
      labels: int32 `[n]`, class indices.
      index: int32 `[n]`, the place of each example in the official split ("train" or
        "test"): what cached teacher outputs are looked up by.
      classes: the classes' names, by label.
    """

    name: str
    split: str
    images: np.ndarray
    labels: np.ndarray
    index: np.ndarray  # type: ignore[assignment]  # a tuple's method of that name
    classes: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        """How many classes there are, present in this split or not."""
        return len(self.classes)


def check(dataset: Dataset) -> None:
    """The arrays of a data set fit together.

    Raises:
      ValueError: on wrong types or shapes, on an empty split, and on labels that no
        class belongs to.
    """
    images, labels, index = dataset.images, dataset.labels, dataset.index
    if images.ndim != 4 or images.dtype != np.uint8:
        got = f"{images.dtype} {images.shape}"
        raise ValueError(
            f"images must be uint8 [n, height, width, channels], got {got}"
        )
    _check.not_empty(images=images)
    for name, array in {"labels": labels, "index": index}.items():
        if array.shape != images.shape[:1] or array.dtype != np.int32:
            got = f"{array.dtype} {array.shape}"
            raise ValueError(f"{name} must be int32 [{len(images)}], got {got}")
    low, high = labels.min(), labels.max()
    if low < 0 or high >= dataset.num_classes:
        raise ValueError(
            f"labels must be in [0, {dataset.num_classes}), got {low} to {high} "
            f"in {dataset.name}/{dataset.split}"
        )


def _shuffle_keys(index: np.ndarray, seed: int) -> np.ndarray:
    """A pseudo-random uint64 for each example: splitmix64 of its index and the seed.

    Written out because a subset has to stay the same over years, and numpy keeps only
    the streams of its legacy generator. It hashes the place in the official split, not
    the position, so that a subset of a subset follows the same order.
    """
    x = index.astype(np.uint64) + np.uint64(1)
    x = x * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed * 0xD1342543DE82EF95 & MASK)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    return x ^ (x >> np.uint64(31))


def _rank_in_class(labels: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """How many examples of the same class come before each one in the order of keys."""
    by_class = np.lexsort((keys, labels))
    ordered = labels[by_class]
    rank = np.empty(len(labels), np.int64)
    rank[by_class] = np.arange(len(labels)) - np.searchsorted(ordered, ordered)
    return rank


def choose(dataset: Dataset, n: int, *, seed: int, balanced: bool = True) -> np.ndarray:
    """The positions that `subset` keeps, ascending."""
    _check.whole(1)("n", n)
    _check.whole(0)("seed", seed)
    if n > len(dataset.labels):
        raise ValueError(
            f"n must be at most the {len(dataset.labels)} examples of "
            f"{dataset.name}/{dataset.split}, got {n}"
        )
    keys = _shuffle_keys(dataset.index, seed)
    first = _rank_in_class(dataset.labels, keys) if balanced else np.zeros_like(keys)
    return np.sort(np.lexsort((keys, first))[:n])


def take(dataset: Dataset, positions: np.ndarray, split: str) -> Dataset:
    """The examples at these positions, under another split name."""
    return dataset._replace(
        split=split,
        images=np.asarray(dataset.images[positions]),
        labels=np.asarray(dataset.labels[positions]),
        index=np.asarray(dataset.index[positions]),
    )


def subset(dataset: Dataset, n: int, *, seed: int, balanced: bool = True) -> Dataset:
    """A fixed random subset of `n` examples, in the order of the data set.

    The choice depends on nothing but `seed` and the examples' places in the official
    split. With the same seed a smaller subset is contained in a larger one, so that a
    curve over n adds examples rather than exchanging them.

    Args:
      dataset: what to choose from.
      n: how many examples, 1 to all of them.
      seed: which choice, >= 0.
      balanced: as many examples of each class as of any other, to within one. A class
        that has too few gives all it has and the others make up for it.

    Returns:
      The data set of the chosen examples, its arrays copied into memory.

    Raises:
      ValueError: if `n` is more than there is.

    Example:
      >>> from jaxkd import data
      >>> few = data.subset(data.load("digits", "train"), 100, seed=0)
      >>> np.bincount(few.labels).tolist()
      [10, 10, 10, 10, 10, 10, 10, 10, 10, 10]
    """
    positions = choose(dataset, n, seed=seed, balanced=balanced)
    return take(dataset, positions, dataset.split)


def digest(array: np.ndarray) -> str:
    """The sha256 of an array's type, shape and content."""
    header = f"{array.dtype.str}{array.shape}".encode()
    return hashlib.sha256(header + b"\0" + np.ascontiguousarray(array).data).hexdigest()


def _cached_digest(images: np.ndarray) -> str | None:
    """The digest that was written beside a mapped file, if this is all of it."""
    if not isinstance(images, np.memmap) or not images.filename:
        return None
    record = pathlib.Path(images.filename).with_name("split.json")
    if not record.exists():
        return None
    written = json.loads(record.read_text())["arrays"]["images"]
    whole = list(images.shape) == written["shape"] and images.flags.c_contiguous
    return written["digest"] if whole and images.mode == "r" else None


def fingerprint(dataset: Dataset) -> str:
    """The sha256 of a data set's content: images, labels and index, not its names.

    It decides whether outputs of a teacher that were stored earlier still belong to
    these images. The images' part is written beside a cached split and read from there.

    Args:
      dataset: any data set.

    Returns:
      64 hexadecimal digits.
    """
    images = _cached_digest(dataset.images) or digest(dataset.images)
    parts = images + digest(dataset.labels) + digest(dataset.index)
    return hashlib.sha256(parts.encode()).hexdigest()


def channel_statistics(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel over all pixels of all images.

    Args:
      dataset: normally the training split, whose statistics serve every split.

    Returns:
      mean and sd, float32 `[channels]`, in units of [0, 1]: what `augment.normalise`
      takes after `augment.to_float`.

    Example:
      >>> pixels = np.array([0, 255], np.uint8).reshape(2, 1, 1, 1)
      >>> zero = np.zeros(2, np.int32)
      >>> mean, sd = channel_statistics(Dataset("d", "s", pixels, zero, zero, ("a",)))
      >>> float(mean[0]), float(sd[0])
      (0.5, 0.5)
    """
    channels = dataset.images.shape[-1]
    total, squares = np.zeros((2, channels), np.uint64)
    # Whole numbers throughout: the result is exact, and the same in any order.
    for start in range(0, len(dataset.images), CHUNK):
        pixels = np.asarray(dataset.images[start : start + CHUNK]).reshape(-1, channels)
        for c in range(channels):
            counts = np.bincount(pixels[:, c], minlength=256).astype(np.uint64)
            total[c] += counts @ np.arange(256, dtype=np.uint64)
            squares[c] += counts @ np.arange(256, dtype=np.uint64) ** 2
    n = dataset.images.size // channels
    mean = total / n
    sd = np.sqrt(np.maximum(squares / n - mean**2, 0))
    return (mean / 255).astype(np.float32), (sd / 255).astype(np.float32)
