"""Part of `_onnx.py`: the rule for values that are marked as quantized."""

from typing import Any

import numpy as np

from jaxkd.export import census
from jaxkd.export.onnx_graph import Int8, OnnxGraph, Value, constant, node, tensor


def quantize(graph: OnnxGraph, equation: Any, *values: Value) -> Value:
    """A marked value: QuantizeLinear and DequantizeLinear, or stored integers."""
    marks, x = census.attributes(equation), values[-1]
    scale = np.asarray(marks["scale"], np.float32).reshape(-1)
    zero = np.asarray(marks.get("zero_point", 0)).reshape(-1)
    most = {"i8": 127, "i4": 7}.get(str(marks.get("dtype")))
    if most is None or not scale.size:
        raise NotImplementedError(f"quantization {marks}")
    least = -most if marks.get("narrow_range") else -most - 1
    axis = marks.get("quantization_dimension")
    if x.const is not None:
        return _stored(x, scale, zero, axis, (least, most))
    if scale.size != 1:
        raise NotImplementedError("activations with a scale for each channel")
    arguments = [constant(graph, scale[0]), constant(graph, np.uint8(zero[0] + 128))]
    name = node(graph, "QuantizeLinear", [tensor(graph, x, x.order), *arguments])
    if most != 127:
        bounds = [constant(graph, np.uint8(v + 128)) for v in (least, most)]
        name = node(graph, "Clip", [name, *bounds])
    name = node(graph, "DequantizeLinear", [name, *arguments])
    return Value(x.shape, name, x.order, scale=float(scale[0]))


def _stored(x: Value, scale: Any, zero: Any, axis: Any, bounds: tuple) -> Value:
    """Integers of a constant: int8 of kernels, uint8 of what meets activations."""
    narrow, along = bounds[0] == -bounds[1], [1] * len(x.shape)
    if axis is not None and scale.size > 1:
        along[axis] = -1
    if np.any(zero) and scale.size > 1:
        raise NotImplementedError("a constant with a zero point for each channel")
    steps = np.round(np.asarray(x.const, np.float32) / scale.reshape(along))
    numbers = np.clip(steps + int(zero[0]), *bounds)
    if scale.size > 1:
        return x._replace(grid=Int8(numbers.astype(np.int8), scale, axis))
    if narrow:
        return x._replace(grid=Int8(numbers.astype(np.int8), scale, None, int(zero[0])))
    numbers = (numbers + 128).astype(np.uint8)
    made = x._replace(grid=Int8(numbers, scale, None, int(zero[0]) + 128))
    return made._replace(scale=float(scale[0]))
