"""What only scales and shifts channels after a product, put off until it is known."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from jaxkd.export import fold


class Deferred(NamedTuple):
    """`make(scale)` plus `shift`: a value whose channels may still be scaled.

    Attributes:
      make: computes it, with its channels scaled.
      rank: its number of axes, of which the last holds the channels.
      scope: the module that it is of.
      scale: of each channel, or None.
      shift: of each channel, or None.
    """

    make: Callable[[np.ndarray | None], Array]
    rank: int
    scope: str = ""
    scale: np.ndarray | None = None
    shift: np.ndarray | None = None

    def value(self) -> Array:
        """Compute it."""
        out = self.make(self.scale)
        if self.shift is None:
            return out
        shift = self.shift.reshape((1,) * (self.rank - 1) + (-1,)).astype(out.dtype)
        with within(self.scope):
            return lax.add(out, shift)


class Widened(NamedTuple):
    """A constant of narrow integers in a wider type, stored as the narrow ones."""

    narrow: np.ndarray
    params: dict[str, Any]

    def value(self) -> Array:
        """Compute it."""
        return lax.convert_element_type_p.bind(self.narrow, **self.params)


def within(scope: str) -> Any:
    """Return the name scope of a module; none if it is not known."""
    return jax.named_scope(scope) if scope else contextlib.nullcontext()


def value(x: Any) -> Any:
    """Compute a value that was put off; return everything else as it is."""
    return x.value() if hasattr(x, "value") and hasattr(x, "_fields") else x


def channelwise(equation: Any, values: list, scope: str) -> Deferred | None:
    """Return the result as a deferred value, if it is one or becomes one here.

    Args:
      equation: of the program.
      values: what it reads.
      scope: the module that it is of.
    """
    name, aval = equation.primitive.name, equation.outvars[0].aval
    if name in ("conv_general_dilated", "dot_general"):
        x, kernel = values
        return _linear(equation, x, kernel, scope)
    if name not in ("add", "sub", "mul", "div") or not aval.shape:
        return None
    left, right = values
    if fold.is_constant(left) and name in ("add", "mul"):
        left, right = right, left
    channels = aval.shape[-1]
    if _is_number(right) and isinstance(left, Deferred) and name in ("add", "sub"):
        right = np.full(channels, right, np.float32)
    if not fold.per_channel(right, channels) or aval.dtype != jnp.float32:
        return None
    if isinstance(left, Deferred):
        given = left
    elif getattr(left, "shape", None) != aval.shape or fold.is_constant(left):
        return None
    else:
        given = Deferred(functools.partial(_scaled, left), len(aval.shape), scope)
    c = np.asarray(right, np.float32).reshape(-1)
    scale, shift = given.scale, given.shift
    if name in ("mul", "div"):
        times = (lambda a: a * c) if name == "mul" else (lambda a: a / c)
        one = np.ones_like(c)
        return given._replace(
            scale=times(one if scale is None else scale),
            shift=None if shift is None else times(shift),
        )
    c = -c if name == "sub" else c
    return given._replace(shift=c if shift is None else shift + c)


def _is_number(x: Any) -> bool:
    return fold.is_constant(x) and x.size == 1 and x.dtype == np.float32


def _scaled(x: Array, scale: np.ndarray | None) -> Array:
    if scale is None:
        return x
    shape = (1,) * (x.ndim - 1) + (-1,)
    return lax.mul(x, scale.reshape(shape).astype(x.dtype))


def _linear(equation: Any, x: Any, kernel: Any, scope: str) -> Deferred | None:
    """A convolution or product whose constant kernel can take a scale of its outputs.

    Only where the kernel's outputs are its last axis and become the result's.
    """
    params, primitive = equation.params, equation.primitive
    rank = len(equation.outvars[0].aval.shape)
    if not fold.is_constant(kernel) or kernel.dtype != np.float32:
        return None
    if primitive.name == "dot_general":
        (_, contracted), (_, batch) = params["dimension_numbers"]
        last = kernel.ndim == 2 and tuple(contracted) == (0,) and not batch
    else:
        numbers = params["dimension_numbers"]
        last = (numbers.rhs_spec[0], numbers.out_spec[1]) == (rank - 1, rank - 1)
    if not last:
        return None

    def make(scale):
        scaled = kernel if scale is None else kernel * scale
        operand = value(x)
        with within(scope):
            return primitive.bind(operand, scaled, **params)

    return Deferred(make, rank, scope)
