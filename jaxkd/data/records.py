"""Encoded images in the record files of TensorFlow Datasets, decoded when read."""

import bisect
import itertools
import os
import pathlib
from typing import Any

import numpy as np

from jaxkd.data import cache, catalogue
from jaxkd.data.decode import Decode
from jaxkd.data.stream import HostBatch, Source


def records(
    name: str,
    split: str,
    *,
    decode: Decode,
    data_dir: str | os.PathLike[str] | None = None,
) -> Source:
    """The examples of a prepared data set of TFDS' catalogue, each decoded when read.

    The files have to be array_record, which can be read at any position. TensorFlow is
    not needed.

    Args:
      name: "imagenet2012", or any other that has "image" and "label".
      split: an official split or a part of one, "train[:10%]" for example.
      decode: from the encoded image to the pixels, e.g. `decode.random_crop(224)`.
      data_dir: where prepared data is kept. The default is JAXKD_DATA, else
        ~/.cache/jaxkd; then TFDS' own folder is looked at.

    Returns:
      The source. Reading a record that cannot be decoded raises a ValueError that names
      its file and its place there.

    Raises:
      FileNotFoundError: if it is not prepared; says how.
      ValueError: if it has no such split, other features, or another file format.
    """
    builder = _builder(name, pathlib.Path(data_dir or cache.default_data_dir()))
    info = builder.info
    try:
        files = list(info.splits[split].file_instructions)
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"{name} has no split {split!r}; there are {[*info.splits]} ({error})"
        ) from error
    if not files:
        raise ValueError(f"{name} has no examples in {split!r}")
    if not {catalogue.IMAGE, catalogue.LABEL} <= set(info.features):
        got = sorted(info.features)
        raise ValueError(f"{name} must have features 'image' and 'label', got {got}")
    data = builder.as_data_source(split=split).data_source
    encoded = {catalogue.IMAGE: catalogue.tfds_module().decode.SkipDecoding()}
    ends = list(itertools.accumulate(file.take for file in files))

    def record(position: int) -> str:
        file = files[bisect.bisect_right(ends, position)]
        before = ends[bisect.bisect_right(ends, position)] - file.take
        return f"{file.filename}, record {position - before + file.skip}"

    def example(position: int, draw: int) -> tuple[np.ndarray, int, int]:
        try:
            found = info.features.deserialize_example_np(
                data[position], decoders=encoded
            )
            pixels = _pixels(decode, found[catalogue.IMAGE], draw)
        except Exception as error:  # pillow has many, SyntaxError among them
            raise ValueError(f"{record(position)} cannot be read: {error}") from error
        index = found.get(catalogue.INDEX, position)
        return pixels, found[catalogue.LABEL], index

    def read(positions: np.ndarray, draws: np.ndarray) -> HostBatch:
        pairs = zip(positions.tolist(), draws.tolist(), strict=True)
        images, labels, index = zip(*(example(*pair) for pair in pairs), strict=True)
        for position, image in zip(positions.tolist(), images, strict=True):
            if image.shape != images[0].shape:
                raise ValueError(
                    f"{record(position)} is {image.shape} after {images[0].shape}: "
                    "decode to one size, e.g. with decode.centre_crop"
                )
        return {
            "image": np.stack(images),
            "label": np.array(labels, np.int32),
            "index": np.array(index, np.int32),
        }

    classes = tuple(info.features[catalogue.LABEL].names)
    return Source(f"{name}/{split}", ends[-1], classes, read, record)


def _pixels(decode: Decode, encoded: bytes, draw: int) -> np.ndarray:
    """Return what the decoder returns, which must be pixels.

    Raises:
      ValueError: if it is not.
    """
    pixels = decode(encoded, draw)
    if pixels.dtype != np.uint8 or pixels.ndim != 3:
        raise ValueError(
            "decode must return uint8 [height, width, channels], got "
            f"{pixels.dtype} {pixels.shape}"
        )
    return pixels


def _builder(name: str, root: pathlib.Path) -> Any:
    """Return the builder of the newest prepared version."""
    root = root.expanduser()
    directory = catalogue.find(name, root)
    if directory is None:
        raise FileNotFoundError(
            f"{name} is not prepared in any of {[*map(str, catalogue.roots(root))]}. "
            f"Where TensorFlow is installed: tfds build {name} "
            f"--file_format=array_record --data_dir={root / 'tfds'} (imagenet2012 asks "
            "for the official archives in --manual_dir); the folder can then be copied"
        )
    builder = catalogue.tfds_module().builder_from_directory(str(directory))
    kind = builder.info.file_format.value
    if kind != "array_record":
        raise ValueError(
            f"{directory} was prepared as {kind}, which cannot be read at any position;"
            " python -m tensorflow_datasets.scripts.convert_format "
            f"--dataset_version_dir={directory} --out_file_format=array_record "
            f"--out_dir={root / 'tfds' / name / directory.name} converts it"
        )
    return builder
