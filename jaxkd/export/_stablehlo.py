"""StableHLO: the plain program by `jax.export`, for every platform that XLA has."""

import functools
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxkd.compress.quantize import Quantization
from jaxkd.export import census, files, network, program
from jaxkd.export.write import Asked, Content, ExportReport, write
from jaxkd.models.net import Net
from jaxkd.types import Params, State

# Behind the program, where readers of jax.export do not look: the notes, their length
# in 8 bytes, and this.
MAGIC = b"JAXKD-HL"


def stablehlo(
    net: Net,
    params: Params,
    state: State,
    path: str | os.PathLike,
    *,
    quantize: Quantization | None = None,
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
    batch: int | None = None,
    **options: Any,
) -> ExportReport:
    """Write a network as StableHLO, which JAX alone can read.

    `jax.export.deserialize(bytearray(open(path, "rb").read())).call(images)` runs it
    in a process that has neither flax nor this library. A network from
    `compress.quantize.quantized` keeps its kernels in int8 and multiplies in integers.
    The file is there only if XLA computes with it what the network does, up to
    `tolerance` or `steps`.

    Args:
      net: a network, quantized or not; any function of images by `export.function`.
      params: its parameters; they become constants.
      state: its state, calibrated or trained if it is quantized.
      path: of the file, in a directory that exists; replaced if it is there.
      quantize: the configuration that `net` was quantized with; it is known from the
        network, and given only to be sure.
      platforms: where the file is to run, in one file.
      batch: how many images a call takes; None for any number.
      **options: `inputs` or `image_shape`, `name`, `classes`, `float_ops`,
        `tolerance`, `steps` and `measure`, as in `write.options`.

    Returns:
      What was written. Its operations are convolutions and matrix products alone.

    Raises:
      ValueError: if the file differs from the network by more than the limit, or
        cannot be compared because this machine is none of the platforms; if a weight
        or input is not finite; if a quantized product stays in float that `float_ops`
        does not allow; if the network cannot take any number of images and `batch` is
        None.
      FileNotFoundError: if there is no directory to write to.

    References:
      Exporting and serializing staged-out computations.
      https://docs.jax.dev/en/latest/export/export.html
    """

    def emit(closed: Any, asked: Asked) -> Content:
        if any(True for _ in census.fake_quants(closed)):
            raise ValueError(
                "the function is marked for a converter (quantize.deployed), and XLA "
                "would compute it in float: give the quantized network itself, "
                "export.stablehlo(net, params, state, path, ...)"
            )
        here = jax.default_backend() in [_PLATFORM.get(p, p) for p in platforms]
        if not here and asked.limits.tolerance is not None:
            raise ValueError(
                f"{path} was not written: a file for {list(platforms)} cannot be "
                f"compared with the network on this machine ({jax.default_backend()}); "
                "add its platform, or pass tolerance=None to write it unseen"
            )
        plain = jax.jit(functools.partial(program.call, closed))
        exported = jax.export.export(plain, platforms=list(platforms))
        with program.without_locations():
            image = jax.ShapeDtypeStruct(closed.in_avals[0].shape, np.float32)
            content = bytes(exported(image).serialize())
        notes = files.notes(
            "stablehlo",
            asked.image_shape,
            batch,
            *asked[3:5],
            preprocessing=asked.preprocessing,
        )
        return Content(content + footer(content, notes), count(closed))

    return write(
        "stablehlo",
        net,
        params,
        state,
        path,
        function_of=network.as_integers,
        emit=emit,
        quantize=quantize,
        target="xla",
        batch=batch,
        **options,
    )


_PLATFORM = {"cuda": "gpu", "rocm": "gpu"}


def count(closed: Any) -> census.Operations:
    """Products of integers and of floats."""
    integer, places = Counter[str](), dict[str, list[str]]()
    for equation in closed.jaxpr.eqns:
        name = equation.primitive.name
        if name in census.PRODUCTS:
            types = [v.aval.dtype for v in equation.invars]
            if all(np.issubdtype(t, np.integer) for t in types):
                integer[name] += 1
            else:
                at = census.place(f"{equation.source_info.name_stack}/{name}")
                places.setdefault(name, []).append(at)
    floats = Counter({name: len(at) for name, at in places.items()})
    return census.Operations(integer, floats, places)


def footer(content: bytes, notes: str) -> bytes:
    """Return the notes, with the digest of the program before them."""
    digest = hashlib.sha256(content).hexdigest()
    text = json.dumps({**json.loads(notes), "sha256": digest}).encode()
    return text + len(text).to_bytes(8, "little") + MAGIC


def split(blob: bytes, path: Any) -> tuple[bytes, bytes]:
    """Return the program and the notes of a file.

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
