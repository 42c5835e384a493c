"""Running an exported file, of any of the formats, and its accuracy."""

import os
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import _check, evaluate as score
from jaxkd.data import Dataset, Preprocessing
from jaxkd.data.augment import View
from jaxkd.data.preprocessing import from_json
from jaxkd.export import _onnx, _stablehlo, _tflite, edges, files
from jaxkd.export.judge import batched


class Executable(NamedTuple):
    """An exported file that can be called.

    Attributes:
      run: float32 images `[batch, *image_shape]` to float32 logits, by the format's
        runtime. For a file with int8 input and output it quantizes the images and
        dequantizes the logits; images that are int8 already enter as they are.
      format: "stablehlo", "tflite" or "onnx".
      name: of the network, as it was exported.
      image_shape: of one image.
      batch: how many images `run` takes; None for any number.
      classes: the names of the classes; empty if none were given.
      input: type, scale and zero point of the file's own input.
      output: type, scale and zero point of the file's own output.
      preprocessing: from an image file to `run`'s images; None if it was not given.
    """

    run: Callable[[np.ndarray], np.ndarray]
    format: str
    name: str
    image_shape: tuple[int, ...]
    batch: int | None
    classes: tuple[str, ...]
    input: edges.Edge
    output: edges.Edge
    preprocessing: Preprocessing | None = None

    def __call__(self, images: Any) -> np.ndarray:
        """Logits `[n, classes]` of any number of images `[n, *image_shape]`.

        Raises:
          ValueError: if they are not float images of the shape that was exported.
        """
        images = np.asarray(images)
        _check.real(images=images)
        if images.shape[1:] != self.image_shape or not len(images):
            raise ValueError(
                f"images must be [n, {', '.join(map(str, self.image_shape))}], "
                f"got {images.shape}"
            )
        return batched(self.run, self.batch)(images.astype(np.float32))


def load(path: str | os.PathLike, *, threads: int = 1) -> Executable:
    """Open a file that `stablehlo`, `tflite` or `onnx` wrote.

    Args:
      path: of the file; what it is, is read from its content.
      threads: of LiteRT or ONNX Runtime. XLA takes one, or for more its own choice.

    Returns:
      The program, e.g. `load(path)(images)`.

    Raises:
      FileNotFoundError: if there is no file.
      ValueError: if it is not whole, of another version, or not of this library.
      ImportError: without the format's runtime.
    """
    _check.whole(1)("threads", threads)
    blob = pathlib.Path(path).read_bytes()
    format, opened = _kind(blob, path)
    try:
        run, text = opened(blob, threads)
    except (ImportError, ValueError) as error:
        if isinstance(error, ImportError) or str(path) in str(error):
            raise
        raise _broken(path, format, error) from error
    except Exception as error:  # each runtime has its own, for what it cannot read
        raise _broken(path, format, error) from error
    notes = files.read_notes(text, path)
    # Notes of earlier files lack the two: those files are float32 at both ends.
    ends = (
        edges.Edge(**notes.get("input", {})),
        edges.Edge(**notes.get("output", {})),
    )
    return Executable(
        edges.in_float(run, ends),
        format,
        notes["name"],
        tuple(notes["image_shape"]),
        notes["batch"],
        tuple(notes["classes"]),
        *ends,
        _preprocessing(notes, path),
    )


def _preprocessing(notes: dict[str, Any], path: Any) -> Preprocessing | None:
    found = notes.get("preprocessing")
    try:
        return None if found is None else from_json(found)
    except (TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} says how images become its input in a form that this jaxkd does "
            f"not know: {error}"
        ) from error


def _broken(path: Any, format: str, error: Exception) -> ValueError:
    return ValueError(f"{path} is not a whole {format} file: {error}")


def _kind(blob: bytes, path: Any) -> tuple[str, Callable]:
    """Return the format of a file, and what opens it."""
    suffix = pathlib.Path(path).suffix
    if blob[4:8] == _tflite.MAGIC:
        return "tflite", _tflite.runner
    if blob.endswith(_stablehlo.MAGIC) or suffix == ".stablehlo":
        return "stablehlo", lambda blob, n: _stablehlo.runner(blob, path, n)
    # ONNX has no mark of its own, but begins with the field of its version.
    if blob[:1] == b"\x08":
        return "onnx", _onnx.runner
    raise ValueError(
        f"{path} is neither a StableHLO file of jaxkd.export nor .tflite nor .onnx"
    )


def evaluate(
    program: Executable, dataset: Dataset, *, view: View, batch_size: int = 500
) -> dict[str, float]:
    """Accuracy of the file itself on a split of a data set.

    Args:
      program: from `load`.
      dataset: from `jaxkd.data.load`, e.g. of the official test split.
      view: how the network was trained to see the images, uint8 to float32, e.g.
        `program.preprocessing.view()`. Its key is constant, so it should not be
        random.
      batch_size: images that are made ready at a time.

    Returns:
      "accuracy" in [0, 1] and "nll", the mean negative log-likelihood in nats.
    """
    found = predict(program, dataset.images, view=view, batch_size=batch_size)
    logits, labels = map(jnp.asarray, (found, dataset.labels))
    return {
        "accuracy": float(score.accuracy(logits, labels)),
        "nll": float(score.nll(logits, labels)),
    }


def predict(
    program: Executable, images: np.ndarray, *, view: View, batch_size: int = 500
) -> np.ndarray:
    """Logits `[n, classes]` of images as they are stored.

    Args:
      program: from `load`.
      images: uint8 or floats `[n, height, width, channels]`.
      view: how the network was trained to see them, `program.preprocessing.view()`.
      batch_size: images that are made ready at a time.
    """
    _check.whole(1)("batch_size", batch_size)
    seen = jax.jit(lambda images: view(jax.random.key(0), {"image": images})["image"])
    starts = range(0, len(images), batch_size)
    parts = [program(seen(images[start : start + batch_size])) for start in starts]
    return np.concatenate(parts)
