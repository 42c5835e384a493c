"""Running a graph with its tensors quantized, by whatever arithmetic."""

import itertools
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array

from jaxkd.compress.quantize.fake import Grid
from jaxkd.compress.quantize.graph import Op, OpGraph, evaluate
from jaxkd.compress.quantize.kernels import Weight
from jaxkd.compress.quantize.plan import QuantizationPlan, QuantizedTensor


class Tensor(NamedTuple):
    """A value and the grid that it lies on; None for a value in floats."""

    value: Array
    grid: Any = None  # a Grid


def real_activation(point: QuantizedTensor, x: Array) -> Tensor:
    """Return the activation in floats."""
    return Tensor(x)


def real_weight(w: Weight, kernel: Array, x: Tensor, bias: Array | None) -> Tensor:
    """Return the kernel in floats."""
    return Tensor(kernel)


def same(grid: Grid, x: Array) -> Array:
    """Nothing to do: the numbers are on the grid already."""
    return x


def untouched(point: QuantizedTensor, tensors: list[Tensor]) -> list[Tensor]:
    """Nothing to do: what comes of them is quantized, number by number."""
    return tensors


def plainly(op: Op, layer: str, weight: Weight | None, tensors: list[Tensor]) -> Array:
    """Return the operation on the values as they are."""
    return evaluate(op, *(t.value for t in tensors))[0]


class Arithmetic(NamedTuple):
    """What quantizing means: fake, as annotations for a converter, in integers.

    What is not given leaves the network in floats.

    Attributes:
      activation: `(point, x) -> Tensor`, at every point of the plan.
      weight: `(weight, kernel, x, bias) -> Tensor`, at every kernel of the plan; `x` is
        what it is multiplied with, `bias` what is added to the product, or None.
      linear: `(op, layer, weight or None, tensors) -> result` of a convolution or
        product.
      again: `(grid, x) -> x`, where numbers of a quantized tensor were moved.
      requantized: `(point, tensors) -> tensors`, before a concatenation.
      now: whether what does not depend on the image is computed while tracing.
    """

    activation: Callable[[QuantizedTensor, Array], Tensor] = real_activation
    weight: Callable[[Weight, Array, Tensor, Array | None], Tensor] = real_weight
    linear: Callable[[Op, str, Weight | None, list[Tensor]], Array] = plainly
    again: Callable[[Grid, Array], Array] = same
    requantized: Callable[[QuantizedTensor, list[Tensor]], list[Tensor]] = untouched
    now: bool = False


def run(
    graph: OpGraph, plan: QuantizationPlan, args: list[Any], arithmetic: Arithmetic
) -> Any:
    """Return the results of a graph, every planned tensor quantized.

    Args:
      graph: from `graph.trace`.
      plan: from `plan.plan`.
      args: leaves of the arguments.
      arithmetic: what quantizing means.

    Returns:
      Of the structure of the traced function's results.
    """
    values = {n: Tensor(c) for n, c in graph.constants.items()}
    tiles = _tiles(graph)

    def keep(number, x, grid=None):
        point = plan.points.get(number)
        tensor = Tensor(x, grid)
        values[number] = arithmetic.activation(point, x) if point else tensor

    for number, x in zip(graph.inputs, args, strict=True):
        keep(number, x)
    fixed = [not plan.live.intersection(op.inputs) for op in graph.ops]
    for op in itertools.compress(graph.ops, fixed):  # first: kernels need their biases
        tensors = [values[n] for n in op.inputs]
        for n, x in zip(op.outputs, _fixed(op, tensors, arithmetic), strict=True):
            values[n] = Tensor(x)
    for i, op in enumerate(graph.ops):
        if fixed[i]:
            continue
        tensors = [values[n] for n in op.inputs]
        with jax.named_scope(op.place):  # where an exporter says it is
            if i in plan.linear:
                results = [_linear(op, i, plan, values, arithmetic)]
            else:
                point = plan.points.get(op.outputs[0])
                if op.kind == "concatenate" and point:
                    tensors = arithmetic.requantized(point, tensors)
                results = evaluate(op, *(t.value for t in tensors))
            for n, x in zip(op.outputs, results, strict=True):
                grid = values[plan.origin[n]].grid if n in plan.origin else None
                if grid is not None and n not in tiles:
                    x = arithmetic.again(grid, x)
                keep(n, x, grid)
    leaves = [values[n].value for n in graph.outputs]
    return jax.tree.unflatten(graph.out_tree, leaves)


def _tiles(graph: OpGraph) -> set[int]:
    """Images cut into tiles for a maximum: exporters want to see both at once."""
    readers = [(v, op.kind) for op in graph.ops for v in op.inputs]
    others = {v for v, kind in readers if kind != "select"} | set(graph.outputs)
    cut = {op.outputs[0] for op in graph.ops if op.kind == "reshape"}
    return cut & {v for v, _ in readers} - others


def _fixed(op: Op, tensors: list[Tensor], arithmetic: Arithmetic) -> list[Array]:
    """Return the results of an operation that does not depend on the image."""
    # A batch of symbolic size has no value yet.
    sizes = [n for v in op.equation.outvars for n in getattr(v.aval, "shape", ())]
    now = arithmetic.now and all(isinstance(n, int) for n in sizes)
    if now and op.kind == "reshape" and isinstance(tensors[0].value, np.ndarray):
        return [tensors[0].value.reshape(sizes)]  # without a program for each shape
    with jax.ensure_compile_time_eval() if now else nullcontext():
        return evaluate(op, *(t.value for t in tensors))


def _linear(
    op: Op,
    number: int,
    plan: QuantizationPlan,
    values: dict[int, Tensor],
    arithmetic: Arithmetic,
) -> Array:
    weight, tensors = plan.weights.get(number), [values[n] for n in op.inputs]
    if weight:
        kernel, x = tensors[weight.position], tensors[1 - weight.position]
        bias = None if weight.bias is None else values[weight.bias].value
        tensors[weight.position] = arithmetic.weight(weight, kernel.value, x, bias)
    return arithmetic.linear(op, plan.linear[number], weight, tensors)
