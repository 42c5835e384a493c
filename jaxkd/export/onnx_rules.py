"""For each primitive of a CNN's plain program, the ONNX operations that compute it.

A rule takes the graph, the equation and its operands, and returns the result's value.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxkd.export import onnx_moves as moves, onnx_products as products, onnx_quantize
from jaxkd.export.onnx_graph import (
    OnnxGraph,
    Value,
    aligned,
    constant,
    node,
    pads,
    shape_of,
    tensor,
)

IMAGE = (0, 3, 1, 2)


def _dtype(equation: Any, of_input: int | None = None) -> np.dtype:
    variable = equation.outvars[0] if of_input is None else equation.invars[of_input]
    return np.dtype(variable.aval.dtype)


def elementwise(kind: str) -> Callable:
    """Operands of one shape, or scalars, or with axes of length 1."""

    def rule(graph: OnnxGraph, equation: Any, *values: Value) -> Value:
        names, order = aligned(graph, values)
        return Value(shape_of(equation), node(graph, kind, names), order)

    return rule


def maximum(graph: OnnxGraph, equation: Any, *values: Value) -> Value:
    """ReLU where it is one, which runtimes fuse."""
    flat = [v for v in values if v.const is not None and not np.any(v.const)]
    if not flat or len(values) != 2 or _dtype(equation) != np.float32:
        return elementwise("Max")(graph, equation, *values)
    (x,) = (v for v in values if v is not flat[0])
    return Value(
        shape_of(equation), node(graph, "Relu", [tensor(graph, x, x.order)]), x.order
    )


def minimum(graph: OnnxGraph, equation: Any, *values: Value) -> Value:
    """Relu6 and its like as Clip, where the bound is one number."""
    bounds = [v for v in values if v.const is not None and v.const.size == 1]
    if len(bounds) != 1 or _dtype(equation) != np.float32:
        return elementwise("Min")(graph, equation, *values)
    (x,) = (v for v in values if v is not bounds[0])
    return _clip(graph, x, None, bounds[0].const)


def _clip(graph: OnnxGraph, x: Value, low: Any, high: Any) -> Value:
    """Bounds that follow a ReLU are those of one Clip with it."""
    name = tensor(graph, x, x.order)
    last = graph.nodes[-1:]
    if low is None and last and (last[0].op_type, *last[0].output) == ("Relu", name):
        name, low = last[0].input[0], np.float32(0)
    bound = lambda v: "" if v is None else constant(graph, np.float32(np.ravel(v)[0]))
    out = node(graph, "Clip", [name, bound(low), bound(high)])
    return Value(x.shape, out, x.order)


def clamp(graph: OnnxGraph, equation: Any, low: Value, x: Value, high: Value) -> Value:
    """Both bounds are one number."""
    if any(v.const is None or v.const.size != 1 for v in (low, high)):
        raise NotImplementedError("clamp of which a bound is an array")
    return _clip(graph, x, low.const, high.const)


def add(graph: OnnxGraph, equation: Any, left: Value, right: Value) -> Value:
    """A constant for each channel becomes the bias of the product before it."""
    x, c = (right, left) if left.const is not None else (left, right)
    channels = shape_of(equation)[-1] if shape_of(equation) else 1
    fits = c.const is not None and c.const.shape[-1:] == (channels,) == (c.const.size,)
    if x.node is None or not fits:
        return elementwise("Add")(graph, equation, left, right)
    before = len(graph.nodes)
    name = _bias(graph, x, np.ravel(np.asarray(c.const)).astype(np.float32))
    # What the product now needs comes before it.
    at = next(i for i, made in enumerate(graph.nodes) if made is x.node)
    graph.nodes[at:at] = [graph.nodes.pop() for _ in graph.nodes[before:]][::-1]
    x.node.input.append(name)
    return x._replace(node=None, sums=None)


def _bias(graph: OnnxGraph, x: Value, bias: np.ndarray) -> str:
    """In int32 on the grid of the sums, as integer kernels want it."""
    if x.sums is None:
        return constant(graph, bias)
    scale = np.broadcast_to(x.sums, bias.shape)
    scale = np.ascontiguousarray(scale, np.float32)
    limits = np.iinfo(np.int32)
    steps = np.clip(np.round(bias.astype(np.float64) / scale), limits.min, limits.max)
    names = [
        constant(graph, steps.astype(np.int32)),
        constant(graph, scale),
        constant(graph, np.zeros(bias.shape, np.int32)),
    ]
    return node(graph, "DequantizeLinear", names, axis=0)


def reduce_sum(graph: OnnxGraph, equation: Any, x: Value) -> Value:
    """Over any axes; of all positions of images, as a multiple of their mean."""
    gone = tuple(equation.params["axes"])
    axes = np.asarray([x.order.index(axis) for axis in gone], np.int64)
    names = [tensor(graph, x, x.order), constant(graph, axes)]
    out, shape = node(graph, "ReduceSum", names, keepdims=0), shape_of(equation)
    made = Value(shape, out, _order_without(x, gone))
    if gone != (1, 2) or len(x.shape) != 4:
        return made
    pooled = node(graph, "GlobalAveragePool", [tensor(graph, x)])
    places = constant(graph, np.asarray([2, 3], np.int64))
    mean = Value(shape, node(graph, "Squeeze", [pooled, places]), (0, 1))
    return made._replace(total=(mean, math.prod(x.shape[1:3])))


def _order_without(x: Value, gone: Sequence[int]) -> tuple[int, ...]:
    kept = [axis for axis in x.order if axis not in gone]
    return tuple(sorted(kept).index(axis) for axis in kept)


def reduce_max(graph: OnnxGraph, equation: Any, x: Value) -> Value:
    """ReduceMax, whose axes were an attribute in the opset that is written."""
    gone = tuple(equation.params["axes"])
    axes = [x.order.index(axis) for axis in gone]
    name = {"reduce_max": "ReduceMax", "reduce_min": "ReduceMin"}
    kind = name[equation.primitive.name]
    out = node(graph, kind, [tensor(graph, x, x.order)], axes=axes, keepdims=0)
    return Value(shape_of(equation), out, _order_without(x, gone))


def divide(graph: OnnxGraph, equation: Any, x: Value, y: Value) -> Value:
    """A sum over its count is a mean, for which runtimes have integer kernels."""
    if x.total is not None and y.const is not None and y.const.size == 1:
        mean, count = x.total
        if float(np.ravel(y.const)[0]) == count:
            return mean
    return elementwise("Div")(graph, equation, x, y)


def multiply(graph: OnnxGraph, equation: Any, x: Value, y: Value) -> Value:
    """As `divide`, by the inverse."""
    if x.total is not None and y.const is not None and y.const.size == 1:
        mean, count = x.total
        if np.float32(np.ravel(y.const)[0]) == np.float32(1 / count):
            return mean
    return elementwise("Mul")(graph, equation, x, y)


def window(graph: OnnxGraph, equation: Any, x: Value) -> Value:
    """Max pooling, or the sum over windows as a multiple of their mean."""
    p = equation.params
    sizes, padding = p["window_dimensions"], p["padding"]
    outer = (sizes[0], sizes[-1], *padding[0], *padding[-1])
    if len(sizes) != 4 or outer != (1, 1, 0, 0, 0, 0) or set(p["base_dilation"]) != {1}:
        raise NotImplementedError("windows other than of height and width")
    attributes = {
        "kernel_shape": list(sizes[1:3]),
        "strides": list(p["window_strides"][1:3]),
        "pads": pads(padding[1:3]),
    }
    name, shape = tensor(graph, x, IMAGE), shape_of(equation)
    if equation.primitive.name == "reduce_window_max":
        dilations = list(p["window_dilation"][1:3])
        out = node(graph, "MaxPool", [name], dilations=dilations, **attributes)
        return Value(shape, out, IMAGE, scale=x.scale)
    if set(p["window_dilation"]) != {1}:
        raise NotImplementedError("sum over dilated windows")
    mean = node(graph, "AveragePool", [name], count_include_pad=1, **attributes)
    count = math.prod(sizes)
    total = node(graph, "Mul", [mean, constant(graph, np.float32(count))])
    return Value(shape, total, IMAGE, total=(Value(shape, mean, IMAGE), count))


def cast(graph: OnnxGraph, equation: Any, x: Value) -> Value:
    """Nothing, where the type is the same."""
    from onnx import helper

    if _dtype(equation, 0) == _dtype(equation):
        return x
    to = helper.np_dtype_to_tensor_dtype(_dtype(equation))
    return Value(
        x.shape, node(graph, "Cast", [tensor(graph, x, x.order)], to=to), x.order
    )


def integer_pow(graph: OnnxGraph, equation: Any, x: Value) -> Value:
    """Pow by a number."""
    names = [
        tensor(graph, x, x.order),
        constant(graph, np.float32(equation.params["y"])),
    ]
    return Value(x.shape, node(graph, "Pow", names), x.order)


def square(graph: OnnxGraph, equation: Any, x: Value) -> Value:
    """Return the value times itself."""
    name = tensor(graph, x, x.order)
    return Value(x.shape, node(graph, "Mul", [name, name]), x.order)


def inverse_root(graph: OnnxGraph, equation: Any, x: Value) -> Value:
    """1 / sqrt(x)."""
    root = node(graph, "Sqrt", [tensor(graph, x, x.order)])
    return Value(x.shape, node(graph, "Reciprocal", [root]), x.order)


def erfc(graph: OnnxGraph, equation: Any, x: Value) -> Value:
    """1 - erf(x)."""
    name = node(graph, "Erf", [tensor(graph, x, x.order)])
    out = node(graph, "Sub", [constant(graph, np.float32(1)), name])
    return Value(x.shape, out, x.order)


def expm1(graph: OnnxGraph, equation: Any, x: Value) -> Value:
    """exp(x) - 1."""
    name = node(graph, "Exp", [tensor(graph, x, x.order)])
    out = node(graph, "Sub", [name, constant(graph, np.float32(1))])
    return Value(x.shape, out, x.order)


def log1p(graph: OnnxGraph, equation: Any, x: Value) -> Value:
    """log(1 + x)."""
    one = constant(graph, np.float32(1))
    name = node(graph, "Add", [tensor(graph, x, x.order), one])
    return Value(x.shape, node(graph, "Log", [name]), x.order)


def unequal(graph: OnnxGraph, equation: Any, x: Value, y: Value) -> Value:
    """Not equal, of numbers or truth values."""
    names, order = aligned(graph, [x, y])
    name = node(graph, "Not", [node(graph, "Equal", names)])
    return Value(shape_of(equation), name, order)


def remainder(graph: OnnxGraph, equation: Any, x: Value, y: Value) -> Value:
    """With the sign of the dividend, as in C."""
    names, order = aligned(graph, [x, y])
    return Value(shape_of(equation), node(graph, "Mod", names, fmod=1), order)


def cumulative_sum(graph: OnnxGraph, equation: Any, x: Value) -> Value:
    """Along one axis, from either end."""
    p = equation.params
    axis = constant(graph, np.int64(x.order.index(p["axis"])))
    names = [tensor(graph, x, x.order), axis]
    out = node(graph, "CumSum", names, reverse=int(p["reverse"]))
    return Value(x.shape, out, x.order)


def select(graph: OnnxGraph, equation: Any, which: Value, *cases: Value) -> Value:
    """Where, of two cases by a condition."""
    if len(cases) != 2 or _dtype(equation, 0) != np.bool_:
        raise NotImplementedError("select of more than two cases")
    (condition, no, yes), order = aligned(graph, [which, *cases])
    return Value(shape_of(equation), node(graph, "Where", [condition, yes, no]), order)


RULES: dict[str, Callable] = {
    "abs": elementwise("Abs"),
    "add": add,
    "add_any": add,
    "and": elementwise("And"),
    "broadcast_in_dim": moves.broadcast,
    "ceil": elementwise("Ceil"),
    "clamp": clamp,
    "composite": onnx_quantize.quantize,
    "concatenate": moves.concatenate,
    "conv_general_dilated": products.convolution,
    "convert_element_type": cast,
    "div": divide,
    "dot_general": products.dot,
    "eq": elementwise("Equal"),
    "erf": elementwise("Erf"),
    "erfc": erfc,
    "exp": elementwise("Exp"),
    "expm1": expm1,
    "floor": elementwise("Floor"),
    "ge": elementwise("GreaterOrEqual"),
    "gt": elementwise("Greater"),
    "gather": moves.gather,
    "integer_pow": integer_pow,
    "cos": elementwise("Cos"),
    "cumsum": cumulative_sum,
    "le": elementwise("LessOrEqual"),
    "log": elementwise("Log"),
    "log1p": log1p,
    "logistic": elementwise("Sigmoid"),
    "lt": elementwise("Less"),
    "max": maximum,
    "min": minimum,
    "mul": multiply,
    "ne": unequal,
    "neg": elementwise("Neg"),
    "not": elementwise("Not"),
    "or": elementwise("Or"),
    "pad": moves.pad,
    "pow": elementwise("Pow"),
    "reduce_max": reduce_max,
    "reduce_min": reduce_max,
    "reduce_sum": reduce_sum,
    "reduce_window_max": window,
    "reduce_window_sum": window,
    "rem": remainder,
    "reshape": moves.reshape,
    "rev": moves.rev,
    "round": elementwise("Round"),
    "rsqrt": inverse_root,
    "select_n": select,
    "sign": elementwise("Sign"),
    "sin": elementwise("Sin"),
    "slice": moves.slices,
    "split": moves.split,
    "sqrt": elementwise("Sqrt"),
    "square": square,
    "squeeze": moves.squeeze,
    "stack": moves.stack,
    "sub": elementwise("Sub"),
    "tanh": elementwise("Tanh"),
    "tile": moves.tile,
    "transpose": moves.transpose,
}
