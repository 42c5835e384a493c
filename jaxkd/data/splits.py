"""The splits of a data set of one's own, and who belongs to which."""

from typing import NamedTuple

import numpy as np

from jaxkd.data import augment, dataset as datasets
from jaxkd.data.dataset import Dataset
from jaxkd.data.preprocessing import Preprocessing
from jaxkd.data.stream import Source

SPLITS = ("train", "validation", "test")


class Splits(NamedTuple):
    """The splits of a data set and how networks see its images.

    Attributes:
      train: without the validation images.
      validation: what choices are made by.
      test: what results are measured on.
      preprocessing: it travels with networks that are trained on the images.
    """

    train: Dataset | Source
    validation: Dataset | Source
    test: Dataset | Source
    preprocessing: Preprocessing

    def view(self) -> augment.View:
        """How networks see the images, as `train.learn` and `evaluate` take it."""
        return self.preprocessing.view()


def check_shares(test: float, validation: float) -> None:
    """Refuse shares of a data set that leave no images to train or to measure on."""
    for name, share in (("test", test), ("validation", validation)):
        if not 0 < share <= 0.9:
            raise ValueError(f"{name}: must be a share in (0, 0.9], got {share}")


def split_of(hashed: int, test: float, validation: float) -> str:
    """Return the split of an example by a hash in [0, 2**64).

    >>> split_of(0, 0.1, 0.1), split_of(2**63, 0.1, 0.1)
    ('test', 'train')
    """
    place = hashed / 2**64
    if place < test:
        return "test"
    return "validation" if place < test + validation else "train"


def shares(whole: Dataset, *, test: float, validation: float) -> dict[str, Dataset]:
    """Return the splits of a data set that has none, by a hash of each example's index.

    Raises:
      ValueError: if a split would be empty.
    """
    hashed = datasets._shuffle_keys(whole.index, 0).tolist()
    names = np.array([split_of(h, test, validation) for h in hashed])
    found = {}
    for split in SPLITS:
        if {"test": test, "validation": validation}.get(split) == 0:
            continue
        positions = np.flatnonzero(names == split)
        require(split, len(positions), len(whole))
        found[split] = datasets.take(whole, positions, split)
    return found


def require(split: str, n: int, whole: int) -> None:
    """Refuse a split without examples.

    Raises:
      ValueError: saying what share to ask for.
    """
    if not n:
        key = "test and validation" if split == "train" else split
        change = "smaller" if split == "train" else "larger"
        raise ValueError(
            f"{key}: leaves no images for {split}, of {whole}: make the share {change}"
        )
