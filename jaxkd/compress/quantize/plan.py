"""Where a graph is quantized: which values, which kernels, with how many bits."""

import dataclasses
from collections import Counter
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxkd.compress.quantize import kernels, names
from jaxkd.compress.quantize.config import Bits, Quantization, bits_of
from jaxkd.compress.quantize.graph import LINEAR, MOVES, Op, OpGraph
from jaxkd.compress.quantize.kernels import Weight

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
KEPT_AXES = {"broadcast_in_dim", "expand_dims", "reshape"}
KINDS = {"reduce_sum": "mean", "reduce_window_sum": "mean", "add_any": "add"}


class QuantizedTensor(NamedTuple):
    """A tensor that is quantized: its name and its bits."""

    name: str
    bits: int


class QuantizationPlan(NamedTuple):
    """What is quantized.

    Attributes:
      live: the values that depend on the image.
      points: by value.
      weights: by the operation's number.
      origin: for a value that only moves the numbers of another, that other.
      layers: paths of all layers, quantized or not, in order.
      linear: names of the convolutions and products, by the operation's number.
      replaced: paths of the parameters that nothing but quantized kernels is made of.
      floats: what stays in floats of what depends on the image, "KIND at SCOPE".
    """

    live: set[int]
    points: dict[int, QuantizedTensor]
    weights: dict[int, Weight]
    origin: dict[int, int]
    layers: list[str]
    linear: dict[int, str]
    replaced: frozenset[str]
    floats: tuple[str, ...]


@dataclasses.dataclass
class _Reading:
    """What is found out about a graph, operation after operation.

    Attributes:
      graph: what is read.
      config: how it is to be quantized.
      live: the values that depend on the image.
      readers: the operations that read a value; -1 for the caller.
      makers: the operation that made a value.
      origin: for a value that only moves the numbers of another, that other.
      chain: the layer's operation that a value is still the result of.
      floats: values that integer kernels do not make.
      names: of values: of the layer that made them.
      layer: names of the operations that are layers.
      paths: of the modules that these belong to, in order.
      bits: of these.
      reads: values that an operation wants quantized.
      weights: by operation.
      namer: of the kernels.
      counts: how often a path has named a layer.
    """

    graph: OpGraph
    config: Quantization
    live: set[int]
    readers: dict[int, list[int]]
    makers: dict[int, int]
    names: dict[int, str]
    origin: dict[int, int] = dataclasses.field(default_factory=dict)
    chain: dict[int, int] = dataclasses.field(default_factory=dict)
    floats: set[int] = dataclasses.field(default_factory=set)
    layer: dict[int, str] = dataclasses.field(default_factory=dict)
    paths: dict[str, None] = dataclasses.field(default_factory=dict)
    bits: dict[int, Bits] = dataclasses.field(default_factory=dict)
    reads: dict[int, list[int]] = dataclasses.field(default_factory=dict)
    weights: dict[int, Weight] = dataclasses.field(default_factory=dict)
    namer: kernels.Namer = dataclasses.field(default_factory=kernels.Namer)
    counts: Counter = dataclasses.field(default_factory=Counter)


def plan(
    graph: OpGraph, image: int, logits: int, config: Quantization
) -> QuantizationPlan:
    """Decide what a graph's quantized values are.

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
        for place, value in enumerate(values):
            # What floats computed has no layer's name: it gets its reader's.
            name = names.part(r.layer[number], "input", place)
            want(value, r.bits[number].activations, name)
    if config.activation == "static":
        for value, number in r.chain.items():
            last = not _continues(r, value)
            if last and value not in wanted:
                want(value, r.bits[number].activations)
    points = {
        value: QuantizedTensor(r.names[value], bits) for value, bits in wanted.items()
    }
    linear = {n: layer for n, layer in r.layer.items() if graph.ops[n].kind in LINEAR}
    return QuantizationPlan(
        live=r.live,
        points=points,
        weights={n: _biased(r, n, weight) for n, weight in r.weights.items()},
        origin=r.origin,
        layers=list(r.paths),
        linear=linear,
        replaced=kernels.replaced(graph, r.weights),
        floats=_floats(r),
    )


def _read(graph: OpGraph, image: int, logits: int, config: Quantization) -> _Reading:
    live = {image}
    readers: dict[int, list[int]] = {logits: [-1]}
    for number, op in enumerate(graph.ops):
        if live.intersection(op.inputs):
            live.update(op.outputs)
            for value in set(op.inputs) & live:
                readers.setdefault(value, []).append(number)
    made = kernels.makers(graph)
    r = _Reading(graph, config, live, readers, made, {image: names.IMAGE})
    for number, op in enumerate(graph.ops):
        if live.intersection(op.inputs):
            _place(r, number, op)
    return r


def _place(r: _Reading, number: int, op: Op) -> None:
    """Find out what one operation is."""
    inputs = [v for v in op.inputs if v in r.live]
    roots = {r.origin.get(v, v) for v in inputs}
    if not all(_is_real(r, v) for v in (*inputs, *op.outputs)):
        r.floats.update(op.outputs)  # whole numbers and truth values are on no grid
    elif op.kind in LINEAR:
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


def _is_real(r: _Reading, value: int) -> bool:
    return jnp.issubdtype(r.graph.avals[value].dtype, jnp.floating)


def _moves(r: _Reading, op: Op, inputs: list[int]) -> bool:
    """Return whether the results lie on the grid of what is read."""
    if op.kind == "max":
        return len(inputs) == len(op.inputs)
    if op.kind == "pad":
        return not np.any(r.graph.constants.get(op.inputs[1], True))
    return op.kind in MOVES | {"select", "relu"}  # 0 is on every grid


def _layer(r: _Reading, number: int, op: Op, inputs: list[int]) -> None:
    """Put a layer down: its name, its bits, its kernel and what it reads."""
    place = kernels.position(op, r.live) if op.kind in LINEAR else None
    if place is not None:
        seen = kernels.view(r.graph, r.makers, op.inputs[place])
        path = seen.path.rpartition("/")[0] or seen.path if seen.path else op.scope
    else:
        kind = KINDS.get(op.kind, op.kind)
        path = f"{op.scope}/{kind}".lstrip("/")
    path = path or op.kind
    name = names.use(path, r.counts[path])
    r.counts[path] += 1
    bits = bits_of(r.config, path, name)
    if place is not None and bits.weights is not None:
        axis = kernels.channels(op, place)
        size = np.prod(r.graph.avals[op.inputs[place]].shape, dtype=int)
        own = r.namer.name(seen, size, axis, bits.weights, name)
        r.weights[number] = Weight(own, place, axis, bits.weights)
    r.layer[number], r.bits[number] = name, bits
    r.paths[path] = r.paths[name] = None
    if op.kind in LINEAR or r.config.activation == "static":
        r.reads[number] = inputs
    for value in op.outputs:
        r.chain[value], r.names[value] = number, name


def _biased(r: _Reading, number: int, weight: Weight) -> Weight:
    """Return a weight with its bias: what the next operation adds to the product."""
    (product,) = r.graph.ops[number].outputs
    if not _continues(r, product):
        return weight
    op = r.graph.ops[r.readers[product][0]]
    others = [v for v in op.inputs if v != product]
    if op.kind not in ("add", "sub") or not others:
        return weight
    return kernels.with_bias(r.graph, r.makers, weight, others[0])


def _floats(r: _Reading) -> tuple[str, ...]:
    """Return the operations on floats, each kind once for each module."""
    found = (
        f"{op.kind} at {op.scope or 'the top'!r}"
        for op in r.graph.ops
        if op.kind not in MOVES and r.floats.intersection(op.outputs)
    )
    return tuple(dict.fromkeys(found))


def _integer(r: _Reading, op: Op, inputs: list[int], roots: set[int]) -> bool:
    """Return whether integer kernels exist for an operation."""
    shapes = [r.graph.avals[v].shape for v in inputs]
    if roots & r.floats:
        return False
    if op.kind in ("mul", "div") and _is_gate(r, op, inputs):
        return True
    if op.kind not in ARITHMETIC:
        return False
    if op.kind == "reduce_sum":  # over positions; other sums are of normalisations
        return len(shapes[0]) == 4 and set(op.equation.params["axes"]) <= {1, 2}
    if op.kind in ("mul", "max", "min"):  # a square or a scale is of a normalisation,
        return len(roots) == 2  # a bound of a softmax
    if op.kind == "sub" and len(inputs) == 2:  # and so is x - max(x)
        return len(roots) == 2
    return True


def _is_gate(r: _Reading, op: Op, inputs: list[int]) -> bool:
    """Whether an operation is the scale of a hard sigmoid, min(max(x, 0), 6) / 6."""
    bounded = r.makers.get(inputs[0])
    if len(inputs) != 1 or bounded is None or op.inputs[0] != inputs[0]:
        return False
    others = [v for v in op.inputs if v not in r.live]
    one = all(np.prod(r.graph.avals[v].shape, dtype=int) == 1 for v in others)
    return one and r.graph.ops[bounded].kind in ("min", "clamp")


def _continues(r: _Reading, value: int) -> bool:
    """Return whether the one reader of a value belongs to the layer that made it."""
    readers = r.readers.get(value, [])
    if len(readers) != 1 or readers[0] < 0:
        return False
    maker, op = r.graph.ops[r.chain[value]], r.graph.ops[readers[0]]
    if sum(v in r.live for v in op.inputs) != 1:
        return False
    if op.kind in ("relu", "max", "min", "clamp"):
        return True
    if op.kind in ("add", "sub"):
        first = op.kind == "add" or op.inputs[0] == value
        return maker.kind in LINEAR and first and not _is_number(r, maker, value, op)
    if maker.kind not in SUMS:
        return False
    if op.kind in KEPT_AXES and op.outputs[0] in r.live:  # a mean that keeps its axes
        (wide,) = op.outputs
        after = r.readers.get(wide, [])
        return len(after) == 1 and after[0] >= 0 and _is_mean(r, wide, after[0])
    return _is_mean(r, value, r.readers[value][0])


def _is_number(r: _Reading, maker: Op, value: int, op: Op) -> bool:
    """Return whether one number is added to all channels of a product that has no bias.

    Converters would take it for a bias, whose integer differs from channel to channel.
    """
    others = [v for v in op.inputs if v != value]
    if value not in maker.outputs or not others:
        return False
    number = kernels.unspread(r.graph, r.makers, others[0])
    shapes = [r.graph.avals[v].shape for v in (number, value)]
    return np.prod(shapes[0], dtype=int) == 1 and shapes[1][-1] != 1


def _is_mean(r: _Reading, value: int, reader: int) -> bool:
    """Return whether an operation divides a sum by the number of its summands."""
    op = r.graph.ops[reader]
    if sum(v in r.live for v in op.inputs) != 1:
        return False
    return op.kind == "mul" or (op.kind == "div" and op.inputs[0] == value)
