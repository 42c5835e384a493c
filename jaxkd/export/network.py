"""What is handed to an exporter: a network with its variables, checked."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxkd import _tree
from jaxkd.compress.quantize import Quantization, deployed, integer
from jaxkd.compress.quantize.net import RANGES, faked
from jaxkd.models.net import Net
from jaxkd.types import Outputs, Params, State

Function = Callable[[Array], Array]


def function(f: Function) -> tuple[Net, Params, State]:
    """Wrap a function of images as a network without variables.

    So that any function can be exported::

        export.onnx(*export.function(f), path, image_shape=(32, 32, 3))

    Args:
      f: images `[batch, ...]` to logits `[batch, ...]`; what it closes over becomes
        constants of the file.

    Returns:
      `(net, params, state)`, of which the last two are empty.
    """

    def init(key: Array, x: Array) -> tuple[Params, State]:
        return {}, {}

    def apply(params, state, x, *, train, key=None):
        return Outputs(f(x), {}), state

    return Net(init, apply), {}, {}


def inference(net: Net, params: Params, state: State) -> Function:
    """Return the network as a function of images to logits, in inference mode.

    Args:
      net: a network that is not quantized.
      params: the student's alone; those of `Term`s are not part of the network.
      state: its state.

    Raises:
      ValueError: if the network is quantized: as a function it computes in float.
    """
    if is_quantized(net, state):
        raise ValueError(
            "net is quantized, and as a function of images it computes in float: "
            "export.tflite(net, params, state, path, ...), onnx and stablehlo write "
            "it as integers"
        )
    return logits(net, params, state)


def logits(net: Net, params: Params, state: State) -> Function:
    """Return the function of images that a network is, fake-quantized if it is."""
    return lambda x: net.apply(params, state, x, train=False)[0].logits


def is_quantized(net: Net, state: State) -> bool:
    """Whether a network comes from `quantize.quantized`, or its state from one."""
    held = isinstance(state, dict) and bool(state.get(RANGES))
    return held or "by" in inspect.signature(net.apply).parameters


def configuration(net: Net, params: Params, state: State) -> Quantization:
    """Return the configuration that a quantized network was made with.

    Raises:
      ValueError: if the state is of a quantized network, and `net` is not.
    """
    found: list[Quantization] = []

    def see(params, state):
        def by(context):
            found.append(context.config)
            return faked(context)

        net.apply(params, state, None, train=False, by=by)
        return 0

    try:
        jax.eval_shape(see, params, state)
    except TypeError as error:
        if "'by'" not in str(error):
            raise
        raise ValueError(
            f"state has the {RANGES!r} of a quantized network, but net is none: give "
            "the network that quantize.quantized returned, or the state that it was "
            "made from"
        ) from error
    return found[0]


def check_quantize(
    net: Net, params: Params, state: State, wanted: Any
) -> Quantization | None:
    """Return the network's own configuration, None if it is not quantized.

    Raises:
      ValueError: if `wanted` is a configuration that is not the network's.
    """
    own = configuration(net, params, state) if is_quantized(net, state) else None
    if wanted is None or wanted == own:
        return own
    if not isinstance(wanted, Quantization):
        raise ValueError(f"quantize must be a Quantization or None, got {wanted!r}")
    if own is None:
        raise ValueError(
            "quantize was given, but net is not quantized: first net, params, state = "
            "quantize.quantized(net, params, state, config, image_shape), then state "
            "= quantize.calibrate(net, params, state, batches)"
        )
    raise ValueError(
        f"quantize must be the configuration that net was quantized with, {own}, got "
        f"{wanted}"
    )


def as_marked(net: Net, params: Params, state: State, own: Any) -> Function:
    """Return what a converter turns into integers; a float network as it is."""
    if own is None:
        return logits(net, params, state)
    return deployed(net, params, state, own)


def as_integers(net: Net, params: Params, state: State, own: Any) -> Function:
    """Return what computes in integers under XLA; a float network as it is."""
    if own is None:
        return logits(net, params, state)
    apply, variables = integer(net, params, state, own)
    return lambda x: apply(variables, x)


def check_finite(params: Params, state: State, inputs: Any) -> None:
    """Refuse numbers that are infinite or NaN.

    Raises:
      ValueError: with the path of the first array that has some, and how many.
    """
    whole = {"params": params, "state": state, "inputs": inputs}
    for path, leaf in _tree.flatten(whole).items():
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            continue
        array = np.asarray(leaf, np.float32)
        if bad := np.count_nonzero(~np.isfinite(array)):
            raise ValueError(
                f"{path} is not finite ({bad} of {array.size} numbers are NaN or "
                "infinite): nothing was written"
            )
