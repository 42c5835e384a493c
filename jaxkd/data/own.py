"""Data that are arrays already: files of numpy's, or what a function of yours makes."""

import importlib
import os
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxkd._text import alternatives
from jaxkd.data import preprocessing
from jaxkd.data.dataset import Dataset, check
from jaxkd.data.splits import Splits, check_shares, shares

Path = str | os.PathLike[str]
COLUMNS = ("image", "label", "index")


def arrays(
    path: Path,
    *,
    path_test: Path | None = None,
    test: float = 0.1,
    validation: float = 0.1,
    mean: preprocessing.Numbers = "data",
    deviation: preprocessing.Numbers = "same",
) -> Splits:
    """Return the arrays of an .npz file, or of a folder of .npy files.

    They are "image" `[n, height, width, channels]` or `[n, height, width]`, uint8 or
    floats; "label", whole numbers `[n]`; "index" `[n]` if the examples have numbers of
    their own; and "classes", text `[classes]`, if the labels have names. Validation and
    test images are drawn by a hash of the index.

    Args:
      path: of the file or the folder, whose .npy files are memory-mapped.
      path_test: of the test images, in the same form.
      test: the share of the images to test on, in (0, 0.9], without `path_test`.
      validation: likewise, to choose by.
      mean: what is subtracted: "data", "imagenet", or one number a channel.
      deviation: what is divided by; "same" chooses as `mean` does.

    Returns:
      train (without the validation images), validation, test and the preprocessing.

    Raises:
      FileNotFoundError: if there is no file.
      ValueError: naming the file and the array that does not fit.
    """
    whole = read_arrays(path)
    tested = None if path_test is None else read_arrays(path_test, whole.classes)
    return divide(
        whole,
        tested,
        test=test,
        validation=validation,
        mean=mean,
        deviation=deviation,
    )


def read_arrays(path: Path, classes: tuple[str, ...] = ()) -> Dataset:
    """One file or folder of `arrays`; names of classes may be known already.

    Raises:
      FileNotFoundError: if there is no file.
      ValueError: naming the file and the array that does not fit.
    """
    place = pathlib.Path(path).expanduser()
    if place.is_dir():
        files = sorted(place.glob("*.npy"))
        opened = {f.stem: _load(f, mmap_mode="r") for f in files}
    elif place.exists():
        opened = dict(_load(place)) if place.suffix == ".npz" else {}
    else:
        raise FileNotFoundError(
            f"path: {place} does not exist; give an .npz file, or a folder of .npy "
            "files, with image and label"
        )
    for name in ("image", "label"):
        if name not in opened:
            has = ", ".join(sorted(opened)) or "no arrays"
            raise ValueError(f"path: {place} must hold an array {name!r}, has {has}")
    named = tuple(str(name) for name in opened.pop("classes", ())) or classes
    columns = {name: opened[name] for name in COLUMNS if name in opened}
    return _dataset(place.stem, columns, named, f"path: {place}")


def _load(path: pathlib.Path, **how: Any) -> Any:
    try:
        return np.load(path, allow_pickle=False, **how)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"path: {path} cannot be read: {error}") from error
    except Exception as error:  # of the zip file
        raise ValueError(f"path: {path} is damaged: {error}") from error


def _dataset(
    name: str, columns: dict[str, np.ndarray], classes: tuple[str, ...], where: str
) -> Dataset:
    """Return the columns as a data set of images, of the types that `Dataset` has.

    Raises:
      ValueError: naming the column that does not fit, after `where`.
    """
    images, labels = columns["image"], columns["label"]
    if images.ndim == 3:
        images = images[..., None]
    floats = np.issubdtype(images.dtype, np.floating)
    if images.ndim != 4 or not (floats or images.dtype == np.uint8):
        raise ValueError(
            f"{where}: image must be uint8 or floats [n, height, width, channels], got "
            f"{columns['image'].dtype} {columns['image'].shape}"
        )
    if floats:
        images = np.asarray(images, np.float32)
        if not np.isfinite(images).all():
            raise ValueError(f"{where}: image holds numbers that are not finite")
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"{where}: label must be whole numbers [n], got {labels.dtype} "
            f"{labels.shape}"
        )
    if len(labels) and not 0 <= labels.min() <= labels.max() < 2**31:
        raise ValueError(
            f"{where}: label must count from 0, got {labels.min()} to {labels.max()}"
        )
    if len(labels) and not classes:
        classes = tuple(map(str, range(int(labels.max()) + 1)))
    changed = {"image": images, "label": labels.astype(np.int32)}
    if "index" in columns:
        changed["index"] = columns["index"].astype(np.int32)
    try:
        made = Dataset(name, "train", changed, classes)
        check(made)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    return made


def divide(
    whole: Dataset,
    tested: Dataset | None,
    *,
    test: float,
    validation: float,
    mean: preprocessing.Numbers,
    deviation: preprocessing.Numbers,
) -> Splits:
    """Return the splits of a data set, with test images of their own if there are some.

    Raises:
      ValueError: if a share is out of its range or leaves a split empty; if the test
        images differ from the others in shape or type.
    """
    check_shares(test, validation)
    found = shares(whole, test=0 if tested else test, validation=validation)
    if tested is not None:
        one, other = (
            (d.images.shape[1:], d.images.dtype.name) for d in (whole, tested)
        )
        if one != other:
            raise ValueError(
                f"path_test: the test images are {other[1]} {other[0]}, those of path "
                f"are {one[1]} {one[0]}"
            )
        found["test"] = tested.replace(split="test")
    made = preprocessing.of(
        found["train"],
        mean=mean,
        deviation=deviation,
        test=test,
        validation=validation,
    )
    return Splits(found["train"], found["validation"], found["test"], made)


def python(
    source: Any,
    *,
    test: float = 0.1,
    validation: float = 0.1,
    mean: preprocessing.Numbers = "data",
    deviation: preprocessing.Numbers = "same",
) -> Splits:
    """Return what a function of yours makes, as splits.

    Args:
      source: "package.module:function", imported with the working directory on the
        path and called without arguments; or what such a function may return: `Splits`,
        a `Dataset`, or anything with `__len__` and `__getitem__` that gives a dict with
        "image" and "label", or a pair of the two, for each example, all of one shape.
        They are read into memory.
      test: the share of the images to test on, in (0, 0.9]; of splits none is drawn.
      validation: likewise, to choose by.
      mean: what is subtracted: "data", "imagenet", or one number a channel.
      deviation: what is divided by; "same" chooses as `mean` does.

    Raises:
      ValueError: naming the source, and what it gave.
    """
    where = f"source: {source}" if isinstance(source, str) else "source"
    made = _called(source, where) if isinstance(source, str) else source
    if isinstance(made, Splits):
        return made
    whole = made if isinstance(made, Dataset) else _read(made, where)
    if isinstance(made, Dataset):
        missing = {"image", "label"} - set(made.columns)
        if missing:
            raise ValueError(f"{where}: the data set has no column {min(missing)!r}")
        name = made.name or "python"
        whole = _dataset(name, dict(made.columns), made.classes, where)
    options: dict[str, Any] = {"mean": mean, "deviation": deviation}
    return divide(whole, None, test=test, validation=validation, **options)


def _called(source: str, where: str) -> Any:
    """Return what the function at "package.module:function" returns."""
    module, _, name = source.partition(":")
    if not module or not name:
        raise ValueError(f'{where}: must be "package.module:function"')
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        raise ValueError(
            f"{where}: {error}; modules are looked for in {here} and where Python's "
            "packages are"
        ) from error
    finally:
        sys.path.remove(here)
    if not callable(getattr(found, name, None)):
        public = [n for n in vars(found) if not n.startswith("_")]
        hint = alternatives(name, public)
        raise ValueError(f"{where}: {module} has no function {name!r}{hint}")
    return getattr(found, name)()


def _read(examples: Any, where: str) -> Dataset:
    """Anything that has a length and items, read into memory."""
    if not (hasattr(examples, "__len__") and hasattr(examples, "__getitem__")):
        raise ValueError(
            f"{where}: must give Splits, a Dataset, or examples with __len__ and "
            f"__getitem__, gave {type(examples).__name__}"
        )
    if not len(examples):
        raise ValueError(f"{where}: gave no examples")
    images, labels = [], []
    for place in range(len(examples)):
        example = examples[place]
        try:
            pair = example if isinstance(example, Mapping) else None
            image = example["image"] if pair is not None else example[0]
            label = example["label"] if pair is not None else example[1]
        except (KeyError, IndexError, TypeError) as error:
            raise ValueError(
                f"{where}: example {place} must be a dict with 'image' and 'label', or "
                f"a pair of them, got {type(example).__name__}"
            ) from error
        images.append(np.asarray(image))
        labels.append(int(label))
        if images[-1].shape != images[0].shape or images[-1].dtype != images[0].dtype:
            raise ValueError(
                f"{where}: image {place} is {images[-1].dtype} {images[-1].shape} "
                f"after {images[0].dtype} {images[0].shape}: give all one size"
            )
    classes = tuple(getattr(examples, "classes", ()))
    columns = {"image": np.stack(images), "label": np.array(labels)}
    return _dataset("python", columns, classes, where)
