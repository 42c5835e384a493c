"""Constants of a program, computed while it is written down."""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

# Larger than its inputs, a result is not stored in their place (a kernel of integers
# stays integers), except where it is small.
SMALL_BYTES = 2**16

# What the arithmetic of normalisation is made of. On the host: hundreds of tiny
# programs need not be compiled.
HOST: dict[str, Callable[..., np.ndarray]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "max": np.maximum,
    "min": np.minimum,
    "neg": np.negative,
    "exp": np.exp,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: (1 / np.sqrt(x)).astype(x.dtype),
    "square": np.square,
}


def constant(x: Any) -> Any:
    """Return an array that is known now, on the host; a traced one as it is."""
    return x if isinstance(x, jax.core.Tracer) else np.asarray(x)


def is_constant(x: Any) -> bool:
    """Return whether a value is known now."""
    return isinstance(x, np.ndarray | np.generic)


def is_uniform(x: Any) -> bool:
    """Return whether a value is known now, and one number everywhere."""
    return is_constant(x) and x.size > 0 and bool((x == x.flat[0]).all())


def per_channel(x: Any, channels: int) -> bool:
    """Return whether `x` is a constant that varies along the last axis alone."""
    if not is_constant(x) or not x.ndim or not np.issubdtype(x.dtype, np.floating):
        return False
    return channels > 1 and x.shape[-1] == channels == x.size


def folds(equation: Any, values: list) -> bool:
    """Whether an equation's result can be stored as a constant, and should be."""
    if equation.primitive.name == "composite" or not all(map(is_constant, values)):
        return False
    if not values and equation.primitive.name != "iota":
        return False
    if any(hasattr(p, "eqns") for p in equation.params.values()):
        return False
    out = equation.outvars[0].aval
    if not all(isinstance(size, int) for size in out.shape):
        return False  # as many as there are images
    narrow = any(np.issubdtype(v.dtype, np.integer) and v.ndim for v in values)
    before = sum(v.nbytes for v in values)
    after = math.prod(out.shape) * out.dtype.itemsize
    return after <= before or (after <= SMALL_BYTES and not narrow)


def evaluate(equation: Any, values: list) -> list:
    """Return the results of an equation of constants."""
    name, params = equation.primitive.name, equation.params
    shape = equation.outvars[0].aval.shape
    if name in HOST:
        return [np.asarray(HOST[name](*values))]
    if name == "concatenate":
        return [np.concatenate(values, axis=params["dimension"])]
    if name in ("reshape", "squeeze") and params.get("dimensions", None) is None:
        return [values[0].reshape(shape)]
    if name == "broadcast_in_dim":
        placed = [1] * len(shape)
        for size, axis in zip(
            values[0].shape, params["broadcast_dimensions"], strict=True
        ):
            placed[axis] = size
        return [np.broadcast_to(values[0].reshape(placed), shape)]
    with jax.ensure_compile_time_eval():
        outs = equation.primitive.bind(*map(jax.numpy.asarray, values), **params)
    outs = outs if equation.primitive.multiple_results else [outs]
    return [np.asarray(out) for out in outs]
