"""Where data sets come from: the names there are, `load` and `prepare`."""

import os
import pathlib

import numpy as np

from jaxkd._text import did_you_mean
from jaxkd.data import (
    archives as archive_files,
    builders,
    cache,
    catalogue,
    dataset as datasets,
    download,
    embedded,
)
from jaxkd.data.specs import SOURCES, DatasetSpec

VALIDATION_SHARE = 0.1
VALIDATION_SEED = 20150309  # far from the small seeds that users give to `subset`
DERIVED = ("validation", "train_rest")

Path = str | os.PathLike[str]


def names() -> list[str]:
    """Return the data sets that `load` knows by itself, the embedded one first."""
    return [embedded.NAME, *SOURCES]


def load(
    name: str,
    split: str,
    *,
    archives: Path | None = None,
    data_dir: Path | None = None,
) -> datasets.Dataset:
    """Return a split of a data set, decoded once and memory-mapped from then on.

    The splits are "train", the whole official training set; "test"; "validation", a
    tenth of "train", as many of each class, always the same; and "train_rest", "train"
    without it. Choose hyper-parameters with the last two, report on "test".

    Nothing is downloaded or prepared that is there already. What is not is taken from
    `archives`, else from the official addresses, verified, prepared with TensorFlow
    Datasets in `data_dir` and decoded (about 20 s for CIFAR-10).

    Args:
      name: "digits" (inside the package, needs no network), "mnist", "fashion_mnist",
        "cifar10", "cifar100", or another image classification data set of TFDS'
        catalogue that is prepared as array_record, or that TensorFlow is there to
        prepare. Such a set has to fit into memory and its images must be equally large;
        if it has an official "validation" split, that one is used.
      split: one of the four above.
      archives: folder with the official archives, packed or unpacked, directly or in a
        sub-folder named like the data set. Then nothing is downloaded. The default is
        JAXKD_ARCHIVES, if that is set.
      data_dir: where prepared data is kept. The default is JAXKD_DATA, else
        ~/.cache/jaxkd. What its folder "decoded" holds is used from then on; delete a
        data set there to have it decoded anew.

    Returns:
      The split. Labels are class indices; CIFAR-100's are the 100 fine classes.

    Raises:
      ValueError: for an unknown name or split, or a damaged archive.
      FileNotFoundError: if `archives` lacks a file; says which, its checksum, its
        address and where to put it.
      ConnectionError: if a download fails, with the same advice.
      ImportError: if something has to be installed for this data set.

    Example:
      >>> digits = load("digits", "test")
      >>> digits.images.shape, digits.num_classes
      ((500, 8, 8, 1), 10)
    """
    root = _root(data_dir)
    if name in names() and split not in ("train", "test", *DERIVED):
        raise ValueError(
            f"split must be one of {['train', 'test', *DERIVED]}, got {split!r}"
        )

    def official(which: str) -> datasets.Dataset:
        if name == embedded.NAME:
            return embedded.official(which)
        return _official(name, which, archives, root)

    if split not in DERIVED:
        return official(split)
    if name not in names() and "validation" in _splits(name, archives, root):
        return official("validation" if split == "validation" else "train")
    return held_out(official("train"), split)


def prepare(
    name: str, *, archives: Path | None = None, data_dir: Path | None = None
) -> pathlib.Path:
    """Prepare and decode "train" and "test", so that each later `load` is quick.

    Args:
      name: as for `load`.
      archives: as for `load`.
      data_dir: as for `load`.

    Returns:
      The folder with everything that was made, `data_dir`.

    Raises:
      ValueError: and the other errors of `load`.
    """
    root = _root(data_dir)
    for split in ("train", "test"):
        load(name, split, archives=archives, data_dir=root)
    return root


def _root(data_dir: Path | None) -> pathlib.Path:
    return pathlib.Path(data_dir or cache.default_data_dir()).expanduser()


def held_out(train: datasets.Dataset, split: str) -> datasets.Dataset:
    """The "validation" slice of a training set, or the "train_rest" without it."""
    n = max(1, round(VALIDATION_SHARE * len(train.labels)))
    chosen = datasets.choose(train, n, seed=VALIDATION_SEED)
    if split == "train_rest":
        chosen = np.delete(np.arange(len(train.labels)), chosen)
    return datasets.take(train, chosen, split)


def _official(
    name: str, split: str, archives: Path | None, root: pathlib.Path
) -> datasets.Dataset:
    """An official split from the cache, which is filled first if it has to be."""
    where = cache.folder(root, name, split)
    cached = cache.read(where)
    if cached is None:
        directory = _prepared(name, archives, root)
        decoded = catalogue.decode(name, split, directory)
        official_splits = catalogue.splits(directory)
        cache.write(where, decoded, official_splits=official_splits)
        cached = cache.read(where)
    if cached is None:
        raise OSError(
            f"{where} could not be read back after it was written: see whether "
            "the disk is full or failing, delete the folder and try again"
        )
    return cached


def _prepared(name: str, archives: Path | None, root: pathlib.Path) -> pathlib.Path:
    """Return the folder of the prepared data set, prepared now if there is none."""
    source = SOURCES.get(name)
    if source is None:
        return catalogue.find(name, root) or _from_catalogue(name, root)
    directory = builders.folder(root, name)
    if builders.is_prepared(directory):
        return directory
    catalogue.tfds_module()  # its absence shall be said before anything is downloaded
    return builders.prepare(source, _read_archives(source, archives, root), root)


def _read_archives(
    source: DatasetSpec, archives: Path | None, root: pathlib.Path
) -> archive_files.SplitArrays:
    given = archives or os.environ.get("JAXKD_ARCHIVES")
    downloads = root / "downloads" / source.name
    folders = [*([pathlib.Path(given).expanduser()] if given else []), downloads]
    found = archive_files.find(source, folders)
    if found is None and given:
        advice = f"Put them in {folders[0]}, or leave archives= out to download them."
        raise FileNotFoundError(archive_files.missing(source, folders, advice))
    if found is None:
        download.fetch(source, downloads)
        found = archive_files.find(source, folders)
    if found is None:
        raise FileNotFoundError(archive_files.missing(source, folders, ""))
    return archive_files.read(source, *found)


def _from_catalogue(name: str, root: pathlib.Path) -> pathlib.Path:
    known = catalogue.listing()
    if name.split("/")[0] in known:
        return catalogue.prepare(name, root)
    offered = list(dict.fromkeys([*names(), *known]))
    hint = did_you_mean(name, offered)
    more = f" and the {len(known)} of tensorflow_datasets' catalogue" if known else ""
    raise ValueError(f"no data set {name!r}; there are {names()}{more}{hint}")


def _splits(name: str, archives: Path | None, root: pathlib.Path) -> list[str]:
    """Return the official splits, without tensorflow_datasets where one was decoded."""
    recorded = cache.official_splits(root, name)
    return recorded or catalogue.splits(_prepared(name, archives, root))
