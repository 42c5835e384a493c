"""The quantized network in integers, on XLA; and how many bytes it takes."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from jaxkd import _tree, cost
from jaxkd.compress.quantize.config import Quantization
from jaxkd.compress.quantize.deploy import check_ready, collect
from jaxkd.compress.quantize.fake import Grid, integers
from jaxkd.compress.quantize.graph import Op
from jaxkd.compress.quantize.kernels import Weight
from jaxkd.compress.quantize.net import STEPS, Context, fake_activation
from jaxkd.compress.quantize.plan import QuantizationPlan
from jaxkd.compress.quantize.run import Arithmetic, Tensor, plainly
from jaxkd.models.net import Net
from jaxkd.types import Params, State

Variables = dict[str, Any]


class Size(NamedTuple):
    """Bytes of a network's parameters as they are stored.

    Attributes:
      before: in floats.
      after: quantized kernels (of 4 bits or fewer two in a byte), their scales in
        float32, and the rest as it was.
    """

    before: int
    after: int


def integer(
    net: Net, params: Params, state: State, config: Quantization
) -> tuple[Callable[[Any, Array], Array], Any]:
    """Return the network with int8 kernels and int8 arithmetic, as JAX runs it.

    A convolution or matrix product of the integers q = x / s + z of its inputs and w of
    its kernel, with scale t, is int8 times int8 summed in int32::

        y = s t (sum(q w) - z sum(w))

    Padding is with z, which stands for 0. Bias, ReLU and sums are in floats between
    two roundings to a grid.

    Args:
      net: from `quantized`.
      params: its parameters.
      state: its state, calibrated or trained.
      config: as given to `quantized`.

    Returns:
      `(apply, variables)`: `apply(variables, x) -> logits`, and its variables:
      "kernels", "integers" (int8) and "scale" by the kernel's name, which is its
      parameter's path unless several kernels are made from one parameter; "params", the
      parameters that anything but a quantized kernel is made from; "state".

    Raises:
      ValueError: if a static range was never measured, or a variable is not finite,
        naming the tensors.
    """
    check_ready(params, state, config)
    known: list[KernelBits] = []
    kernels = jax.jit(lambda p, s: _kernels(net, p, s, known))(params, state)
    params = {k: v for k, v in params.items() if k != STEPS}
    whole = jax.eval_shape(lambda: params)

    def apply(variables: Variables, x: Array) -> Array:
        rest, held = _tree.flatten(variables["params"]), variables["kernels"]

        def leaf(path, aval):
            # Only quantized kernels are made from it: nobody reads these zeros.
            return rest[path] if path in rest else jnp.zeros(aval.shape, aval.dtype)

        filled = _tree.map_with_path(leaf, whole)
        by = partial(_integers, held)
        outputs, _ = net.apply(filled, variables["state"], x, train=False, by=by)
        return outputs.logits

    rest = _without(params, known[-1].plan.replaced)
    return apply, {"kernels": kernels, "params": rest, "state": state}


def size(net: Net, params: Params, state: State) -> Size:
    """Return how many bytes the parameters take before and after quantization.

    Args:
      net: from `quantized`.
      params: its parameters.
      state: its state.

    Returns:
      The two numbers; learned step sizes are the scales, and count once.
    """
    params_only = {k: v for k, v in params.items() if k != STEPS}
    known: list[KernelBits] = []
    kernels = jax.eval_shape(lambda p, s: _kernels(net, p, s, known), params, state)
    after = cost.bytes(_without(params_only, known[-1].plan.replaced))
    for name, kernel in kernels.items():
        numbers = cost.parameters(kernel["integers"])
        after += -(-numbers // 2) if known[-1].bits[name] <= 4 else numbers
        after += cost.bytes(kernel["scale"])
    return Size(cost.bytes(params_only), after)


class KernelBits(NamedTuple):
    """What is known of the kernels before their numbers are."""

    plan: QuantizationPlan
    bits: dict[str, int]  # by the kernel's name


def _kernels(
    net: Net, params: Params, state: State, known: list[KernelBits]
) -> dict[str, dict[str, Array]]:
    """Return the integers of every quantized kernel and their scale, by name."""
    floats: dict[str, Array] = {}
    grids: dict[str, Grid] = {}

    def by(context: Context) -> Arithmetic:
        weights = context.plan.weights.values()
        known.append(KernelBits(context.plan, {w.name: w.bits for w in weights}))
        collecting = collect(grids, context)

        def weight(w: Weight, kernel: Array, x: Tensor, bias: Array | None) -> Tensor:
            floats[w.name] = kernel
            return collecting.weight(w, kernel, x, bias)

        return collecting._replace(weight=weight)

    net.apply(params, state, None, train=False, by=by)
    held = {}
    for name, kernel in floats.items():
        grid = grids[f"kernel:{name}"]
        q = integers(kernel, grid).astype(jnp.int8)
        held[name] = {"integers": q, "scale": grid.scale}
    return held


def _without(tree: Any, paths: frozenset[str], above: str = "") -> Any:
    """Nested dicts without the leaves at these paths."""
    if not isinstance(tree, dict):
        return tree
    return {
        key: _without(branch, paths, f"{above}{key}/")
        for key, branch in tree.items()
        if f"{above}{key}" not in paths
    }


def _integers(held: dict[str, dict[str, Array]], context: Context) -> Arithmetic:
    def weight(w: Weight, kernel: Array, x: Tensor, bias: Array | None) -> Tensor:
        scale = held[w.name]["scale"]
        none = jnp.zeros_like(scale)
        return Tensor(held[w.name]["integers"], Grid(scale, none, -127, 127))

    return Arithmetic(
        activation=partial(fake_activation, context), weight=weight, linear=_int32
    )


def _int32(op: Op, layer: str, weight: Weight | None, tensors: list[Tensor]) -> Array:
    """Return a convolution or product, of integers where both sides are."""
    if weight is None:
        return plainly(op, layer, weight, tensors)
    tensors = list(tensors)
    x, kernel = tensors[0], tensors[1]
    if weight.position != 1 or weight.axis is None or x.grid is None:
        held = tensors[weight.position]
        values = held.value.astype(jnp.float32) * held.grid.scale
        tensors[weight.position] = Tensor(values)
        return plainly(op, layer, weight, tensors)
    zero = x.grid.zero.astype(jnp.int8)
    q = integers(x.value, x.grid).astype(jnp.int8)
    total, channel = (_conv if op.kind == "conv_general_dilated" else _dot)(
        op, q, kernel.value, zero
    )
    along = [-1 if i == channel else 1 for i in range(total.ndim)]
    others = tuple(i for i in range(kernel.value.ndim) if i != weight.axis)
    sums = jnp.sum(kernel.value.astype(jnp.int32), others)
    total -= (zero.astype(jnp.int32) * sums).reshape(along)
    scale = x.grid.scale * kernel.grid.scale
    scale = scale.reshape(along) if scale.ndim else scale
    return (total.astype(jnp.float32) * scale).astype(x.value.dtype)


def _conv(op: Op, x: Array, kernel: Array, zero: Array) -> tuple[Array, int]:
    """Return the sums in int32, and their axis of channels."""
    p = op.equation.params
    numbers = p["dimension_numbers"]
    around = [(0, 0, 0)] * x.ndim
    for axis, (low, high), step in zip(
        numbers.lhs_spec[2:], p["padding"], p["lhs_dilation"], strict=True
    ):
        around[axis] = (low, high, step - 1)
    total = lax.conv_general_dilated(
        lax.pad(x, zero, around),
        kernel,
        p["window_strides"],
        "VALID",
        rhs_dilation=p["rhs_dilation"],
        dimension_numbers=numbers,
        feature_group_count=p["feature_group_count"],
        batch_group_count=p["batch_group_count"],
        preferred_element_type=jnp.int32,
    )
    return total, numbers.out_spec[1]


def _dot(op: Op, x: Array, kernel: Array, zero: Array) -> tuple[Array, int]:
    numbers = op.equation.params["dimension_numbers"]
    total = lax.dot_general(x, kernel, numbers, preferred_element_type=jnp.int32)
    return total, total.ndim - 1
