"""Folders of image files, one folder a class: which files there are, and their splits.

photos/cat/1.jpg                    or photos/train/cat/1.jpg
photos/dog/old/2.png                   photos/test/dog/old/2.png
"""

import hashlib
import os
import pathlib
import unicodedata
from collections.abc import Iterator, Sequence

from jaxkd._text import alternatives
from jaxkd.data import images, preprocessing
from jaxkd.data.images import Example
from jaxkd.data.splits import SPLITS, Splits, check_shares, split_of

SPLIT_NAMES = {
    **{"train": "train", "training": "train", "test": "test", "testing": "test"},
    **{"validation": "validation", "valid": "validation", "val": "validation"},
}
IGNORED = ("Thumbs.db", "desktop.ini")  # and hidden files

Path = str | os.PathLike[str]


def folder(
    path: Path,
    *,
    size: int | tuple[int, int],
    resize: str = "crop",
    channels: int = 3,
    test: float = 0.1,
    validation: float = 0.1,
    mean: preprocessing.Numbers = "data",
    deviation: preprocessing.Numbers = "same",
    skip_unreadable: bool = False,
    data_dir: Path | None = None,
) -> Splits:
    """The images of a folder of class folders, decoded once and memory-mapped then.

    Every file in a class folder, at any depth, is an image of the class. The folders
    "train", "validation" and "test", each with class folders, are the splits; for those
    that are missing, a share of the other images is drawn by a hash of their paths, so
    that an image stays in its split when others are added.

    All images are decoded on all cores at the first call, and kept in `data_dir` until
    a file's name, size or time changes. If they would take more than half of the
    memory, they are only checked, and the splits are sources to make a `Stream` of.

    Args:
      path: of the folder.
      size: what the images become: a side in pixels, or (height, width).
      resize: "crop", "pad" or "stretch"; see `decode.fit`.
      channels: 1 for grey, 3 for colour.
      test: the share of the images to test on, in (0, 0.9], without a test folder.
      validation: likewise.
      mean: what is subtracted: "data", "imagenet", or one number a channel.
      deviation: what is divided by; "same" chooses as `mean` does.
      skip_unreadable: leave damaged files out, with a warning that lists them.
      data_dir: where decoded images are kept. The default is JAXKD_DATA, else
        ~/.cache/jaxkd.

    Returns:
      train (without the validation images), validation, test and the preprocessing.

    Raises:
      FileNotFoundError: if there is no folder.
      ValueError: naming the file or folder that is out of place, a class without
        images, or all files that cannot be read, with the reasons.

    Example::

        photos = data.folder("photos", size=96)
        run = train.learn(student, photos.train, view=photos.view(), ...)
    """
    check_shares(test, validation)
    root = pathlib.Path(path).expanduser()
    examples, classes = find(root, test=test, validation=validation)
    return images.splits(
        root.resolve().name,
        examples,
        classes,
        place=str(root.resolve()),
        size=size,
        resize=resize,
        channels=channels,
        mean=mean,
        deviation=deviation,
        shares=(test, validation),
        skip_unreadable=skip_unreadable,
        data_dir=data_dir,
    )


def find(
    root: pathlib.Path,
    *,
    test: float,
    validation: float,
    classes: Sequence[str] | None = None,
) -> tuple[list[Example], tuple[str, ...]]:
    """The images of a folder and the classes, in an order that no system changes.

    Args:
      root: the folder.
      test: the share to test on, if there is no test folder.
      validation: likewise.
      classes: in the order of the labels, if they are known already.

    Raises:
      FileNotFoundError: if there is no folder.
      ValueError: naming what is out of place.
    """
    if not root.is_dir():
        kind = "is a file" if root.exists() else "does not exist"
        raise FileNotFoundError(
            f"path: {root} {kind}; give a folder with a folder of images for each class"
        )
    above = _split_folders(root)
    found: dict[str, dict[str, list[pathlib.Path]]] = {}
    for split, place in above.items():
        found[split] = {}
        for entry in _entries(place):
            if not entry.is_dir():
                raise ValueError(
                    f"path: {entry} lies beside the class folders of {place}: move it "
                    "into the folder of its class, or away"
                )
            name = unicodedata.normalize("NFC", entry.name)
            if name in found[split]:
                raise ValueError(f"path: {place} has two folders {name!r}; rename one")
            found[split][name] = sorted(_files(entry, ()), key=lambda p: _name(p, root))
    first = next(iter(above))
    own = tuple(sorted(found[first]))
    if classes is None:
        _check_classes(above[first], found[first])
        classes = own
    examples = []
    for split, by_class in found.items():
        for name, paths in by_class.items():
            if name not in classes:
                hint = alternatives(name, classes)
                raise ValueError(f"path: {above[split] / name} is no known class{hint}")
            for path in paths:
                relative, target = _name(path, root), split or "train"
                if target == "train":
                    left = (
                        test * ("test" not in above),
                        validation * ("validation" not in above),
                    )
                    target = split_of(_hash(relative), *left)
                label = list(classes).index(name)
                examples.append(Example(relative, label, target, path))
    order = {split: place for place, split in enumerate(SPLITS)}
    examples.sort(key=lambda e: (order[e.split], e.label, e.name))
    return examples, tuple(classes)


def _split_folders(root: pathlib.Path) -> dict[str, pathlib.Path]:
    """The folders of the splits; the whole folder, under "", if there are none."""
    entries = _entries(root)
    named = {e: SPLIT_NAMES[e.name.lower()] for e in entries if _is_split(e)}
    if not named:
        return {"": root}
    listed = ", ".join(e.name for e in named)
    others = [e for e in entries if e not in named]
    if others:
        raise ValueError(
            f"path: {others[0]} lies beside {listed}: give {root} either folders of "
            "classes, or train, validation and test with folders of classes in each"
        )
    if "train" not in named.values() or len(set(named.values())) < len(named):
        raise ValueError(
            f"path: {root} has {listed}, and must have train, and may have validation "
            "and test, one folder each"
        )
    return {named[e]: e for e in sorted(named, key=lambda e: named[e] != "train")}


def _is_split(entry: pathlib.Path) -> bool:
    return entry.is_dir() and entry.name.lower() in SPLIT_NAMES


def _check_classes(place: pathlib.Path, found: dict[str, list[pathlib.Path]]) -> None:
    if empty := sorted(name for name, files in found.items() if not files):
        raise ValueError(
            f"path: {place / empty[0]} has no images: remove the folder, or put images "
            "of the class into it"
        )
    if len(found) < 2:
        got = f"only {next(iter(found))!r}" if found else "none"
        raise ValueError(
            f"path: {place} must have a folder for each of two classes or more, has "
            f"{got}"
        )


def _entries(place: pathlib.Path) -> list[pathlib.Path]:
    """Return what a folder holds, without the files of systems."""
    found = (e for e in place.iterdir() if not e.name.startswith("."))
    return sorted((e for e in found if e.name not in IGNORED), key=lambda e: e.name)


def _files(place: pathlib.Path, above: tuple[str, ...]) -> Iterator[pathlib.Path]:
    """The files below a folder; a link back to a folder above is not followed."""
    own = os.path.realpath(place)
    for entry in _entries(place):
        if not entry.is_dir():
            yield entry
        elif os.path.realpath(entry) not in (*above, own):
            yield from _files(entry, (*above, own))


def _name(path: pathlib.Path, root: pathlib.Path) -> str:
    """Return the path inside the folder, the same on all systems."""
    return unicodedata.normalize("NFC", path.relative_to(root).as_posix())


def _hash(name: str) -> int:
    content = name.encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "big")
