"""Images of the right shape that show nothing, to run and to time what real ones would.

`source` makes pixels faster than any step takes them. `prepare` writes JPEGs of many
sizes as a data set of TensorFlow Datasets, to be read and decoded as the real one is.
"""

import io
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxkd.data.stream import HostBatch, Source

POOL = 1 << 24  # bytes; prime steps through it make an image for every position
STRIDE = 15_485_863  # a prime


def source(n: int, size: int, classes: int) -> Source:
    """Random pixels, `[size, size, 3]`; an example is always the same.

    Args:
      n: how many examples.
      size: the images' side.
      classes: labels are 0, 1, ..., classes - 1, again and again.
    """
    length = size * size * 3
    pool = np.random.default_rng(0).integers(0, 256, POOL + length, np.uint8)

    def read(positions: np.ndarray, draws: np.ndarray) -> HostBatch:
        starts = positions.astype(np.int64) * STRIDE % POOL
        images = np.stack([pool[start : start + length] for start in starts])
        return {
            "image": images.reshape(-1, size, size, 3),
            "label": (positions % classes).astype(np.int32),
            "index": positions.astype(np.int32),
        }

    names = tuple(map(str, range(classes)))
    return Source("fake", n, names, read, lambda position: f"fake {position}")


def jpeg(place: int, width: int, height: int) -> bytes:
    """A photograph's weight without its sense: about 100 kB at 500 x 375."""
    from PIL import Image

    rng = np.random.default_rng(place)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
    noise = rng.normal(0, 14, (height, width, 1)).astype(np.int16)
    file = io.BytesIO()
    pixels = np.clip(smooth + noise, 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(file, "jpeg", quality=90)
    return file.getvalue()


def prepare(
    root: str | os.PathLike[str],
    counts: dict[str, int],
    *,
    name: str = "imagenet2012",
    classes: int = 1000,
    side: int = 375,
) -> pathlib.Path:
    """Writes a data set with the features of ImageNet's, for `data.records` to read.

    Args:
      root: the `data_dir` under which it will be found.
      counts: how many images each split has.
      name: what it is called.
      classes: how many there are.
      side: of an image, give or take a third; the other is 4/3 of it.

    Returns:
      The folder of the prepared version.
    """
    import tensorflow_datasets as tfds

    made_up = name
    with tfds.core.registered.skip_registration():

        class Builder(tfds.core.GeneratorBasedBuilder):
            name = made_up
            VERSION = tfds.core.Version("0.0.1")

            def _info(self) -> Any:
                features = {
                    "image": tfds.features.Image(encoding_format="jpeg"),
                    "label": tfds.features.ClassLabel(num_classes=classes),
                    "file_name": tfds.features.Text(),
                }
                return tfds.core.DatasetInfo(
                    builder=self,
                    features=tfds.features.FeaturesDict(features),
                    disable_shuffling=True,
                )

            def _split_generators(self, dl_manager: Any) -> Any:
                return {
                    split: self._generate_examples(n) for split, n in counts.items()
                }

            def _generate_examples(self, n: int) -> Iterator[Any]:
                return _examples(n, classes, side)

    builder = Builder(
        data_dir=str(pathlib.Path(root) / "tfds"),
        file_format=tfds.core.FileFormat.ARRAY_RECORD,
    )
    skip = tfds.download.ComputeStatsMode.SKIP
    config = tfds.download.DownloadConfig(compute_stats=skip, try_download_gcs=False)
    builder.download_and_prepare(download_config=config)
    return pathlib.Path(builder.data_dir)


def _examples(n: int, classes: int, side: int) -> Iterator[tuple[int, dict[str, Any]]]:
    for place in range(n):
        height = round(side * (2 / 3 + 2 / 3 * (place % 7) / 6))
        width = round(side * (8 / 9 + 8 / 9 * (place % 5) / 4))
        encoded = io.BytesIO(jpeg(place, width, height))
        name = f"{place}.JPEG"
        yield (
            place,
            {"image": encoded, "label": place % classes, "file_name": name},
        )
