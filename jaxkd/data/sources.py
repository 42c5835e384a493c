"""Where data sets come from: the names there are, and `load`."""

import difflib
import os

import numpy as np

from jaxkd.data import dataset as datasets, embedded

VALIDATION_SHARE = 0.1
VALIDATION_SEED = (
    20150309  # its own, so that no small seed of `subset` repeats the choice
)
SPLITS = ("train", "test", "validation", "train_rest")

Path = str | os.PathLike[str]


def names() -> list[str]:
    """The data sets that `load` knows by itself, the embedded one first."""
    return [embedded.NAME]


def load(
    name: str,
    split: str,
    *,
    archives: Path | None = None,
    data_dir: Path | None = None,
) -> datasets.Dataset:
    """A split of a data set."""
    if name not in names():
        near = difflib.get_close_matches(name, names(), 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"no data set {name!r}; there are {names()}{hint}")
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, got {split!r}")
    if split in ("train", "test"):
        return embedded.official(split)
    return held_out(embedded.official("train"), split)


def held_out(train: datasets.Dataset, split: str) -> datasets.Dataset:
    """The "validation" slice of the training set, or the "train_rest" without it."""
    n = max(1, round(VALIDATION_SHARE * len(train.labels)))
    mine = datasets.choose(train, n, seed=VALIDATION_SEED)
    if split == "train_rest":
        keep = np.ones(len(train.labels), bool)
        keep[mine] = False
        mine = np.flatnonzero(keep)
    return datasets.take(train, mine, split)
