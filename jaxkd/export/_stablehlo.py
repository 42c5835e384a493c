"""StableHLO: the plain program by `jax.export`, for every platform that XLA has."""

import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from jaxkd.export import census, files, program, report
from jaxkd.export.report import Report

# Behind the program, where readers of jax.export do not look: the notes, their length
# in 8 bytes, and this.
MAGIC = b"JAXKD-HL"


def stablehlo(
    f: program.Function,
    image_shape: Sequence[int],
    path: Any,
    *,
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
    batch: int | None = None,
    **options: Any,
) -> Report:
    """Writes a function of images as StableHLO, which JAX alone can read.

    `jax.export.deserialize(bytearray(open(path, "rb").read())).call(images)` runs it
    in a process that has neither flax nor this library. Constants keep their types:
    int8 kernels stay int8. For products of integers, give a function that computes in
    them, as `jaxkd.compress.quantize.integer` makes it: fake quantization is refused.

    Args:
      f: images to logits, its parameters closed over, e.g. from `inference`.
      image_shape: `(height, width, channels)` of one image.
      path: of the file, in a directory that exists; replaced if it is there.
      platforms: where the file is to run, in one file.
      batch: how many images a call takes; None for any number.
      **options: `name`, `classes`, `examples`, `float_ops` and `measure`, as in
        `report.options`.

    Returns:
      What was written. Its operations are convolutions and matrix products alone.

    Raises:
      ValueError: if `f` is fake-quantized, or `f` cannot take any number of images and
        `batch` is None.
      FileNotFoundError: if there is no directory to write to.

    References:
      Exporting and serializing staged-out computations.
      https://docs.jax.dev/en/latest/export/export.html
    """
    files.check_directory(path)
    asked = report.options(image_shape, batch, **options)
    closed = program.trace(f, image_shape, batch)
    if any(True for _ in census.fake_quants(closed)):
        raise ValueError(
            "f is fake-quantized, which StableHLO would compute in float: give the "
            "function that computes in integers, of compress.quantize.integer"
        )
    exported = jax.export.export(jax.jit(program.plain(f)), platforms=list(platforms))
    with _without_locations():
        content = bytes(exported(program.image(image_shape, batch)).serialize())
    notes = files.notes("stablehlo", image_shape, batch, asked.name, asked.classes)
    blob = content + footer(content, notes)
    here = jax.default_backend() in [_PLATFORM.get(p, p) for p in platforms]
    return report.finish(
        f,
        closed,
        blob,
        path,
        format="stablehlo",
        ops=count(closed),
        run=runner(blob, path, 1)[0] if here else None,
        options=asked,
    )


@contextlib.contextmanager
def _without_locations() -> Iterator[None]:
    """The file is the same whoever calls: it does not say where in their code."""
    limit = "jax_traceback_in_locations_limit"
    before = getattr(jax.config, limit)
    jax.config.update(limit, 0)
    try:
        yield
    finally:
        jax.config.update(limit, before)


_PLATFORM = {"cuda": "gpu", "rocm": "gpu"}


def count(closed: Any) -> tuple[Counter, Counter]:
    """Products of integers and of floats."""
    integer, floats = Counter[str](), Counter[str]()
    for equation in closed.jaxpr.eqns:
        name = equation.primitive.name
        if name in census.PRODUCTS:
            types = [v.aval.dtype for v in equation.invars]
            whole = all(np.issubdtype(t, np.integer) for t in types)
            (integer if whole else floats)[name] += 1
    return integer, floats


def footer(content: bytes, notes: str) -> bytes:
    """The notes, with the digest of the program before them."""
    digest = hashlib.sha256(content).hexdigest()
    text = json.dumps({**json.loads(notes), "sha256": digest}).encode()
    return text + len(text).to_bytes(8, "little") + MAGIC


def split(blob: bytes, path: Any) -> tuple[bytes, bytes]:
    """The program and the notes of a file.

    Raises:
      ValueError: if the file is not whole.
    """
    size = int.from_bytes(blob[-16:-8], "little")
    if blob[-8:] != MAGIC or size + 16 > len(blob):
        raise ValueError(f"{path} is not a whole StableHLO file of jaxkd.export")
    content, text = blob[: -16 - size], blob[-16 - size : -16]
    stated = files.read_notes(text, path).get("sha256")
    if hashlib.sha256(content).hexdigest() != stated:
        raise ValueError(f"{path} is damaged: its content has another sha256")
    return content, text


def runner(blob: bytes, path: Any, threads: int | None) -> tuple[Callable, bytes]:
    """`images -> logits` by XLA, compiled for each number of images, and the notes."""
    content, notes = split(blob, path)
    exported = jax.export.deserialize(bytearray(content))
    one = threads == 1 and jax.default_backend() == "cpu"
    single = {"xla_cpu_multi_thread_eigen": False} if one else None
    compiled = jax.jit(exported.call, compiler_options=single)
    return lambda images: np.asarray(compiled(images)), notes
