"""Data sets of Hugging Face on the disk: parquet, Arrow, and `save_to_disk`'s folders.

They are read with pyarrow, which Hugging Face's `datasets` is built upon; `datasets`
itself is not needed.
"""

import hashlib
import importlib
import json
import os
import pathlib
from typing import Any

from jaxkd.data import images, preprocessing
from jaxkd.data.folders import SPLIT_NAMES
from jaxkd.data.images import Example
from jaxkd.data.splits import Splits, check_shares, split_of

Path = str | os.PathLike[str]
ENDINGS = (".parquet", ".arrow")


def huggingface(
    path: Path,
    *,
    size: int | tuple[int, int],
    image: str = "image",
    label: str = "label",
    resize: str = "crop",
    channels: int = 3,
    test: float = 0.1,
    validation: float = 0.1,
    mean: preprocessing.Numbers = "data",
    deviation: preprocessing.Numbers = "same",
    skip_unreadable: bool = False,
    data_dir: Path | None = None,
) -> Splits:
    """Return a local data set of Hugging Face with encoded images and labels.

    Nothing is downloaded. A folder is searched for .parquet or .arrow files; they are
    of the split that the name of the file, or of a folder of it, begins with. Other
    arguments, splits that are missing and decoding are as for `folder`.

    Args:
      path: of a file or a folder.
      size: what the images become: a side in pixels, or (height, width).
      image: the column of the encoded images.
      label: the column of the labels, whole numbers or text.
      resize: "crop", "pad" or "stretch".
      channels: 1 or 3.
      test: the share to test on, without such files.
      validation: likewise, to choose by.
      mean: what is subtracted: "data", "imagenet", or one number a channel.
      deviation: what is divided by; "same" chooses as `mean` does.
      skip_unreadable: leave damaged images out, with a warning.
      data_dir: where decoded images are kept.

    Raises:
      ImportError: without pyarrow, naming the extra.
      FileNotFoundError: if there are no such files.
      ValueError: naming the file and the column that does not fit.
    """
    check_shares(test, validation)
    root = pathlib.Path(path).expanduser()
    examples, classes = find(
        root, image=image, label=label, test=test, validation=validation
    )
    return images.splits(
        root.resolve().stem,
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
    root: pathlib.Path, *, image: str, label: str, test: float, validation: float
) -> tuple[list[Example], tuple[str, ...]]:
    """Return the encoded images of a file or a folder, and the names of the classes."""
    rows: list[tuple[str, str, bytes, Any]] = []  # split, name, content, label
    names: list[str] = []
    for file in _files(root):
        table = _table(file)
        for column in (image, label):
            if column not in table.column_names:
                there = ", ".join(table.column_names)
                raise ValueError(
                    f"path: {file} has no column {column!r}, but {there}; name it with "
                    "image or label"
                )
        names = names or _class_names(table, label)
        pairs = zip(table[image], table[label].to_pylist(), strict=True)
        for place, (cell, value) in enumerate(pairs):
            where = f"{file.name}, row {place}"
            rows.append((_split(file, root), where, _content(cell, where), value))
    values = {value for *_, value in rows}
    if None in values:
        empty = next(where for _, where, _, value in rows if value is None)
        raise ValueError(f"path: {empty} has no label")
    if not names:
        names = [str(v) for v in sorted(values, key=lambda v: (isinstance(v, str), v))]
        place_of = {v: names.index(str(v)) for v in values}
    else:
        place_of = {v: v if isinstance(v, int) else names.index(v) for v in values}
    if len(names) < 2:
        raise ValueError(f"path: {root} must have two classes or more, has {names}")
    own = {split for split, *_ in rows}
    drawn = (test * ("test" not in own), validation * ("validation" not in own))
    examples = []
    for split, where, content, value in rows:
        if split == "train":
            split = split_of(_hash(content), *drawn)
        examples.append(Example(where, place_of[value], split, content))
    return examples, tuple(names)


def _files(root: pathlib.Path) -> list[pathlib.Path]:
    if root.is_file() and root.suffix in ENDINGS:
        return [root]
    found = sorted(p for ending in ENDINGS for p in root.rglob(f"*{ending}"))
    if not found:
        raise FileNotFoundError(
            f"path: {root} holds no .parquet and no .arrow file; give a folder of "
            "datasets' save_to_disk, or such a file"
        )
    return found


def _split(file: pathlib.Path, root: pathlib.Path) -> str:
    """Return the split of a file, by its name or that of a folder within the root."""
    if file == root:
        return "train"
    for part in reversed(file.relative_to(root).parts):
        for name, split in SPLIT_NAMES.items():
            first = part.lower().replace(".", "-").replace("_", "-").split("-")[0]
            if first == name:
                return split
    return "train"


def _table(file: pathlib.Path) -> Any:
    """Return the content of a file."""
    try:
        arrow = importlib.import_module("pyarrow")
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise ImportError(
            "pyarrow is needed to read data of Hugging Face: pip install "
            "'jaxkd-distill[huggingface]'"
        ) from error
    try:
        if file.suffix == ".parquet":
            return parquet.read_table(str(file))
        with arrow.memory_map(str(file)) as mapped:
            return arrow.ipc.open_stream(mapped).read_all()
    except (arrow.ArrowException, OSError) as error:
        raise ValueError(f"path: {file} cannot be read: {error}") from error


def _class_names(table: Any, label: str) -> list[str]:
    """The names that `datasets` writes beside the columns, if it wrote the table."""
    text = (table.schema.metadata or {}).get(b"huggingface")
    if text is None:
        return []
    feature = json.loads(text).get("info", {}).get("features", {}).get(label, {})
    return list(feature.get("names", ()))


def _content(cell: Any, where: str) -> bytes:
    """Return the encoded image in a cell: bytes, or {"bytes": bytes, "path": text}."""
    value = cell.as_py()
    if isinstance(value, dict):
        value = value.get("bytes")
    if not isinstance(value, bytes):
        raise ValueError(
            f"path: {where} must hold an encoded image, as datasets' Image does, got "
            f"{cell.type}"
        )
    return value


def _hash(content: bytes) -> int:
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "big")
