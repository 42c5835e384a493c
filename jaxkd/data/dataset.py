"""A decoded split, and what can be asked of it: a subset, its statistics, its hash."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxkd import _check

MASK = (1 << 64) - 1
CHUNK = 4096  # images at a time, so that float copies of a whole split never exist


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A split on the host: named columns with one entry for each example.

    Attributes:
      name: the data set's name, as `load` takes it.
      split: the split's name, as `load` takes it.
      columns: arrays `[n, ...]` by name. For images "image" uint8 `[n, height, width,
        channels]`, memory-mapped where it comes from the cache, and "label" int32
        `[n]`. "index" int32 `[n]` is the place of each example in the official split
        ("train" or "test"), by which stored teacher outputs are looked up; it is added
        if it is missing.
      classes: the classes' names, by label; empty if labels are no classes.
    """

    name: str
    split: str
    columns: Mapping[str, np.ndarray]
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        columns = dict(self.columns)
        if columns and "index" not in columns:
            n = len(next(iter(columns.values())))
            columns["index"] = np.arange(n, dtype=np.int32)
        object.__setattr__(self, "columns", columns)

    @classmethod
    def of_images(
        cls,
        name: str,
        split: str,
        images: np.ndarray,
        labels: np.ndarray,
        index: np.ndarray | None = None,
        classes: tuple[str, ...] = (),
    ) -> "Dataset":
        """Make a data set of images and one label each."""
        columns = {"image": images, "label": labels}
        return cls(name, split, columns | _given(index=index), classes)

    def replace(self, **changes: Any) -> "Dataset":
        """Return a copy with other columns by their names, name, split or classes."""
        own = {k: v for k, v in changes.items() if k in ("name", "split", "classes")}
        columns = {k: v for k, v in changes.items() if k not in own}
        return dataclasses.replace(self, columns={**self.columns, **columns}, **own)

    def __len__(self) -> int:
        return len(self.index)

    @property
    def images(self) -> np.ndarray:
        """The column "image"."""
        return self.columns["image"]

    @property
    def labels(self) -> np.ndarray:
        """The column "label"."""
        return self.columns["label"]

    @property
    def index(self) -> np.ndarray:
        """The column "index"."""
        return self.columns["index"]

    @property
    def num_classes(self) -> int:
        """How many classes there are, present in this split or not."""
        return len(self.classes)


def _given(**columns: np.ndarray | None) -> dict[str, np.ndarray]:
    return {name: array for name, array in columns.items() if array is not None}


def check(dataset: Dataset) -> None:
    """Check that the columns of a data set fit together.

    Raises:
      ValueError: on wrong types or shapes, columns of different length, integers beyond
        32 bits, an empty split, and labels that no class belongs to.
    """
    where = f"{dataset.name}/{dataset.split}"
    _check.columns(dict(dataset.columns))
    lengths = {name: len(array) for name, array in dataset.columns.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"all columns of {where} must have one length, got {lengths}")
    _check.not_empty(**dataset.columns)
    images, index = dataset.columns.get("image", np.zeros(0)), dataset.index
    floats = np.issubdtype(images.dtype, np.floating)
    if not floats and (images.ndim != 4 or images.dtype != np.uint8):
        got = f"{images.dtype} {images.shape}"
        raise ValueError(
            "images must be uint8 [n, height, width, channels] or floats, got "
            f"{got} in {where}"
        )
    if index.ndim != 1 or index.dtype != np.int32:
        raise ValueError(f"index must be int32 [n], got {index.dtype} {index.shape}")
    labels = dataset.columns.get("label")
    if labels is None or not dataset.classes:
        return
    if labels.dtype != np.int32:
        raise ValueError(
            f"labels must be int32 where there are classes, got {labels.dtype}"
        )
    low, high = labels.min(), labels.max()
    if low < 0 or high >= dataset.num_classes:
        raise ValueError(
            f"labels must be in [0, {dataset.num_classes}), got {low} to {high} "
            f"in {where}"
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
    """Return the positions that `subset` keeps, ascending."""
    _check.whole(1)("n", n)
    _check.whole(0)("seed", seed)
    if n > len(dataset):
        raise ValueError(
            f"n must be at most the {len(dataset)} examples of "
            f"{dataset.name}/{dataset.split}, got {n}"
        )
    keys = _shuffle_keys(dataset.index, seed)
    by_class = balanced and dataset.classes and dataset.labels.ndim == 1
    first = _rank_in_class(dataset.labels, keys) if by_class else np.zeros_like(keys)
    return np.sort(np.lexsort((keys, first))[:n])


def take(dataset: Dataset, positions: np.ndarray, split: str) -> Dataset:
    """Return the examples at these positions, under another split name."""
    columns = {n: np.asarray(a[positions]) for n, a in dataset.columns.items()}
    return dataclasses.replace(dataset, split=split, columns=columns)


def subset(dataset: Dataset, n: int, *, seed: int, balanced: bool = True) -> Dataset:
    """Return a fixed random subset of `n` examples, in the order of the data set.

    The choice depends on nothing but `seed` and the examples' places in the official
    split. With the same seed a smaller subset is contained in a larger one, so that a
    curve over n adds examples rather than exchanging them.

    Args:
      dataset: what to choose from.
      n: how many examples, 1 to all of them.
      seed: which choice, >= 0.
      balanced: as many examples of each class as of any other, to within one. A class
        that has too few gives all it has and the others make up for it. Data without
        classes are drawn at random.

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


def balance(dataset: Dataset) -> Dataset:
    """Repeat the examples of small classes until all classes are equally large.

    The repeated ones are the first of the class, and keep their index. The copy lies in
    memory, at most as many times larger as there are classes.

    Example:
      >>> columns = {"label": np.array([0, 0, 0, 1], np.int32)}
      >>> balance(Dataset("d", "train", columns, ("a", "b"))).labels.tolist()
      [0, 0, 0, 1, 1, 1]
    """
    counts = np.bincount(dataset.labels, minlength=dataset.num_classes)
    positions = [
        np.resize(np.flatnonzero(dataset.labels == label), counts.max())
        for label in np.flatnonzero(counts)
    ]
    return take(dataset, np.sort(np.concatenate(positions)), dataset.split)


def select_classes(dataset: Dataset, classes: Sequence[str]) -> Dataset:
    """Return the examples of some classes, labelled anew in the order of the names.

    Args:
      dataset: any with `classes`.
      classes: their names, each once; the new label of an example is the place of its
        class among them.

    Raises:
      ValueError: for a name that the data set does not have, or that is given twice.
    """
    names = list(classes)
    if unknown := [name for name in names if name not in dataset.classes]:
        raise ValueError(
            f"classes must be of {dataset.name}'s, {', '.join(dataset.classes)}; got "
            f"{unknown[0]!r}"
        )
    if not names or len(set(names)) < len(names):
        raise ValueError(f"classes must be named, each once, got {names}")
    new = np.full(dataset.num_classes, -1, np.int32)
    new[[dataset.classes.index(name) for name in names]] = np.arange(len(names))
    part = take(dataset, np.flatnonzero(new[dataset.labels] >= 0), dataset.split)
    return part.replace(label=new[part.labels], classes=tuple(names))


def digest(array: np.ndarray) -> str:
    """Return the sha256 of an array's type, shape and content."""
    header = f"{array.dtype.str}{array.shape}".encode()
    return hashlib.sha256(header + b"\0" + np.ascontiguousarray(array).data).hexdigest()


def _cached_digest(images: np.ndarray) -> str | None:
    """Return the digest that was written beside a mapped file, if this is all of it."""
    if not isinstance(images, np.memmap) or not images.filename:
        return None
    record = pathlib.Path(images.filename).with_name("split.json")
    if not record.exists():
        return None
    written = json.loads(record.read_text())["arrays"]["images"]
    whole = list(images.shape) == written["shape"] and images.flags.c_contiguous
    return written["digest"] if whole and images.mode == "r" else None


def names(dataset: Dataset) -> list[str]:
    """Return the names of the columns, images and their labels first."""
    usual = [name for name in ("image", "label", "index") if name in dataset.columns]
    return [*usual, *sorted(set(dataset.columns) - set(usual))]


def fingerprint(dataset: Dataset) -> str:
    """Return the sha256 of a data set's content: all its columns, not its own name.

    It decides whether outputs of a teacher that were stored earlier still belong to
    these examples. That of images is written beside a cached split and read from there.

    Args:
      dataset: any data set.

    Returns:
      64 hexadecimal digits.
    """
    parts = ""
    for name in names(dataset):
        array = dataset.columns[name]
        known = _cached_digest(array) if name == "image" else None
        named = "" if name in ("image", "label", "index") else name
        parts += named + (known or digest(array))
    return hashlib.sha256(parts.encode()).hexdigest()


def channel_statistics(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel over all pixels of all images.

    Args:
      dataset: normally the training split, whose statistics serve every split.

    Returns:
      mean and sd, float32 `[channels]`, in units of [0, 1]: what `augment.normalise`
      takes after `augment.to_float`. Of images that are floats, in their own unit.

    Example:
      >>> pixels = np.array([0, 255], np.uint8).reshape(2, 1, 1, 1)
      >>> mean, sd = channel_statistics(Dataset("d", "s", {"image": pixels}))
      >>> float(mean[0]), float(sd[0])
      (0.5, 0.5)
    """
    channels = dataset.images.shape[-1]
    if np.issubdtype(dataset.images.dtype, np.floating):
        axes = tuple(range(dataset.images.ndim - 1))
        moments = (f(dataset.images, axes, np.float64) for f in (np.mean, np.std))
        mean, sd = (np.asarray(m, np.float32) for m in moments)
        return mean, sd
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
