"""Which kernels a graph multiplies with: one for each use, whatever it is made from."""

import math
from typing import Any, NamedTuple

import numpy as np

from jaxkd.compress.quantize import names
from jaxkd.compress.quantize.graph import MOVES, Op, OpGraph

VIEWS = MOVES | {"convert_element_type"}
PARAMETERS = "0"  # the argument of a network's `apply` that they are
# They leave the order of the numbers as it is.
SPREAD = {
    *("broadcast_in_dim", "convert_element_type", "expand_dims", "reshape", "squeeze"),
    *("copy", "copy_p", "stop_gradient", "name"),
}


class Weight(NamedTuple):
    """A kernel that is quantized, as one operation reads it.

    Operations that read the same view of the same parameter have the same name. Other
    views (a slice, the transpose) and computed kernels have names of their own.

    Attributes:
      name: of the kernel: the parameter's path where the kernel is the whole of it,
        else made from the layer's name.
      position: which of the operation's inputs it is.
      axis: of its output channels, or None where there is not one such axis.
      bits: of its integers.
      bias: the value, of one number or one for each channel, that is added to the
        product, or None.
      bias_path: path of the parameter that this value is the whole of, or None.
    """

    name: str
    position: int
    axis: int | None
    bits: int
    bias: int | None = None
    bias_path: str | None = None


class ParameterView(NamedTuple):
    """Where a value that does not depend on the image is from.

    Attributes:
      root: the value that it is a view of: a parameter, or a computed value.
      path: of the root among the parameters, or None if it is computed.
      steps: the operations between, as far as they tell two views apart.
      size: how many numbers the root has.
    """

    root: int
    path: str | None
    steps: tuple[Any, ...]
    size: int


def makers(graph: OpGraph) -> dict[int, int]:
    """Return the number of the operation that made a value."""
    return {value: n for n, op in enumerate(graph.ops) for value in op.outputs}


def position(op: Op, live: set[int]) -> int | None:
    """Return which operand of a product is its kernel; None between two activations."""
    return next((i for i in (1, 0) if op.inputs[i] not in live), None)


def view(graph: OpGraph, made: dict[int, int], value: int) -> ParameterView:
    """Follow a value back to the parameter, or the result, that it is a view of."""
    steps: list[Any] = []
    while value in made and graph.ops[made[value]].kind in VIEWS:
        op = graph.ops[made[value]]
        operands = tuple(_content(graph, v) for v in op.inputs[1:])
        shape = tuple(graph.avals[value].shape)
        if op.kind not in SPREAD or math.prod(shape) != _size(graph, op.inputs[0]):
            how = str(sorted(op.equation.params.items(), key=lambda item: item[0]))
            steps.append((op.kind, how, op.outputs.index(value), operands))
        value = op.inputs[0]
    return ParameterView(value, _path(graph, value), tuple(steps), _size(graph, value))


def _size(graph: OpGraph, value: int) -> int:
    return math.prod(graph.avals[value].shape)


def _content(graph: OpGraph, value: int) -> Any:
    """What tells an operand apart: its numbers if they are known, else which it is."""
    known = graph.constants.get(value)
    if known is None or not isinstance(known, int | float | np.ndarray | np.generic):
        return value
    array = np.asarray(known)
    return array.dtype.str, array.shape, array.tobytes()


def channels(op: Op, position: int) -> int | None:
    """Return the axis of a kernel that the output channels lie along, if it is one."""
    numbers = op.equation.params["dimension_numbers"]
    if op.kind == "conv_general_dilated":
        return numbers.rhs_spec[0] if position == 1 else None
    contracted, batch = numbers
    taken = {*contracted[position], *batch[position]}
    free = set(range(op.equation.invars[position].aval.ndim)) - taken
    return free.pop() if len(free) == 1 and not batch[position] else None


class Namer:
    """Gives the kernels of a graph their names."""

    def __init__(self) -> None:
        self.known: dict[Any, str] = {}
        self.taken: set[str] = set()

    def name(
        self, seen: ParameterView, size: int, axis: int | None, bits: int, layer: str
    ):
        """The name of a view of `size` numbers that the layer of this name reads."""
        use = (seen.root, seen.steps, axis, bits)
        if use not in self.known:
            own = names.part(layer, "kernel")
            if seen.path is not None and size == seen.size:
                path = names.use(seen.path, 0)
                own = own if path in self.taken else path
            self.taken.add(own)
            self.known[use] = own
        return self.known[use]


def with_bias(
    graph: OpGraph, made: dict[int, int], weight: Weight, value: int
) -> Weight:
    """The weight with the value that is added to its product, where that is a bias.

    A bias is one number, or a vector of one for each channel, spread over the product.

    Args:
      graph: of the network.
      made: from `makers`.
      weight: of the product.
      value: of the shape of the product.
    """
    if weight.position != 1 or weight.axis is None:
        return weight
    channels = graph.avals[value].shape[-1] if graph.avals[value].shape else 1
    while value in made and graph.ops[made[value]].kind in SPREAD:
        step = graph.ops[made[value]]
        before, after = (graph.avals[v].shape for v in (step.inputs[0], value))
        if _size(graph, value) == 1 or _size(graph, step.inputs[0]) == 1:
            pass
        elif step.kind == "broadcast_in_dim":
            along = step.equation.params["broadcast_dimensions"]
            if along[-1] != len(after) - 1:
                return weight
        elif before[-1:] != after[-1:]:
            return weight
        value = step.inputs[0]
    size = _size(graph, value)
    if size not in (1, channels):
        return weight
    path = _path(graph, value) if size == channels else None
    return weight._replace(bias=value, bias_path=path)


def unspread(graph: OpGraph, made: dict[int, int], value: int) -> int:
    """Return the value that another is a spread or reshaped copy of."""
    while value in made and graph.ops[made[value]].kind in SPREAD:
        value = graph.ops[made[value]].inputs[0]
    return value


def _path(graph: OpGraph, value: int) -> str | None:
    """Return the path of the parameter that a value is, or None."""
    if value not in graph.inputs:
        return None
    place, _, path = graph.paths[graph.inputs.index(value)].partition("/")
    return path if place == PARAMETERS else None


def replaced(graph: OpGraph, weights: dict[int, Weight]) -> frozenset[str]:
    """Paths of the parameters that nothing but quantized kernels is made of."""
    needed = set(graph.outputs)
    within: set[int] = set()
    for number in reversed(range(len(graph.ops))):
        op, weight = graph.ops[number], weights.get(number)
        for place, value in enumerate(op.inputs):
            if weight is not None and weight.position == place:
                within.add(value)
            elif needed.intersection(op.outputs):
                needed.add(value)
            elif within.intersection(op.outputs):
                within.add(value)
    return frozenset(
        path
        for value in graph.inputs
        if value in within - needed and (path := _path(graph, value)) is not None
    )
