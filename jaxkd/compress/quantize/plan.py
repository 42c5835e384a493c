"""Where a graph is quantized: which values, which kernels, with how many bits."""

from collections import Counter
from typing import NamedTuple

import numpy as np

from jaxkd.compress.quantize.config import Quantization, bits_of
from jaxkd.compress.quantize.graph import LINEAR, MOVES, Graph, Op

# What integer kernels exist for, besides convolutions and matrix products.
SUMS = {"reduce_sum", "reduce_window_sum"}
ARITHMETIC = {
    "add",
    "add_any",
    "concatenate",
    "logistic",
    "max",
    "min",
    "mul",
    "sub",
    "tanh",
    *SUMS,
}
VIEWS = MOVES | {"convert_element_type"}


class Weight(NamedTuple):
    """A kernel that is quantized.

    Attributes:
      name: path of the parameter.
      position: which of the operation's inputs it is.
      axis: of its output channels, or None where there is not one such axis.
      bits: of its integers.
    """

    name: str
    position: int
    axis: int | None
    bits: int


class Point(NamedTuple):
    """A tensor that is quantized: its name and its bits."""

    name: str
    bits: int


class Plan(NamedTuple):
    """What is quantized.

    Attributes:
      live: the values that depend on the image.
      points: by value.
      weights: by the operation's number.
      origin: for a value that only moves the numbers of another, that other.
      layers: paths of all layers, quantized or not, in order.
      linear: paths of the layers with a kernel.
    """

    live: set[int]
    points: dict[int, Point]
    weights: dict[int, Weight]
    origin: dict[int, int]
    layers: list[str]
    linear: dict[int, str]


class _Reading(NamedTuple):
    """What is found out about a graph on the way."""

    graph: Graph
    config: Quantization
    live: set[int]
    readers: dict[int, list[int]]  # operations that read a value
    makers: dict[int, int]  # operation that made a value
    origin: dict[int, int]
    chain: dict[int, int]  # operation that a value is still the result of
    floats: set[int]  # values that integer kernels do not make
    names: dict[int, str]  # of values that a layer made
    layer: dict[int, str]  # of operations
    reads: dict[int, list[int]]  # values that an operation wants quantized
    weights: dict[int, Weight]
    counts: Counter


def plan(graph: Graph, image: int, logits: int, config: Quantization) -> Plan:
    """Decides what a graph's quantized values are.

    A layer is a convolution or a matrix product, or another operation that integer
    kernels exist for: a sum of two tensors, a mean over positions, a concatenation.
    Bias and ReLU that follow at once belong to it. Every layer reads quantized tensors,
    and with static ranges its result is quantized as well, so that a device computes
    all of it in integers. What only moves numbers (reshape, maximum of a window) stays
    on the grid it was on. Everything else (softmax, LayerNorm) stays in floats.

    Args:
      graph: of a network's `apply`.
      image: the value that is its input.
      logits: the value that is its result.
      config: how to quantize.

    Returns:
      The plan.
    """
    r = _read(graph, image, logits, config)
    wanted: dict[int, int] = {}

    def want(value, bits, reader=""):
        value = r.origin.get(value, value)
        if bits is not None:
            wanted[value] = max(bits, wanted.get(value, 0))
            r.names.setdefault(value, reader)

    for number, values in r.reads.items():
        layer = r.layer[number]
        for place, value in enumerate(values):
            # What floats computed has no layer's name: it gets its reader's.
            name = f"{layer}/input" + (f"_{place}" if place else "")
            want(value, bits_of(config, layer).activations, name)
    if config.activation == "static":
        for value, number in r.chain.items():
            last = not _continues(r, value)
            if last and value not in wanted:
                want(value, bits_of(config, r.layer[number]).activations)
    points = {value: Point(r.names[value], bits) for value, bits in wanted.items()}
    layers = list(dict.fromkeys(r.layer.values()))
    linear = {n: layer for n, layer in r.layer.items() if graph.ops[n].kind in LINEAR}
    return Plan(r.live, points, r.weights, r.origin, layers, linear)


def _read(graph: Graph, image: int, logits: int, config: Quantization) -> _Reading:
    live = {image}
    readers: dict[int, list[int]] = {logits: [-1]}
    makers: dict[int, int] = {}
    for number, op in enumerate(graph.ops):
        makers |= dict.fromkeys(op.outputs, number)
        if live.intersection(op.inputs):
            live.update(op.outputs)
            for value in set(op.inputs) & live:
                readers.setdefault(value, []).append(number)
    r = _Reading(
        graph, config, live, readers, makers, {}, {}, set(), {image: "input"}, {}, {},
        {}, Counter(),
    )  # fmt: skip
    for number, op in enumerate(graph.ops):
        if live.intersection(op.inputs):
            _place(r, number, op)
    return r


def _place(r: _Reading, number: int, op: Op) -> None:
    """Finds out what one operation is."""
    inputs = [v for v in op.inputs if v in r.live]
    roots = {r.origin.get(v, v) for v in inputs}
    if op.kind in LINEAR:
        _layer(r, number, op, inputs)
    elif len(inputs) == 1 and inputs[0] in r.chain and _continues(r, inputs[0]):
        r.chain[op.outputs[0]] = r.chain[inputs[0]]
        r.names[op.outputs[0]] = r.names[inputs[0]]
    elif len(roots) == 1 and _moves(r, op, inputs):
        r.origin.update(dict.fromkeys(op.outputs, roots.pop()))
    elif _integer(r, op, inputs, roots):
        _layer(r, number, op, inputs)
    else:
        r.floats.update(op.outputs)


def _moves(r: _Reading, op: Op, inputs: list[int]) -> bool:
    """Whether the results lie on the grid of what is read."""
    if op.kind == "max":
        return len(inputs) == len(op.inputs)
    if op.kind == "pad":
        return not np.any(r.graph.constants.get(op.inputs[1], True))
    return op.kind in MOVES | {"select", "relu"}  # 0 is on every grid


def _layer(r: _Reading, number: int, op: Op, inputs: list[int]) -> None:
    name = f"{op.scope}/{op.kind}".lstrip("/")
    if op.kind in LINEAR:
        weight = _weight(r, op)
        name = weight.name.rpartition("/")[0] or weight.name if weight else name
        name = _count(r, name)
        bits = bits_of(r.config, name)
        if weight and bits.weights is not None:
            r.weights[number] = weight._replace(bits=bits.weights)
    else:
        name = _count(r, name.replace("reduce_window_sum", "mean"))
    r.layer[number] = name
    if op.kind in LINEAR or r.config.activation == "static":
        r.reads[number] = inputs
    for value in op.outputs:
        r.chain[value], r.names[value] = number, name


def _count(r: _Reading, name: str) -> str:
    name = name.replace("reduce_sum", "mean").replace("add_any", "add")
    r.counts[name] += 1
    return name if r.counts[name] == 1 else f"{name}_{r.counts[name] - 1}"


def _integer(r: _Reading, op: Op, inputs: list[int], roots: set[int]) -> bool:
    """Whether integer kernels exist for an operation."""
    shapes = [r.graph.avals[v].shape for v in inputs]
    if op.kind not in ARITHMETIC or roots & r.floats:
        return False
    if op.kind == "reduce_sum":  # over positions; other sums are of normalisations
        return len(shapes[0]) == 4 and set(op.equation.params["axes"]) <= {1, 2}
    if op.kind in ("mul", "max", "min"):  # a square or a scale is of a normalisation,
        return len(roots) == 2  # a bound of a softmax
    return True


def _continues(r: _Reading, value: int) -> bool:
    """Whether the one reader of a value belongs to the layer that made it."""
    readers = r.readers.get(value, [])
    if len(readers) != 1 or readers[0] < 0:
        return False
    maker, op = r.graph.ops[r.chain[value]], r.graph.ops[readers[0]]
    if sum(v in r.live for v in op.inputs) != 1:
        return False
    if op.kind in ("relu", "max", "min", "clamp"):
        return True
    if op.kind in ("add", "sub"):
        return maker.kind in LINEAR and (op.kind == "add" or op.inputs[0] == value)
    return maker.kind in SUMS and (
        op.kind == "mul" or (op.kind == "div" and op.inputs[0] == value)
    )


def _weight(r: _Reading, op: Op) -> Weight | None:
    """The kernel of a convolution or matrix product; None between two activations."""
    for position in (1, 0):
        if op.inputs[position] in r.live:
            continue
        value = op.inputs[position]
        while value in r.makers and r.graph.ops[r.makers[value]].kind in VIEWS:
            value = r.graph.ops[r.makers[value]].inputs[0]
        if value in r.graph.inputs:
            path = r.graph.paths[r.graph.inputs.index(value)].partition("/")[2]
        else:  # computed from parameters
            path = f"{op.scope}/kernel".lstrip("/")
        return Weight(path, position, _channels(op, position), 8)
    return None


def _channels(op: Op, position: int) -> int | None:
    """The axis of a kernel that the output channels lie along, if it is one."""
    numbers = op.equation.params["dimension_numbers"]
    if op.kind == "conv_general_dilated":
        return numbers.rhs_spec[0] if position == 1 else None
    contracted, batch = numbers
    taken = {*contracted[position], *batch[position]}
    free = set(range(op.equation.invars[position].aval.ndim)) - taken
    return free.pop() if len(free) == 1 and not batch[position] else None
