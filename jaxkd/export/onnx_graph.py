"""An ONNX graph while it is written: nodes, constants, and values with an axis order.

Images lie in memory as ONNX's operators want them, channels before space, while the
program says channels last. So a value carries the order in which its axes lie, and a
Transpose is written only where two orders meet.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

INPUT, OUTPUT = "image", "logits"
Shape = tuple[Any, ...]  # integers, and a symbol for the number of images


class Int8(NamedTuple):
    """A constant on a grid: `scale * (numbers - zero)`.

    Attributes:
      numbers: int8 of kernels, uint8 of what meets activations.
      scale: of each channel, or one.
      axis: of the channels, or None.
      zero: the number that stands for 0, of a constant with one scale.
    """

    numbers: np.ndarray
    scale: np.ndarray
    axis: int | None
    zero: int = 0


class Value(NamedTuple):
    """An array of the program.

    Attributes:
      shape: in the program.
      name: of the tensor in the graph; None for a constant.
      order: axis `order[i]` of the program is the tensor's axis i.
      const: the array, if it is known.
      grid: its integers, if it was marked as quantized and is known.
      scale: of the quantization that it comes from unchanged, if there is one scale.
      node: the product it comes from, to which a bias can be added.
      sums: the step of that product's integer sums, of each channel or of all.
      total: `(node, count)` of the mean that it is `count` times of.
    """

    shape: Shape
    name: str | None = None
    order: tuple[int, ...] = ()
    const: np.ndarray | None = None
    grid: Int8 | None = None
    scale: float | None = None
    node: Any = None
    sums: np.ndarray | None = None
    total: tuple["Value", int] | None = None


class OnnxGraph(NamedTuple):
    """A graph so far; its fields grow.

    Attributes:
      nodes: in an order in which they can run.
      constants: that they read.
      known: names of constants by type, shape and content.
      scope: the module that is being written, alone in its list.
    """

    nodes: list
    constants: list
    known: dict
    scope: list


def shape_of(equation: Any) -> Shape:
    """Of an equation's first result."""
    return tuple(equation.outvars[0].aval.shape)


def pads(padding: Sequence[Sequence[int]]) -> list[int]:
    """(low, high) of each axis as ONNX has them: all lows, then all highs."""
    return [pad[0] for pad in padding] + [pad[1] for pad in padding]


def memory_order(rank: int) -> tuple[int, ...]:
    """Channels before space for images; the program's own order otherwise."""
    return (0, 3, 1, 2) if rank == 4 else tuple(range(rank))


def constant(graph: OnnxGraph, array: Any) -> str:
    """Store an array; its name."""
    from onnx import numpy_helper

    array = np.asarray(array, order="C")
    key = (array.dtype.str, array.shape, array.tobytes())
    if key in graph.known:  # e.g. of every step of a loop
        return graph.known[key]
    name = graph.known[key] = f"c{len(graph.constants)}"
    graph.constants.append(numpy_helper.from_array(array, name))
    return name


def node(graph: OnnxGraph, kind: str, inputs: Sequence[str], **attributes: Any) -> str:
    """Write an operation; the name of its output."""
    from onnx import helper

    name = f"{graph.scope[0]}/{kind}_{len(graph.nodes)}"
    made = helper.make_node(kind, list(inputs), [name], name=name, **attributes)
    graph.nodes.append(made)
    return name


def tensor(graph: OnnxGraph, value: Value, order: Sequence[int] | None = None) -> str:
    """The tensor's name, with its axes in this order (default: as images lie)."""
    rank = len(value.shape)
    order = memory_order(rank) if order is None else tuple(order)
    if value.grid is not None:
        return dequantized(graph, value.grid, order)
    if value.const is not None:
        return constant(graph, np.transpose(_plain_type(value.const), order))
    if value.order == order:
        return value.name  # type: ignore[return-value]
    steps = [value.order.index(axis) for axis in order]
    return node(graph, "Transpose", [value.name], perm=steps)  # type: ignore[list-item]


def _plain_type(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) if array.dtype == np.float64 else array


def dequantized(graph: OnnxGraph, grid: Int8, order: Sequence[int]) -> str:
    """Return a stored constant of integers, with its axes in this order."""
    numbers = constant(graph, np.transpose(grid.numbers, order))
    if grid.axis is None:
        zero = constant(graph, grid.numbers.dtype.type(grid.zero))
        scale = [constant(graph, grid.scale.reshape(())), zero]
        return node(graph, "DequantizeLinear", [numbers, *scale])
    zeros = np.zeros(grid.scale.shape, np.int8)
    scale = [constant(graph, grid.scale), constant(graph, zeros)]
    axis = tuple(order).index(grid.axis)
    return node(graph, "DequantizeLinear", [numbers, *scale], axis=axis)


def aligned(
    graph: OnnxGraph, values: Sequence[Value]
) -> tuple[list[str], tuple[int, ...]]:
    """The tensors of operands that meet element by element, and their common order."""
    order = next(
        (v.order for v in values if v.name is not None and v.shape),
        memory_order(max(len(v.shape) for v in values)),
    )
    return [
        tensor(graph, v, order if len(v.shape) == len(order) else None) for v in values
    ], order
