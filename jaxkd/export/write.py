"""Writing a file: what is asked is checked, the file is judged, then it is there."""

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxkd import _check, store
from jaxkd.compress.quantize import Quantization
from jaxkd.data import Preprocessing
from jaxkd.export import _latency, census, edges, files, network, program
from jaxkd.export.judge import Limits, Verdict, batched, judge, reference
from jaxkd.models.net import Net
from jaxkd.types import Params, State

ANY = "any"  # of `float_ops`: whatever the file has


class Asked(NamedTuple):
    """What a caller of an exporter asked for; see `options`."""

    image_shape: tuple[int, ...]
    batch: int | None
    inputs: np.ndarray
    name: str
    classes: tuple[str, ...]
    float_ops: tuple[str, ...] | str
    limits: Limits
    measure: bool
    preprocessing: Preprocessing | None


class Content(NamedTuple):
    """A file that is not written yet.

    Attributes:
      blob: its bytes.
      ops: its operations.
      rounded: whether it is quantized though the program is not.
    """

    blob: bytes
    ops: census.Operations
    rounded: bool = False


class ExportReport(NamedTuple):
    """What an exporter wrote.

    Attributes:
      path: of the file.
      format: "stablehlo", "tflite" or "onnx".
      bytes: of the file.
      float_bytes: of the program's constants in float32.
      integer_ops: operations of integers in the file, by name, and how many.
      float_ops: operations of floats; moves and conversions are not counted.
      float_places: for each of these names, the modules that the operations are of.
      difference: max |file - network| over the inputs, or None if not compared.
      steps: the same in steps of the output, or None for a file in float.
      milliseconds: median time of a call at one thread, or None if not measured.
    """

    path: str
    format: str
    bytes: int
    float_bytes: int
    integer_ops: dict[str, int]
    float_ops: dict[str, int]
    float_places: dict[str, list[str]]
    difference: float | None
    steps: float | None
    milliseconds: float | None

    def __str__(self) -> str:
        shown = lambda x, unit: "not known" if x is None else f"{x:.3g}{unit}"
        floats = sum(self.float_ops.values())
        quantized = f" ({census.listed(self.float_places)})" * bool(self.integer_ops)
        return (
            f"{self.path}: {self.bytes:,} bytes of {self.float_bytes:,} in float32 "
            f"({self.float_bytes / self.bytes:.2f}x); "
            f"{sum(self.integer_ops.values())} integer and {floats} float operations"
            f"{quantized * bool(floats)}; difference to the network "
            f"{shown(self.difference, '')}, in output steps {shown(self.steps, '')}; "
            f"latency {shown(self.milliseconds, ' ms')}"
        )


def options(
    *,
    inputs: Any = None,
    image_shape: Sequence[int] | None = None,
    batch: int | None = None,
    name: str = "",
    classes: Sequence[str] = (),
    float_ops: Sequence[str] | str = (),
    tolerance: float | None = 1e-3,
    steps: float = 5.0,
    measure: bool = False,
    preprocessing: Preprocessing | None = None,
) -> Asked:
    """Check the options that every exporter has.

    Args:
      inputs: images `[n, *image_shape]` to compare the file with the network on, as
        the network sees them; without them eight (or a whole batch) of normal noise.
      image_shape: of one image, e.g. `(height, width, channels)`; needed only without
        `inputs`.
      batch: how many images a call takes; None for any number.
      name: what the network is called, kept in the file.
      classes: the names of the classes, kept in the file.
      float_ops: names of operations that may stay in float in a file of a network of
        which every product is quantized; "any" allows all, lists them in the report,
        and leaves constant arrays that are added or multiplied in float.
      tolerance: how far the outputs of a float file may be from the network's,
        relative to the largest; None writes any file without running it.
      steps: how far those of a quantized file may be, in steps of the output. The file
        sums integers, exactly; the network in fake quantization sums float32. A sum
        within float32's rounding of the middle between two steps is rounded to one side
        by the one and to the other side by the other, which happens on some images and
        not on others, and operations in float (a cumulative sum) can enlarge it.
      measure: also time the file, in this process and with one thread.
      preprocessing: how images become `inputs`, kept in the file for `jaxkd eval` and
        `jaxkd predict`, e.g. that of `data.folder`.

    Raises:
      ValueError: if one of them is out of its range.
    """
    if batch is not None:
        _check.whole(1)("batch", batch)
    if tolerance is not None:
        _check.positive("tolerance", tolerance)
    _check.positive("steps", steps)
    if isinstance(float_ops, str) and float_ops != ANY:
        raise ValueError(f'float_ops must be "any" or a list, got {float_ops!r}')
    if inputs is None and image_shape is None:
        raise ValueError("give inputs, images to compare the file on, or image_shape")
    images = None if inputs is None else np.asarray(inputs, np.float32)
    given = image_shape if images is None or image_shape else images.shape[1:]
    shape = program.check_image_shape(given or ())
    if images is None:
        noise = np.random.default_rng(0).normal(size=(max(8, batch or 1), *shape))
        images = noise.astype(np.float32)
    if images.shape[1:] != shape or not len(images):
        got = f"got {images.shape}"
        raise ValueError(f"inputs must be [n, {', '.join(map(str, shape))}], {got}")
    allowed = float_ops if isinstance(float_ops, str) else tuple(float_ops)
    limits = Limits(tolerance, steps)
    named = tuple(classes)
    return Asked(
        shape, batch, images, name, named, allowed, limits, measure, preprocessing
    )


def write(
    format: str,
    net: Net,
    params: Params,
    state: State,
    path: str | os.PathLike,
    *,
    function_of: Callable[..., network.Function],
    emit: Callable[[Any, Asked], Content],
    quantize: Quantization | None,
    target: str,
    **given: Any,
) -> ExportReport:
    """Write a network as a file, once the file computes what the network does.

    Args:
      format: its name.
      net: the network.
      params: its parameters.
      state: its state.
      path: where to write it.
      function_of: `(net, params, state, configuration)` to the function that the file
        is made from.
      emit: its program to the file's content.
      quantize: what the caller gave.
      target: the runtime, as for `program.plain`.
      **given: the options.

    Returns:
      What was written.
    """
    files.check_directory(path)
    asked = options(**given)
    network.check_finite(params, state, asked.inputs)
    own = network.check_quantize(net, params, state, quantize)
    f = function_of(net, params, state, own)
    shape, batch = asked.image_shape, asked.batch
    exact = asked.float_ops == ANY
    closed = program.trace(f, shape, batch, target=target, exact=exact)
    census.check_finite(closed)
    content = emit(closed, asked)
    needed = census.of(closed)
    census.check(str(path), needed, content.ops, asked.float_ops)
    marked = needed.integer > 0 and any(True for _ in census.fake_quants(closed))
    coarse = content.rounded or marked
    if own is not None:
        coarse = own.activation != "float"
    verdict = Verdict(None, None)
    times: list[float] = []

    def check(written: os.PathLike) -> None:
        nonlocal verdict
        if asked.limits.tolerance is None:
            return
        from jaxkd.export._load import load

        try:
            opened = load(written)
        except ValueError as error:
            raise ValueError(
                f"{path} was not written: its own runtime does not open it "
                f"({error.__cause__ or error}). Write another format, or use another "
                "operation in the place of the one that it names"
            ) from error
        # Accelerators would round float32 to fewer bits than the file's runtime.
        with jax.default_matmul_precision("highest"):
            wanted = reference(network.logits(net, params, state), batch)(asked.inputs)
        verdict = judge(
            path,
            batched(opened.run, batch),
            wanted,
            asked.inputs,
            asked.limits,
            quantized=coarse,
            step=needed.step,
        )
        if asked.measure:
            one = edges.quantized(opened.input, asked.inputs[: batch or 1])
            times.extend(_latency.medians([lambda: batched(opened.run, batch)(one)]))

    store.write_file(path, content.blob, check)
    return ExportReport(
        str(path),
        format,
        len(content.blob),
        needed.bytes,
        dict(content.ops.integer),
        dict(content.ops.floats),
        content.ops.places,
        verdict.difference,
        verdict.steps,
        times[0] if times else None,
    )
