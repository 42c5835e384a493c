"""Data sets that TensorFlow Datasets prepared: ours, and any other of its catalogue."""

import importlib.util
import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from jaxkd.data import decode as decoders
from jaxkd.data.dataset import Dataset

IMAGE, LABEL, INDEX = "image", "label", "index"
CHUNK = 512


def tfds_module() -> Any:
    """tensorflow_datasets, imported only where something is prepared or decoded."""
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise ImportError(
            f"tensorflow_datasets is needed to prepare or decode a data set ({error}): "
            "pip install tensorflow-datasets array-record importlib-resources pillow. "
            "A split that was decoded once, and the embedded one, load without it"
        ) from error
    return tensorflow_datasets


def roots(data_dir: pathlib.Path) -> list[pathlib.Path]:
    """Return where prepared data sets are looked for: our folder, then TFDS's own."""
    standard = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return [data_dir / "tfds", pathlib.Path(standard).expanduser()]


def find(name: str, data_dir: pathlib.Path) -> pathlib.Path | None:
    """Return the newest prepared version of a catalogue's "name" or "name/config"."""
    for root in roots(data_dir):
        versions = [
            (tuple(map(int, path.parent.name.split("."))), path.parent)
            for path in (root / name).glob("*.*.*/dataset_info.json")
            if path.parent.name.replace(".", "").isdigit()
        ]
        if versions:
            return max(versions)[1]
    return None


def listing() -> list[str]:
    """Return the catalogue's names; none without tensorflow_datasets."""
    try:
        return tfds_module().list_builders(with_community_datasets=False)
    except ImportError:
        return []


def prepare(name: str, data_dir: pathlib.Path) -> pathlib.Path:
    """Has the catalogue's own builder download and prepare, which takes TensorFlow."""
    if importlib.util.find_spec("tensorflow") is None:
        raise ImportError(
            f"{name} is in TensorFlow Datasets' catalogue and not prepared here. That "
            "takes TensorFlow (pip install 'jaxkd-distill[tf]'); or prepare it "
            "elsewhere with file_format='array_record' and copy its folder to "
            f"{data_dir / 'tfds' / name}. Looked in {[*map(str, roots(data_dir))]}"
        )
    tfds = tfds_module()
    array_record = tfds.core.FileFormat.ARRAY_RECORD
    where = data_dir / "tfds"
    builder = tfds.builder(name, data_dir=str(where), file_format=array_record)
    builder.download_and_prepare()
    return pathlib.Path(builder.data_dir)


def _by_chunks(source: Any) -> Iterator[Any]:
    """The examples of a data source; asked for many at once, it is a third faster."""
    for start in range(0, len(source), CHUNK):
        yield from source.__getitems__(range(start, min(start + CHUNK, len(source))))


def _decode_images(feature: Any, examples: Iterable[Any]) -> Iterator[Any]:
    """Decode the images of examples, grey or in colour as the feature says."""
    channels = feature.shape[-1]
    pixels = decoders.plain(channels if channels in (1, 3) else None)
    for example in examples:
        yield {**example, IMAGE: pixels(example[IMAGE], 0)}


def _examples(builder: Any, split: str) -> Iterable[Any]:
    """An iterable over a split's examples, by whichever route its files allow."""
    kind = builder.info.file_format.value
    if kind == "array_record":
        feature, tfds = builder.info.features[IMAGE], tfds_module()
        # TFDS' own decoder returns the colour numbers of a palette.
        is_image = isinstance(feature, tfds.features.Image)
        if not (is_image and feature.np_dtype == np.uint8):
            return _by_chunks(builder.as_data_source(split=split))
        encoded = {IMAGE: tfds.decode.SkipDecoding()}
        examples = _by_chunks(builder.as_data_source(split=split, decoders=encoded))
        return _decode_images(feature, examples)
    if kind != "tfrecord" or importlib.util.find_spec("tensorflow") is None:
        raise ValueError(
            f"{builder.data_dir} was prepared as {kind}, which cannot be read here: "
            "prepare it with file_format='array_record' (tfrecord can be read with "
            "TensorFlow installed, other formats lose examples)"
        )
    return tfds_module().as_numpy(builder.as_dataset(split=split))


def splits(directory: pathlib.Path) -> list[str]:
    """Return the official splits of a prepared data set."""
    return list(tfds_module().builder_from_directory(str(directory)).info.splits)


def decode(name: str, split: str, directory: pathlib.Path) -> Dataset:
    """Decode an official split of a prepared data set into arrays.

    Args:
      name: the name the result gets.
      split: an official split.
      directory: the prepared version's folder.

    Raises:
      ValueError: if it has no such split, no image and label, or images of unequal
        size.
    """
    builder = tfds_module().builder_from_directory(str(directory))
    info = builder.info
    if split not in info.splits:
        raise ValueError(f"{name} has no split {split!r}; there are {[*info.splits]}")
    if not {IMAGE, LABEL} <= set(info.features):
        got = sorted(info.features)
        raise ValueError(f"{name} must have features 'image' and 'label', got {got}")
    n = info.splits[split].num_examples
    images: np.ndarray | None = None
    labels, index = np.empty(n, np.int32), np.arange(n, dtype=np.int32)
    count = 0
    for place, example in enumerate(_examples(builder, split)):
        image = np.asarray(example[IMAGE])
        if images is None:
            images = np.empty((n, *image.shape), np.uint8)
        if image.shape != images.shape[1:] or image.dtype != np.uint8:
            raise ValueError(
                f"images of {name} must be uint8 of equal size, got {image.dtype} "
                f"{image.shape} after {images.shape[1:]}"
            )
        position = example.get(INDEX, place)
        images[position], labels[position] = image, example[LABEL]
        count += 1
    if images is None or count != n:
        raise ValueError(f"{directory} has {count} of {n} examples of {split!r}")
    return Dataset.of_images(
        name, split, images, labels, index, tuple(info.features[LABEL].names)
    )
