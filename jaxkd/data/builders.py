"""TensorFlow Datasets builders of ours, which prepare without TensorFlow.

The catalogue's own builders of these data sets need TensorFlow to unpack, to read and
to encode. These take the verified arrays and hand every image to TFDS as PNG bytes in
a file object, which it stores as they are, in array_record files, which it reads back
as a data source, all without TensorFlow.
"""

import io
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxkd import store
from jaxkd.data.archives import SplitArrays
from jaxkd.data.specs import DatasetSpec

VERSION = "1.0.0"


def folder(data_dir: pathlib.Path, name: str) -> pathlib.Path:
    """Return where the prepared data set of one of our builders lies."""
    return data_dir / "tfds" / name / VERSION


def _png(image: np.ndarray) -> io.BytesIO:
    from PIL import Image

    file = io.BytesIO()
    picture = image[..., 0] if image.shape[-1] == 1 else image
    # The weakest compression: noise-like 32x32 images gain little from more.
    Image.fromarray(picture).save(file, "png", compress_level=1)
    file.seek(0)
    return file


def _builder_class(source: DatasetSpec, splits: SplitArrays) -> Any:
    """Return a builder class for these arrays.

    Made by a function, so that tensorflow_datasets is imported only to prepare; not
    registered, because its names are the catalogue's.
    """
    import tensorflow_datasets as tfds

    with tfds.core.registered.skip_registration():

        class Builder(tfds.core.GeneratorBasedBuilder):
            name = source.name
            VERSION = tfds.core.Version(VERSION)

            def _info(self) -> Any:
                features = {
                    "image": tfds.features.Image(shape=source.shape),
                    "label": tfds.features.ClassLabel(names=source.classes),
                    "index": np.int32,
                }
                return tfds.core.DatasetInfo(
                    builder=self,
                    description=f"{source.name} from its official archives.",
                    homepage=source.homepage,
                    features=tfds.features.FeaturesDict(features),
                    supervised_keys=("image", "label"),
                    disable_shuffling=True,
                )

            def _split_generators(self, dl_manager: Any) -> Any:
                return {split: self._generate_examples(split) for split in splits}

            def _generate_examples(self, split: str) -> Iterator[Any]:
                for place, (image, label) in enumerate(
                    zip(*splits[split], strict=True)
                ):
                    example = {"image": _png(image), "label": label, "index": place}
                    yield place, example

    return Builder


def prepare(
    source: DatasetSpec, splits: SplitArrays, data_dir: pathlib.Path
) -> pathlib.Path:
    """Write a TFDS data set from arrays and return its folder.

    It is prepared under a temporary name and renamed when it is complete: of two
    processes that prepare at once, the second throws its own away. What processes that
    were killed have left under temporary names is removed.
    """
    import tensorflow_datasets as tfds

    target = folder(data_dir, source.name)
    target.parent.mkdir(parents=True, exist_ok=True)
    with store.workspace(target) as work:
        builder = _builder_class(source, splits)(
            data_dir=str(work), file_format=tfds.core.FileFormat.ARRAY_RECORD
        )
        # Statistics would decode every image again, and nothing here reads them.
        skip = tfds.download.ComputeStatsMode.SKIP
        config = tfds.download.DownloadConfig(
            compute_stats=skip, try_download_gcs=False
        )
        builder.download_and_prepare(download_config=config)
        try:
            store.rename(builder.data_dir, target)
        except OSError:
            if not (target / "dataset_info.json").exists():
                raise
            shutil.rmtree(builder.data_dir, ignore_errors=True)
    return target


def is_prepared(directory: pathlib.Path) -> bool:
    """Return whether a folder holds a data set that TFDS finished."""
    return (directory / "dataset_info.json").exists()
