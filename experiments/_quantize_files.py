"""Files of quantized networks: which runtime takes which, and what the files do."""

import importlib.util
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array

from jaxkd import data, export
from jaxkd.compress import quantize
from jaxkd.data.augment import View
from jaxkd.export import census, program
from jaxkd.models import Net

SUFFIX = {"LiteRT": "tflite", "XLA": "stablehlo"}
COMPARED = 128  # images on which a file and JAX are compared
Variables = tuple[Any, Any]


class Cell(NamedTuple):
    """One way to quantize.

    Attributes:
      method: "PTQ", "PTQ equalised", "PTQ corrected" or "QAT".
      activation: "dynamic" or "static".
      per_channel: scales of kernels; one for all if not.
      bits: of kernels.
      activation_bits: of what they are multiplied with.
    """

    method: str
    activation: str
    per_channel: bool
    bits: int
    activation_bits: int

    @property
    def name(self) -> str:
        """As the table says it."""
        scales = "per channel" if self.per_channel else "per tensor"
        bits = f"W{self.bits}A{self.activation_bits}"
        return f"{self.method} {self.activation} {scales} {bits}"


class Subject(NamedTuple):
    """A quantized network.

    Attributes:
      plain: the same network in float, of the same variables.
      net: from `quantize.quantized`.
      variables: its parameters and state.
      config: as given to `quantized`.
      cell: what it is called.
    """

    plain: Net
    net: Net
    variables: Variables
    config: quantize.Quantization
    cell: Cell


class Written(NamedTuple):
    """A network's file.

    Attributes:
      path: of it.
      runtime: "LiteRT" or "XLA".
      why: why it is not LiteRT's, or "".
      integer: operations of integers in it; in XLA's, products alone.
      floats: operations of floats, likewise.
    """

    path: pathlib.Path
    runtime: str
    why: str
    integer: int
    floats: int


def litert() -> bool:
    """Whether LiteRT and what makes its files are installed."""
    packages = ("litert_converter", "ai_edge_litert", "ai_edge_quantizer")
    return all(importlib.util.find_spec(package) for package in packages)


def why_not_litert(cell: Cell) -> str:
    """What keeps a network from becoming a LiteRT file as it was trained, or "".

    >>> why_not_litert(Cell("PTQ", "static", True, 8, 8)) if litert() else ""
    ''
    >>> "narrower" in why_not_litert(Cell("PTQ", "static", True, 4, 4)) or not litert()
    True
    """
    if not litert():
        return "the extra `litert` is not installed"
    if cell.activation_bits != 8:
        return "LiteRT has no activations narrower than 8 bits"
    if cell.activation == "dynamic" and not cell.per_channel:
        return "the dynamic recipe's kernels have one scale for each channel"
    if cell.activation == "dynamic" and cell.bits != 8:
        return "the dynamic recipe's kernels have 8 bits"
    return ""


def write(subject: Subject, shape: tuple[int, ...], stem: pathlib.Path) -> Written:
    """Writes a quantized network for the runtime that takes it as it was trained.

    Args:
      subject: the network.
      shape: of one image.
      stem: of the file, to which the format's suffix is added.
    """
    cell, variables = subject.cell, subject.variables
    if why := why_not_litert(cell):
        net = export.function(_in_integers(subject))
        return _xla(*net, shape, stem, why)
    path = stem.with_name(f"{stem.name}.tflite")
    if cell.activation == "dynamic":
        # Kernels of one scale a channel, by their abs-max: the recipe's own grid.
        made = export.tflite(
            subject.plain, *variables, path, image_shape=shape, quantize="dynamic"
        )
    else:
        made = export.tflite(subject.net, *variables, path, image_shape=shape)
    return Written(path, "LiteRT", "", *_operations(made))


def write_float(
    net: Net,
    variables: Variables,
    shape: tuple[int, ...],
    stem: pathlib.Path,
    runtime: str,
) -> Written:
    """Writes a network in float for a runtime."""
    if runtime == "XLA":
        why = "" if litert() else "no extra `litert`"
        return _xla(net, *variables, shape, stem, why)
    path = stem.with_name(f"{stem.name}.tflite")
    made = export.tflite(net, *variables, path, image_shape=shape)
    return Written(path, runtime, "", *_operations(made))


def _xla(
    net: Net,
    params: Any,
    state: Any,
    shape: tuple[int, ...],
    stem: pathlib.Path,
    why: str,
) -> Written:
    path = stem.with_name(f"{stem.name}.stablehlo")
    made = export.stablehlo(
        net, params, state, path, image_shape=shape, platforms=["cpu"]
    )
    return Written(path, "XLA", why, *_operations(made))


def _operations(made: export.Report) -> tuple[int, int]:
    return sum(made.integer_ops.values()), sum(made.float_ops.values())


def _in_integers(subject: Subject) -> Callable[[Array], Array]:
    """The network in int8 arithmetic; a dynamic range is that of one image."""
    apply, held = quantize.integer(subject.net, *subject.variables, subject.config)
    if subject.cell.activation == "static":
        return lambda x: apply(held, x)
    return lambda x: jax.vmap(lambda image: apply(held, image[None])[0])(x)


def in_jax(net: Net) -> Callable[[Variables, Array], Array]:
    """Logits of a network as it was trained; a dynamic range is that of one image."""

    def one(variables: Variables, image: Array) -> Array:
        outputs, _ = net.apply(*variables, image[None], train=False)
        return outputs.logits[0]

    return jax.jit(jax.vmap(one, in_axes=(None, 0)))


def step(subject: Subject, shape: tuple[int, ...]) -> float | None:
    """The distance between two logits that a static grid can tell apart."""
    if subject.cell.activation == "dynamic":
        return None
    f = quantize.deployed(subject.net, *subject.variables, subject.config)
    return census.of(program.trace(f, shape, 1)).step


def logits(path: pathlib.Path, test: data.Dataset, view: View) -> np.ndarray:
    """What a file says of every image of a split."""
    opened = export.load(path)
    return np.concatenate([opened(part) for part in seen(test, view)])


def seen(
    images: data.Dataset, view: View, *, size: int = 500, most: int | None = None
) -> list[Array]:
    """Images as networks see them, `size` at a time."""
    look = jax.jit(lambda batch: view(jax.random.key(0), batch)["image"])
    total = len(images.labels) if most is None else min(most, len(images.labels))
    parts = [slice(at, min(at + size, total)) for at in range(0, total, size)]
    return [
        look({"image": images.images[part], "label": images.labels[part]})
        for part in parts
    ]


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Percent of images of which the largest logit is the label's.

    >>> accuracy(np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([0, 1]))
    50.0
    """
    return float(100 * np.mean(np.argmax(logits, 1) == labels))


def agreement(a: np.ndarray, b: np.ndarray) -> float:
    """Percent of images that two networks put into the same class.

    >>> agreement(np.array([[1, 0], [1, 0]]), np.array([[3, 2], [0, 1]]))
    50.0
    """
    return accuracy(a, np.argmax(b, 1))


def latencies(paths: dict[str, pathlib.Path], repeats: int) -> dict[str, float]:
    """Median milliseconds of one image on one thread; files of a runtime take turns."""
    found: dict[str, float] = {}
    for suffix in SUFFIX.values():
        own = {name: path for name, path in paths.items() if path.suffix[1:] == suffix}
        times = export.latency(list(own.values()), repeats=repeats) if own else []
        found |= dict(zip(own, times, strict=True))
    return found
