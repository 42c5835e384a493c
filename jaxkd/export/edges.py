"""The input and the output of a file: in float32, or in int8 on a grid."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jaxkd.export import census

TYPES = ("float32", "int8")
REMEDY = 'leave io out, or pass io="float32"'


class Edge(NamedTuple):
    """The input or the output of a file: `number = scale * (integer - zero_point)`.

    Attributes:
      dtype: "float32" or "int8".
      scale: the step between two integers; 1 in float32.
      zero_point: the integer that stands for 0; 0 in float32.
    """

    dtype: str = "float32"
    scale: float = 1.0
    zero_point: int = 0


Ends = tuple[Edge, Edge]  # the input and the output
FLOAT: Ends = (Edge(), Edge())


def of(closed: Any, io: str) -> Ends:
    """Return the input and the output that the file of a plain program has.

    Args:
      closed: from `program.trace`.
      io: "float32" or "int8".

    Raises:
      ValueError: if `io` is "int8", and the images or the logits of the program are
        not marked as 8-bit integers of one static scale.
    """
    if io == "float32":
        return FLOAT
    if not any(True for _ in census.fake_quants(closed)):
        raise ValueError(
            'io="int8" is for a quantized network, and net is in float: first net, '
            "params, state = quantize.quantized(net, params, state, Quantization("
            'activation="static"), image_shape), then state = quantize.calibrate(net, '
            f"params, state, batches); or {REMEDY}"
        )
    if not census.of(closed).integer:
        raise ValueError(
            'io="int8" needs static ranges of activations, and net has none (its '
            'activations are "dynamic" or "float"): quantize it with Quantization('
            f'activation="static"), and calibrate it; or {REMEDY}'
        )
    equations, (image,) = closed.jaxpr.eqns, closed.jaxpr.invars
    readers = [e for e in equations if any(v is image for v in e.invars)]
    makers = [e for e in equations if closed.jaxpr.outvars[0] in e.outvars]
    return _edge("images", "read", readers), _edge("logits", "computed", makers)


def _edge(what: str, done: str, equations: list) -> Edge:
    """Return the grid of the images, by all that read them, or of the logits."""
    found = set()
    for equation in equations:
        marks = census.attributes(equation) if census.is_fake_quant(equation) else {}
        scale = np.asarray(marks.get("scale", ()), np.float32).reshape(-1)
        if marks.get("dtype") != "i8" or scale.size != 1:
            name, scope = equation.primitive.name, equation.source_info.name_stack
            kind = "4-bit" if marks.get("dtype") == "i4" else "float"
            raise ValueError(
                f'io="int8" needs 8-bit {what}, and they are {done} in {kind} by '
                f"{name} in {census.place(f'{scope}/{name}')}: if Quantization("
                "layers=...) gives the first or the last layer other bits, take that "
                f"out; else {REMEDY}"
            )
        zero = np.asarray(marks.get("zero_point", 0)).reshape(-1)
        found.add(Edge("int8", float(scale[0]), int(zero[0])))
    if len(found) != 1:
        raise ValueError(
            f'io="int8" needs one scale of the {what}, and there are {len(found)}: '
            f"{REMEDY}"
        )
    return found.pop()


def quantized(edge: Edge, x: np.ndarray) -> np.ndarray:
    """Return the integers of float images; integers, and images of float32, as is.

    >>> quantized(Edge("int8", 0.5, -1), np.array([-90.0, 0.2, 1.0])).tolist()
    [-128, -1, 1]
    """
    if edge.dtype == "float32" or np.issubdtype(x.dtype, np.integer):
        return x
    steps = np.round(np.asarray(x, np.float32) / np.float32(edge.scale))
    return np.clip(steps + edge.zero_point, -128, 127).astype(np.int8)


def dequantized(edge: Edge, y: np.ndarray) -> np.ndarray:
    """Return the float32 numbers of a file's output.

    >>> dequantized(Edge("int8", 0.5, -1), np.array([-3, 0], np.int8)).tolist()
    [-1.0, 0.5]
    """
    if edge.dtype == "float32":
        return y
    return (y.astype(np.float32) - edge.zero_point) * np.float32(edge.scale)


def in_float(run: Callable, ends: Ends) -> Callable:
    """Return `float32 images -> float32 logits` of a file with these ends."""
    image, logits = ends
    return lambda x: dequantized(logits, run(quantized(image, x)))
