"""The official file formats as arrays: idx, CIFAR's binary and CIFAR's pickled form.

Each reader takes the contents of all files of one split, in order, and returns images
uint8 `[n, h, w, c]` and labels int32 `[n]`. Contents are verified before they get here.
"""

import codecs
import io
import pickle
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np

Reader = Callable[[Sequence[bytes]], tuple[np.ndarray, np.ndarray]]

SIDE, COLOURS = 32, 3
PIXELS = SIDE * SIDE * COLOURS


def _idx(content: bytes, rank: int) -> np.ndarray:
    """One idx file of bytes: a magic number, the sizes big-endian, the values."""
    magic, *shape = np.frombuffer(content, ">u4", rank + 1).tolist()
    if magic != 0x0800 + rank:
        raise ValueError(f"an idx file of {rank} axes starts otherwise: {magic:#x}")
    return np.frombuffer(content, np.uint8, offset=4 * (rank + 1)).reshape(shape)


def idx(contents: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """MNIST's form: a file of images, then a file of labels."""
    images, labels = _idx(contents[0], 3), _idx(contents[1], 1)
    return images[..., None], labels.astype(np.int32)


def _channels_last(planes: np.ndarray) -> np.ndarray:
    """CIFAR stores the red plane, then the green, then the blue."""
    images = planes.reshape(-1, COLOURS, SIDE, SIDE).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images)


def cifar_binary(label_bytes: int) -> Reader:
    """Records of `label_bytes` labels, the last of which is used, and the planes."""

    def read(contents: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
        values = np.frombuffer(b"".join(contents), np.uint8)
        records = values.reshape(-1, label_bytes + PIXELS)
        labels = records[:, label_bytes - 1].astype(np.int32)
        return _channels_last(records[:, label_bytes:]), labels

    return read


class _ArraysOnly(pickle.Unpickler):
    """Rebuilds arrays of numbers, and refuses whatever else a pickle could call."""

    allowed: ClassVar = {
        "_reconstruct": np.empty(0).__reduce__()[0],
        "ndarray": np.ndarray,
        "dtype": np.dtype,
        "encode": codecs.encode,
    }

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] in ("numpy", "_codecs") and name in self.allowed:
            return self.allowed[name]
        raise pickle.UnpicklingError(f"unexpected {module}.{name}")


def cifar_pickled(label_name: bytes) -> Reader:
    """Return the form made for Python: dictionaries with "data" and `label_name`."""

    def read(contents: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
        parts = [_ArraysOnly(io.BytesIO(c), encoding="bytes").load() for c in contents]
        planes = np.concatenate([part[b"data"] for part in parts])
        labels = np.concatenate([part[label_name] for part in parts])
        return _channels_last(planes), labels.astype(np.int32)

    return read
