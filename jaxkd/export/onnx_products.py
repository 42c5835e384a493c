"""Rules of the ONNX emitter for products: convolutions, dense layers, einsums."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxkd.export import onnx_moves as moves
from jaxkd.export.onnx_graph import (
    OnnxGraph,
    Value,
    constant,
    dequantized,
    node,
    pads,
    shape_of,
    tensor,
)


def _whole(equation: Any) -> str:
    return (
        f"a product of {equation.invars[0].aval.dtype}; give the quantized network "
        "itself, not the function of quantize.integer"
    )


def _weight(graph: OnnxGraph, kernel: Value, order: Sequence[int]) -> str:
    if kernel.grid is not None:
        return dequantized(graph, kernel.grid, order)
    return tensor(graph, kernel, order)


def convolution(graph: OnnxGraph, equation: Any, x: Value, kernel: Value) -> Value:
    """Emit a Conv for a convolution of images, also a grouped or dilated one."""
    p = equation.params
    numbers, rank = p["dimension_numbers"], len(x.shape)
    if rank != 4 or p["batch_group_count"] != 1 or set(p["lhs_dilation"]) != {1}:
        raise NotImplementedError("convolution other than of images")
    if any(n < 0 for pad in p["padding"] for n in pad):
        raise NotImplementedError("convolution with negative padding")
    if equation.invars[0].aval.dtype != np.float32:
        raise NotImplementedError(_whole(equation))
    names = [
        tensor(graph, x, numbers.lhs_spec),
        _weight(graph, kernel, numbers.rhs_spec),
    ]
    out = node(
        graph,
        "Conv",
        names,
        kernel_shape=[kernel.shape[axis] for axis in numbers.rhs_spec[2:]],
        strides=list(p["window_strides"]),
        pads=pads(p["padding"]),
        dilations=list(p["rhs_dilation"]),
        group=p["feature_group_count"],
    )
    made = Value(shape_of(equation), out, tuple(numbers.out_spec))
    return _product(graph, made, x, kernel)


def _product(graph: OnnxGraph, made: Value, x: Value, kernel: Value) -> Value:
    sums = None
    if kernel.grid is not None and x.scale is not None:
        sums = kernel.grid.scale * np.float32(x.scale)
    return made._replace(node=graph.nodes[-1], sums=sums)


def dot(graph: OnnxGraph, equation: Any, x: Value, y: Value) -> Value:
    """Gemm for a dense layer of vectors, MatMul for the rest."""
    (left, right), (left_batch, right_batch) = equation.params["dimension_numbers"]
    if equation.invars[0].aval.dtype != np.float32:
        raise NotImplementedError(_whole(equation))
    free = lambda v, *used: [i for i in range(len(v.shape)) if i not in used]
    mine, others = free(x, *left, *left_batch), free(y, *right, *right_batch)
    first, second = (*left_batch, *mine, *left), (*right_batch, *right, *others)
    shape, order = shape_of(equation), tuple(range(len(shape_of(equation))))
    if len(x.shape) == len(y.shape) == 2 and not left_batch:
        names = [tensor(graph, x, first), _weight(graph, y, second)]
        return _product(graph, Value(shape, node(graph, "Gemm", names), order), x, y)
    outer, summed = len(left_batch), len(left)
    if y.grid is not None and len(y.shape) == 2 and summed == 1:
        return _dense(graph, Value(shape, order=order), x, y, first, second)
    if len(others) == summed == 1 and (len(mine) == 1 or not outer):
        names = [tensor(graph, x, first), _weight(graph, y, second)]
        return Value(shape, node(graph, "MatMul", names), order)
    turned = not outer and not _sized(y, others)  # the images are on the right
    if turned:
        x, y, mine, others = y, x, others, mine
        first, second = (*mine, *right), (*left, *others)
    # One axis that is summed over and one free axis, as MatMul wants them; on the left
    # there may be more, if on the right there are none of batches.
    ends = (outer, outer + len(mine)), (outer + len(mine), len(first))
    columns = (outer, outer + summed), (outer + summed, len(second))
    names = [
        _folded(graph, x, first, ends if outer else ends[1:]),
        _folded(graph, y, second, columns),
    ]
    product = node(graph, "MatMul", names)
    if turned:
        order = (*range(len(others), len(shape)), *range(len(others)))
    sizes = moves.sizes(graph, [shape[axis] for axis in order])
    return Value(shape, node(graph, "Reshape", [product, sizes]), order)


def _dense(
    graph: OnnxGraph,
    made: Value,
    x: Value,
    kernel: Value,
    first: Sequence[int],
    second: Sequence[int],
) -> Value:
    """Return a quantized dense layer of many vectors: the integer Gemm adds a bias."""
    rows = constant(graph, np.asarray([-1, kernel.shape[second[0]]], np.int64))
    flat = node(graph, "Reshape", [tensor(graph, x, first), rows])
    out = node(graph, "Gemm", [flat, _weight(graph, kernel, second)])
    product = _product(graph, made, x, kernel)
    name = node(graph, "Reshape", [out, moves.sizes(graph, made.shape)])
    return product._replace(name=name)


def _sized(x: Value, axes: Sequence[int]) -> bool:
    return all(isinstance(x.shape[axis], int) for axis in axes)


def _folded(
    graph: OnnxGraph,
    x: Value,
    order: Sequence[int],
    parts: Sequence[tuple[int, int]],
) -> str:
    """The tensor, its axes in this order, with its last parts as one axis each."""
    axes = [x.shape[axis] for axis in order]
    merged = []
    for part in parts:
        some = axes[slice(*part)]
        if not all(isinstance(n, int) for n in some) and len(some) > 1:
            raise NotImplementedError(
                "a matrix product that keeps the batch and other axes of one operand"
            )
        merged.append(some[0] if len(some) == 1 else math.prod(some))
    shape = [*axes[: parts[0][0]], *merged]
    if x.grid is not None:  # stored as it is read, so that it stays one constant
        numbers = np.transpose(x.grid.numbers, order).reshape(shape)
        axis = x.grid.axis
        if axis is not None:
            axis = _axis_after(tuple(order).index(axis), parts)
        grid = x.grid._replace(numbers=numbers, axis=axis)
        return dequantized(graph, grid, range(len(shape)))
    name = tensor(graph, x, order)
    if len(shape) == len(axes):
        return name
    return node(graph, "Reshape", [name, moves.sizes(graph, shape)])


def _axis_after(axis: int, parts: Sequence[tuple[int, int]]) -> int:
    """Return where an axis is once each part is one; it must be a part of its own."""
    if axis < parts[0][0]:
        return axis
    for number, (start, end) in enumerate(parts):
        if (start, end) == (axis, axis + 1):
            return parts[0][0] + number
    raise NotImplementedError("product over several axes with a scale for each channel")
