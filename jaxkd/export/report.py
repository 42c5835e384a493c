"""What was written to a file, checked before it is there."""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxkd import _check, _files
from jaxkd.export import census, latency, program


class Options(NamedTuple):
    """What a caller of an exporter asked for; see `options`."""

    name: str
    classes: tuple[str, ...]
    examples: np.ndarray
    float_ops: tuple[str, ...]
    measure: bool


class Report(NamedTuple):
    """What an exporter wrote.

    Attributes:
      path: of the file.
      format: "stablehlo", "tflite" or "onnx".
      bytes: of the file.
      float_bytes: of the program's constants in float32.
      integer_ops: operations of integers in the file, by name, and how many.
      float_ops: operations of floats; moves and conversions are not counted.
      difference: max |file - JAX| over the examples, or None without the runtime.
      steps: the same in steps of the output's quantization, or None if it has none.
      milliseconds: median time of a call at one thread, or None if not measured.
    """

    path: str
    format: str
    bytes: int
    float_bytes: int
    integer_ops: dict[str, int]
    float_ops: dict[str, int]
    difference: float | None
    steps: float | None
    milliseconds: float | None

    def __str__(self) -> str:
        shown = lambda x, unit: "not known" if x is None else f"{x:.3g}{unit}"
        return (
            f"{self.path}: {self.bytes:,} bytes of {self.float_bytes:,} in float32 "
            f"({self.float_bytes / self.bytes:.2f}x); "
            f"{sum(self.integer_ops.values())} integer and "
            f"{sum(self.float_ops.values())} float operations; difference to JAX "
            f"{shown(self.difference, '')}, in output steps {shown(self.steps, '')}; "
            f"latency {shown(self.milliseconds, ' ms')}"
        )


def finish(
    f: Any,
    closed: Any,
    blob: bytes,
    path: str | os.PathLike,
    *,
    format: str,
    ops: tuple[Counter, Counter],
    run: Callable | None,
    options: Options,
) -> Report:
    """Checks and compares a file's content, then writes it.

    Args:
      f: the function that was exported.
      closed: its plain program.
      blob: the file's content.
      path: where to write it.
      format: its name.
      ops: operations of integers and of floats in it.
      run: images to logits by the format's runtime, or None without it.
      options: what the caller asked for.
    """
    wanted = census.of(closed)
    census.check(str(path), wanted, *ops, options.float_ops)
    difference = steps = milliseconds = None
    if run is not None:
        batch = closed.in_avals[0].shape[0]
        run = batched(run, batch if isinstance(batch, int) else None)
        images = options.examples
        expected = reference(f, images)
        difference = float(np.max(np.abs(run(images) - expected)))
        steps = None if wanted.step is None else difference / wanted.step
        if options.measure:
            one = images[: batch if isinstance(batch, int) else 1]
            (milliseconds,) = latency.medians([lambda: run(one)])
    _files.write(path, blob)
    return Report(
        str(path),
        format,
        len(blob),
        wanted.bytes,
        dict(ops[0]),
        dict(ops[1]),
        difference,
        steps,
        milliseconds,
    )


def reference(f: Callable, images: np.ndarray) -> np.ndarray:
    """What `f` itself gives, compiled with its constants as arguments.

    XLA would spend most of its time on computing with constants that are known to it.
    """
    closed = jax.make_jaxpr(f)(images)
    run = jax.jit(lambda consts, x: jax.core.eval_jaxpr(closed.jaxpr, consts, x)[0])
    return np.asarray(run(closed.consts, images))


def options(
    image_shape: Sequence[int],
    batch: int | None,
    *,
    name: str = "",
    classes: Sequence[str] = (),
    examples: Any = None,
    float_ops: Sequence[str] = (),
    measure: bool = False,
) -> Options:
    """The knobs of every exporter, checked.

    Args:
      image_shape: of one image.
      batch: how many images a call takes; None for any number.
      name: what the network is called, kept in the file.
      classes: the names of the classes, kept in the file.
      examples: images to compare the file with `f` on, `[n, *image_shape]`; without
        them, eight (or a whole batch) of normal noise.
      float_ops: names of operations that may stay in float in a program of which every
        product is quantized.
      measure: also time the file, in this process and with one thread.
    """
    shape = program.check_image_shape(image_shape)
    if batch is not None:
        _check.whole(1)("batch", batch)
    if examples is None:
        noise = np.random.default_rng(0).normal(size=(max(8, batch or 1), *shape))
        examples = noise
    images = np.asarray(examples, np.float32)
    if images.shape[1:] != shape or not len(images):
        got = f"got {images.shape}"
        raise ValueError(f"examples must be [n, {', '.join(map(str, shape))}], {got}")
    return Options(name, tuple(classes), images, tuple(float_ops), measure)


def batched(run: Callable, batch: int | None) -> Callable:
    """The same for any number of images, where `run` takes so many (None: any)."""
    if batch is None:
        return run

    def call(images: np.ndarray) -> np.ndarray:
        n = len(images)
        rows = np.arange(-(-n // batch) * batch) % n  # the last batch is filled up
        parts = [run(images[part]) for part in rows.reshape(-1, batch)]
        return np.concatenate(parts)[:n]

    return call
