"""Cross-layer equalisation: like ranges for all channels of a kernel."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxkd import _check, _tree
from jaxkd.compress.quantize.config import Quantization
from jaxkd.compress.quantize.graph import OpGraph, trace
from jaxkd.compress.quantize.kernels import VIEWS
from jaxkd.compress.quantize.plan import QuantizationPlan, plan
from jaxkd.models.net import Net
from jaxkd.types import Params, State


class KernelPair(NamedTuple):
    """Two kernels with nothing but bias and ReLU between them.

    Attributes:
      first: path of the kernel whose outputs are scaled.
      outputs: its axis of output channels.
      bias: path of its bias, or None.
      second: path of the kernel that undoes the scale.
      inputs: its axis of those channels.
    """

    first: str
    outputs: int
    bias: str | None
    second: str
    inputs: int


def equalise(
    net: Net,
    params: Params,
    state: State,
    image_shape: tuple[int, ...],
    *,
    iterations: int = 20,
) -> Params:
    """The parameters of the same function with like ranges in neighbouring layers.

    ReLU lets a positive scale through. So between two layers with kernels W and V and
    nothing but a bias b and ReLU between them, channel i can be divided by any s_i > 0
    on one side and multiplied on the other::

        W[.., i] /= s_i    b_i /= s_i    V[i, ..] *= s_i    s_i = sqrt(r_i / q_i)

    with r_i and q_i the channel's largest absolute values in W and V, which are then
    the same. It helps where one scale serves a whole kernel, above all a folded
    depthwise one. Layers in a row depend on each other, so that it is done repeatedly.

    Args:
      net: folded (see `fold`), not yet quantized.
      params: its parameters.
      state: its state.
      image_shape: of one image, without the batch axis.
      iterations: how often all pairs are equalised.

    Returns:
      The parameters. Logits are the same up to rounding; taps between the two layers
      are not. With ReLU6, or a tensor that a third layer reads, a pair stays as it is.

    References:
      M. Nagel, M. van Baalen, T. Blankevoort, M. Welling. Data-Free Quantization
      Through Weight Equalization and Bias Correction. 2019.
      https://arxiv.org/abs/1906.04721 section 4.1, equation 11.
    """
    _check.whole(1)("iterations", iterations)
    found = pairs(net, params, state, image_shape)

    @jax.jit
    def scaled(leaves: dict[str, Array]) -> dict[str, Array]:
        return jax.lax.fori_loop(0, iterations, lambda _, p: _once(p, found), leaves)

    leaves = _tree.flatten(params)
    names = {n for pair in found for n in (pair.first, pair.bias, pair.second) if n}
    changed = scaled({name: jnp.asarray(leaves[name]) for name in names})
    return _tree.map_with_path(lambda path, leaf: changed.get(path, leaf), params)


def _once(leaves: dict[str, Array], found: list[KernelPair]) -> dict[str, Array]:
    leaves = dict(leaves)
    for pair in found:
        first, second = leaves[pair.first], leaves[pair.second]
        r, q = _reach(first, pair.outputs), _reach(second, pair.inputs)
        # A channel of zeros on either side has no range to share.
        both = (r > 0) & (q > 0)
        s = jnp.where(both, jnp.sqrt(r / jnp.where(both, q, 1)), 1)
        leaves[pair.first] = first / _along(s, first, pair.outputs)
        leaves[pair.second] = second * _along(s, second, pair.inputs)
        if pair.bias:
            leaves[pair.bias] = leaves[pair.bias] / s
    return leaves


def _reach(kernel: Array, axis: int) -> Array:
    others = tuple(i for i in range(kernel.ndim) if i != axis)
    return jnp.max(jnp.abs(kernel), others)


def _along(s: Array, kernel: Array, axis: int) -> Array:
    return s.reshape([-1 if i == axis else 1 for i in range(kernel.ndim)])


def pairs(
    net: Net, params: Params, state: State, image_shape: tuple[int, ...]
) -> list[KernelPair]:
    """The pairs of kernels that `equalise` can balance, in the order they run."""
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    graph = trace(
        lambda p, s, x: net.apply(p, s, x, train=False)[0].logits,
        params, state, image, whole=True,
    )  # fmt: skip
    x = graph.inputs[graph.paths.index("2")]
    planned = plan(graph, x, graph.outputs[0], Quantization())
    readers: dict[int, list[int]] = {graph.outputs[0]: [-1]}
    for number, op in enumerate(graph.ops):
        for value in set(op.inputs):
            readers.setdefault(value, []).append(number)
    alone = {n for n in planned.weights if _alone(graph, planned, readers, n)}
    found = (_pair(graph, planned, readers, n, alone) for n in planned.weights)
    return [pair for pair in found if pair is not None]


def _alone(
    graph: OpGraph,
    planned: QuantizationPlan,
    readers: dict[int, list[int]],
    number: int,
) -> bool:
    """Return whether a kernel is the whole of a parameter that nobody else reads."""
    path = f"0/{planned.weights[number].name}"
    if path not in graph.paths:
        return False
    value = graph.inputs[graph.paths.index(path)]
    while readers.get(value, []) != [number]:
        if len(readers.get(value, [])) != 1 or readers[value][0] < 0:
            return False
        value = graph.ops[readers[value][0]].outputs[0]
    return True


def _pair(
    graph: OpGraph,
    planned: QuantizationPlan,
    readers: dict[int, list[int]],
    number: int,
    alone: set[int],
) -> KernelPair | None:
    """Return the pair that a layer is the first of, if there is one."""
    if number not in alone:
        return None
    value, bias = graph.ops[number].outputs[0], None
    while len(readers.get(value, ())) == 1 and readers[value][0] >= 0:
        reader = readers[value][0]
        op = graph.ops[reader]
        if reader in alone:
            return _between(graph, planned, number, reader, bias)
        if op.kind == "add" and bias is None:
            other = next((v for v in op.inputs if v not in planned.live), None)
            bias = _leaf(graph, readers, other)
            if bias is None:
                return None
        elif op.kind != "relu":
            return None
        value = op.outputs[0]
    return None


def _leaf(
    graph: OpGraph, readers: dict[int, list[int]], value: int | None
) -> str | None:
    """Return the path of the parameter that a value alone is made from, unchanged."""
    makers = {v: op for op in graph.ops for v in op.outputs}
    while value in makers and makers[value].kind in VIEWS:
        value = makers[value].inputs[0]
        if len(readers[value]) != 1:
            return None
    if value is None or value not in graph.inputs or len(readers[value]) != 1:
        return None
    return graph.paths[graph.inputs.index(value)].partition("/")[2]


def _between(
    graph: OpGraph, planned: QuantizationPlan, first: int, second: int, bias: str | None
) -> KernelPair | None:
    a, b = planned.weights[first], planned.weights[second]
    inputs = _inputs(graph.ops[second])
    whole = all(
        graph.avals[graph.inputs[graph.paths.index(f"0/{w.name}")]].shape
        == graph.ops[n].equation.invars[w.position].aval.shape
        if f"0/{w.name}" in graph.paths
        else False
        for n, w in ((first, a), (second, b))
    )
    if not whole or a.axis is None or b.position != 1 or inputs is None:
        return None
    return KernelPair(a.name, a.axis, bias, b.name, inputs)


def _inputs(op: Any) -> int | None:
    """Return the axis of a kernel that its input channels lie along, one for each."""
    params = op.equation.params
    if op.kind == "dot_general":
        (_, contracted), (_, batch) = params["dimension_numbers"]
        return contracted[0] if len(contracted) == 1 and not batch else None
    groups = params["feature_group_count"]
    x, kernel = (v.aval.shape for v in op.equation.invars)
    numbers = params["dimension_numbers"]
    if groups == 1:
        return numbers.rhs_spec[1]
    # Depthwise: the outputs are the inputs.
    channels = x[numbers.lhs_spec[1]]
    outputs = kernel[numbers.rhs_spec[0]]
    return numbers.rhs_spec[0] if groups == channels == outputs else None
