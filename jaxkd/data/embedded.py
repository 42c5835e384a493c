"""The data set inside the package: real images for a first run without a network.

Optical Recognition of Handwritten Digits, the 1,797 images of the UCI repository's test
file (E. Alpaydin and C. Kaynak, 1998, https://doi.org/10.24432/C50P49, CC BY 4.0), in
the form in which scikit-learn distributes it: one line of 64 counts and the label for
each image.
"""

import gzip
import importlib.resources

import numpy as np

from jaxkd.data import classes, dataset

NAME = "digits"
TEST_SIZE = 500
TEST_SEED = 1998


def _read() -> tuple[np.ndarray, np.ndarray]:
    """All images, uint8 `[1797, 8, 8, 1]`, and their labels.

    A pixel counts the ink in a block of 4 by 4, 0 to 16; it is scaled to 0 to 255 and
    rounded, so that a division by 255 gives the inked share to within 1/510.
    """
    path = importlib.resources.files("jaxkd.data") / "digits.csv.gz"
    rows = gzip.decompress(path.read_bytes()).decode().split()
    values = np.array([row.split(",") for row in rows], np.uint8)
    images = np.rint(values[:, :-1] * (255 / 16)).astype(np.uint8)
    return images.reshape(-1, 8, 8, 1), values[:, -1].astype(np.int32)


def official(split: str) -> dataset.Dataset:
    """Return the digits' "train" (1,297 images) or "test" (500, 50 of each class).

    The file has no split of its own that could be used: this one is drawn once, by a
    fixed seed, so writers occur on both sides, as in most published use of it.
    """
    images, labels = _read()
    place = np.arange(len(labels), dtype=np.int32)
    everything = dataset.Dataset.of_images(
        NAME, split, images, labels, place, classes.DIGITS
    )
    test = dataset.choose(everything, TEST_SIZE, seed=TEST_SEED)
    chosen = test if split == "test" else np.delete(place, test)
    part = dataset.take(everything, chosen, split)
    return part.replace(index=np.arange(len(part), dtype=np.int32))
