"""Quantization after training: ranges and biases from a few batches."""

from collections.abc import Iterable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxkd import _tree
from jaxkd.compress.quantize import finite, ranges
from jaxkd.compress.quantize.graph import Op
from jaxkd.compress.quantize.kernels import Weight
from jaxkd.compress.quantize.names import key
from jaxkd.compress.quantize.net import RANGES, Context, faked
from jaxkd.compress.quantize.plan import QuantizedTensor
from jaxkd.compress.quantize.run import Arithmetic, Tensor
from jaxkd.models.net import Net
from jaxkd.types import Params, State


def calibrate(
    net: Net, params: Params, state: State, batches: Iterable[Array]
) -> State:
    """Return the state with the ranges that the network's tensors have on some images.

    The network runs in inference mode and in floats: the ranges are those of the
    unquantized tensors. They start anew, whatever the state held, and every batch moves
    them as the configuration's `estimator` says. No parameter changes.

    Args:
      net: from `quantized`.
      params: its parameters.
      state: its state.
      batches: images `[batch, height, width, channels]`, as the network sees them; of
        a few hundred in all, drawn like the training images.

    Returns:
      The state; with dynamic ranges, or none, it is the given one.

    Raises:
      ValueError: if there is no batch, if the network does not take images of their
        shape, or if a variable, an image or a range is not finite.
    """
    finite.check_variables(params, {k: v for k, v in state.items() if k != RANGES})
    if not state.get(RANGES):
        return state

    @jax.jit
    def observe(params: Params, state: State, x: Array) -> State:
        _, state = net.apply(params, state, x, train=False, by=observing)
        return state

    state = {**state, RANGES: jax.tree.map(jnp.zeros_like, state[RANGES])}
    seen = 0
    for x in batches:
        finite.check(f"batches[{seen}]", x)
        state, seen = observe(params, state, x), seen + 1
    if not seen:
        raise ValueError("batches must hold at least one batch, got none")
    finite.check("state", state)
    return state


def observing(context: Context) -> Arithmetic:
    """Nothing is quantized, and every range moves."""
    config = context.config

    def activation(point: QuantizedTensor, x: Array) -> Tensor:
        name = key(point.name)
        ends = ranges.measure(x, config, point.bits)
        context.moved[name] = ranges.move(context.ranges[name], ends, config)
        return Tensor(x)

    return Arithmetic(activation=activation)


def bias_correction(
    net: Net, params: Params, state: State, batches: Iterable[Array]
) -> Params:
    """The parameters with biases that undo the mean error of the quantized layers.

    Rounding moves the mean of a layer's outputs, most where kernels are small, as in
    depthwise convolutions. On some images, one layer after another so that each sees
    the corrected ones before it, with y in floats and y~ quantized::

        bias += mean(y) - mean(y~)          for each channel

    Args:
      net: from `quantized`.
      params: its parameters; layers without a bias of their own (linen's
        `use_bias=False`, not folded; a slice of a stack of biases) stay as they are.
      state: its state, calibrated.
      batches: images, as for `calibrate`; they are run through once for each layer.

    Returns:
      The parameters.

    Raises:
      ValueError: if there is no batch, if the network does not take images of their
        shape, or if an image is not finite.

    References:
      M. Nagel, M. van Baalen, T. Blankevoort, M. Welling. Data-Free Quantization
      Through Weight Equalization and Bias Correction. 2019.
      https://arxiv.org/abs/1906.04721 section 4.2; the means are measured here.
    """
    batches = list(batches)
    if not batches:
        raise ValueError("batches must hold at least one batch, got none")
    for number, x in enumerate(batches):
        finite.check(f"batches[{number}]", x)

    order: dict[str, None] = {}  # of the layers as they run; a tree's is the alphabet's

    @partial(jax.jit, static_argnums=3)
    def means(params, state, x, quantized):
        found: dict[str, list[Array]] = {}  # of each call of a layer
        base = faked if quantized else _real
        by = lambda context: _watching(found, base(context))
        net.apply(params, state, x, train=False, by=by)
        order.update(dict.fromkeys(found))
        return {name: sum(calls) / len(calls) for name, calls in found.items()}

    def mean(params, quantized):
        each = [means(params, state, x, quantized) for x in batches]
        return jax.tree.map(lambda *m: sum(m) / len(m), *each)

    wanted = mean(params, False)
    for path in list(order):
        shift = wanted[path] - mean(params, True)[path]
        params = _tree.map_with_path(partial(_shifted, {path: shift}), params)
    return params


def _shifted(shifts: dict[str, Array], path: str, leaf: Array) -> Array:
    return leaf + shifts[path] if path in shifts else leaf


def _real(context: Context) -> Arithmetic:
    return Arithmetic()


def _watching(found: dict[str, list[Array]], base: Arithmetic) -> Arithmetic:
    """The same arithmetic, which puts down the mean of the outputs at each bias."""

    def linear(op: Op, layer: str, weight: Weight | None, tensors: list[Tensor]):
        out = base.linear(op, layer, weight, tensors)
        if weight is not None and weight.bias_path is not None:
            mean = jnp.mean(out, tuple(range(out.ndim - 1)))
            found.setdefault(weight.bias_path, []).append(mean)
        return out

    return base._replace(linear=linear)
