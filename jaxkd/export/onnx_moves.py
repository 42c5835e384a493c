"""Rules of the ONNX emitter for what moves numbers: reshapes, slices, padding."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxkd.export.onnx_graph import (
    INPUT,
    OnnxGraph,
    Value,
    aligned,
    constant,
    memory_order,
    node,
    pads,
    shape_of,
    tensor,
)


def transpose(graph: OnnxGraph, equation: Any, x: Value) -> Value:
    """No operation: from here on the axes are in another order than they lie."""
    permutation = equation.params["permutation"]
    order = tuple(permutation.index(axis) for axis in x.order)
    return x._replace(shape=shape_of(equation), order=order, node=None, total=None)


def _groups(before: Sequence, after: Sequence) -> list[tuple[list[int], list[int]]]:
    """Axes that a reshape merges or splits, as groups of the same size."""
    groups, i, j = [], 0, 0
    while i < len(before) or j < len(after):
        ins, outs = [], []
        if i < len(before):
            ins, i = [i], i + 1
        if j < len(after):
            outs, j = [j], j + 1
        size = lambda shape, axes: math.prod(shape[axis] for axis in axes)
        while size(before, ins) != size(after, outs):
            more_in = j >= len(after) or (
                i < len(before) and _divides(size(before, ins), size(after, outs))
            )
            if more_in:
                ins, i = [*ins, i], i + 1
            else:
                outs, j = [*outs, j], j + 1
        groups.append((ins, outs))
    return groups


def _divides(small: Any, large: Any) -> bool:
    """Whether the input's part is the smaller; the number of images counts as one."""
    sized = lambda n: n if isinstance(n, int) else math.inf
    return sized(small) < sized(large)


def reshape(graph: OnnxGraph, equation: Any, x: Value) -> Value:
    """Emit a Reshape, after a Transpose if the tensor's axes are in another order."""
    after = shape_of(equation)
    groups = _groups(x.shape, after)
    lies = _kept_order(x, after, groups)
    name = tensor(graph, x, [axis for g in lies for axis in groups[g][0]])
    order = tuple(axis for g in lies for axis in groups[g][1])
    lengths = [after[a] if isinstance(after[a], int) else -1 for a in order]
    if lengths.count(-1) > 1:
        raise NotImplementedError("reshape that spreads the batch")
    out = node(graph, "Reshape", [name, constant(graph, np.asarray(lengths, np.int64))])
    made = Value(after, out, order, scale=x.scale)
    wanted = memory_order(len(after))
    if len(after) == 4 and order != wanted:
        return made._replace(name=tensor(graph, made, wanted), order=wanted)
    return made


def _kept_order(x: Value, after: Sequence, groups: list) -> list[int]:
    """Return the groups in the order in which the input lies, or the output should."""
    for side, order in ((1, memory_order(len(after))), (0, x.order)):
        full = [g for g in range(len(groups)) if groups[g][side]]
        empty = [g for g in range(len(groups)) if not groups[g][side]]
        by_first = sorted(full, key=lambda g: order.index(groups[g][side][0]))
        flat = [axis for g in by_first for axis in groups[g][side]]
        if flat == list(order) and (side == 1) == (len(after) == 4):
            return empty + by_first
    return list(range(len(groups)))


def squeeze(graph: OnnxGraph, equation: Any, x: Value) -> Value:
    """Return a Reshape without the axes of length 1."""
    return reshape(graph, equation, x)


def broadcast(graph: OnnxGraph, equation: Any, x: Value) -> Value:
    """Return a Reshape that adds axes of length 1, and an Expand where they grow."""
    after, placed = shape_of(equation), equation.params["broadcast_dimensions"]
    name = tensor(graph, x, range(len(x.shape)))
    kept = [1] * len(after)
    for size, axis in zip(x.shape, placed, strict=True):
        kept[axis] = size if isinstance(size, int) else -1
    made = Value(tuple(kept), name, tuple(range(len(after))))
    if len(x.shape) != len(after):
        shape = constant(graph, np.asarray(kept, np.int64))
        made = made._replace(name=node(graph, "Reshape", [name, shape]))
    if any(k not in (n, -1) for k, n in zip(kept, after, strict=True)):
        shape = sizes(graph, after)
        made = made._replace(name=node(graph, "Expand", [made.name or "", shape]))
    return made._replace(shape=after)


def sizes(graph: OnnxGraph, shape: Sequence) -> str:
    """Return a shape as a tensor; the number of images is read from the input."""
    if all(isinstance(n, int) for n in shape):
        return constant(graph, np.asarray(shape, np.int64))
    images = node(graph, "Shape", [INPUT], start=0, end=1)
    one = lambda n: constant(graph, np.asarray([n], np.int64))
    parts = [one(n) if isinstance(n, int) else images for n in shape]
    return node(graph, "Concat", parts, axis=0)


def slices(graph: OnnxGraph, equation: Any, x: Value) -> Value:
    """Return a Slice along the axes that are cut."""
    p = equation.params
    steps = p["strides"] or (1,) * len(x.shape)
    return _slice(
        graph, x, p["start_indices"], p["limit_indices"], steps, shape_of(equation)
    )


def _slice(graph, x, starts, limits, steps, shape) -> Value:
    cut = [
        axis
        for axis, size in enumerate(x.shape)
        if (starts[axis], limits[axis], steps[axis]) != (0, size, 1)
    ]
    columns = [
        [starts[axis] for axis in cut],
        [limits[axis] for axis in cut],
        [x.order.index(axis) for axis in cut],
        [steps[axis] for axis in cut],
    ]
    arrays = [constant(graph, np.asarray(column, np.int64)) for column in columns]
    out = node(graph, "Slice", [tensor(graph, x, x.order), *arrays])
    return Value(tuple(shape), out, x.order, scale=x.scale)


def split(graph: OnnxGraph, equation: Any, x: Value) -> list[Value]:
    """Slices side by side."""
    axis, at, parts = equation.params["axis"], 0, []
    for size, variable in zip(equation.params["sizes"], equation.outvars, strict=True):
        starts = [at if i == axis else 0 for i in range(len(x.shape))]
        limits = [at + size if i == axis else n for i, n in enumerate(x.shape)]
        shape = tuple(variable.aval.shape)
        parts.append(_slice(graph, x, starts, limits, (1,) * len(x.shape), shape))
        at += size
    return parts


def concatenate(graph: OnnxGraph, equation: Any, *values: Value) -> Value:
    """Side by side along one axis."""
    names, order = aligned(graph, values)
    axis = order.index(equation.params["dimension"])
    return Value(shape_of(equation), node(graph, "Concat", names, axis=axis), order)


def stack(graph: OnnxGraph, equation: Any, *values: Value) -> Value:
    """Side by side along an axis that is new."""
    axis = equation.params["axis"]
    places = constant(graph, np.asarray([axis], np.int64))
    inner = range(len(values[0].shape))
    parts = [
        node(graph, "Unsqueeze", [tensor(graph, v, inner), places]) for v in values
    ]
    order = tuple(range(len(inner) + 1))
    return Value(shape_of(equation), node(graph, "Concat", parts, axis=axis), order)


def pad(graph: OnnxGraph, equation: Any, x: Value, fill: Value) -> Value:
    """Around the values, not between them."""
    config = equation.params["padding_config"]
    if any(low < 0 or high < 0 or inner for low, high, inner in config):
        raise NotImplementedError("padding between values, or negative")
    widths = pads([config[axis][:2] for axis in x.order])
    amount = constant(graph, np.asarray(widths, np.int64))
    names = [tensor(graph, x, x.order), amount, tensor(graph, fill)]
    return Value(shape_of(equation), node(graph, "Pad", names), x.order)


def rev(graph: OnnxGraph, equation: Any, x: Value) -> Value:
    """Return a Slice with steps of -1."""
    axes = equation.params["dimensions"]
    columns = [
        [-1] * len(axes),
        [np.iinfo(np.int64).min] * len(axes),
        [x.order.index(axis) for axis in axes],
        [-1] * len(axes),
    ]
    arrays = [constant(graph, np.asarray(column, np.int64)) for column in columns]
    out = node(graph, "Slice", [tensor(graph, x, x.order), *arrays])
    return Value(x.shape, out, x.order, scale=x.scale)


def tile(graph: OnnxGraph, equation: Any, x: Value) -> Value:
    """Copy side by side; of the batch, as many as there are images."""
    order = tuple(range(len(x.shape)))
    repeats = sizes(graph, equation.params["reps"])
    out = node(graph, "Tile", [tensor(graph, x, order), repeats])
    return Value(shape_of(equation), out, order, scale=x.scale)


def gather(graph: OnnxGraph, equation: Any, x: Value, places: Value) -> Value:
    """Whole rows by their number, or any numbers from known places.

    Raises:
      NotImplementedError: for places that are neither known nor numbers of rows.
    """
    if places.const is not None and x.shape and _keeps_first(equation):
        return _from_known(graph, equation, x, places.const)
    p, n = equation.params["dimension_numbers"], len(x.shape)
    sizes_of = equation.params["slice_sizes"]
    (axis, *others) = p.start_index_map or (None,)
    whole = [size for i, size in enumerate(sizes_of) if i != axis]
    rows = (
        not others
        and tuple(p.collapsed_slice_dims) == (axis,)
        and whole == [size for i, size in enumerate(x.shape) if i != axis]
        and not p.operand_batching_dims
    )
    if axis is None or not rows:
        raise NotImplementedError("gather other than of whole rows or of known places")
    index_rank = len(places.shape) - 1
    offset = tuple(p.offset_dims)
    before = tuple(range(axis))
    after = tuple(range(axis + index_rank, n - 1 + index_rank))
    if offset != before + after:
        raise NotImplementedError("gather whose rows lie across its places")
    last = constant(graph, np.asarray([-1], np.int64))
    name = tensor(graph, places, range(index_rank + 1))
    index = node(graph, "Squeeze", [name, last])
    out = node(graph, "Gather", [tensor(graph, x, range(n)), index], axis=axis)
    shape = shape_of(equation)
    return Value(shape, out, tuple(range(len(shape))), scale=x.scale)


def _keeps_first(equation: Any) -> bool:
    """Return whether each image is gathered from by itself, at the same places."""
    p, sizes_of = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    x = equation.invars[0].aval
    indexed = 0 in p.start_index_map or 0 in p.collapsed_slice_dims
    whole = sizes_of[0] == x.shape[0] and not p.operand_batching_dims
    rest = all(isinstance(size, int) for size in x.shape[1:])
    return not indexed and whole and rest and p.offset_dims[:1] == (0,)


def _from_known(graph: OnnxGraph, equation: Any, x: Value, places: np.ndarray) -> Value:
    """The numbers' places in one image, found by gathering the places themselves."""
    inner, params = x.shape[1:], dict(equation.params)
    params["slice_sizes"] = (1, *params["slice_sizes"][1:])
    if params.get("fill_value") is None and "FILL" in str(params.get("mode")):
        params["fill_value"] = -1
    with jax.ensure_compile_time_eval():
        numbers = np.arange(math.prod(inner), dtype=np.int32).reshape(1, *inner)
        flat = np.asarray(equation.primitive.bind(numbers, places, **params))
    if flat.min() < 0:
        raise NotImplementedError("gather from places outside of the array")
    line = constant(graph, np.asarray([0, -1], np.int64))
    name = tensor(graph, x, range(len(x.shape)))
    name = node(graph, "Reshape", [name, line])
    index = constant(graph, flat[0].astype(np.int64))
    out = node(graph, "Gather", [name, index], axis=1)
    shape = shape_of(equation)
    return Value(shape, out, tuple(range(len(shape))), scale=x.scale)
