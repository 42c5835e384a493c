"""What a program computes, as a digest that is equal in every process."""

import hashlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

LARGEST = 4096  # numbers in a constant, beyond which its shape alone counts


def of(closed: Any) -> str:
    """The digest of a closed jaxpr: its operations, shapes and numbers, in order.

    The text of a jaxpr would not do: it names Python objects by their addresses, and
    shares parts by what was traced before. Attributes of operations do not count.

    Args:
      closed: from `jax.make_jaxpr`.

    Returns:
      64 hexadecimal digits, comparable under one version of jax.

    Example:
      >>> rate = lambda r: of(jax.make_jaxpr(lambda x: r * x)(1.0))
      >>> rate(0.1) == rate(0.1), rate(0.1) == rate(0.2)
      (True, False)
    """
    text = "\n".join(_lines(closed.jaxpr, closed.consts))
    return hashlib.sha256(text.encode()).hexdigest()


def _lines(program: Any, constants: Any) -> Iterator[str]:
    for constant in constants:
        yield _number(constant)
    for equation in program.eqns:
        read = [_number(v.val) if hasattr(v, "val") else "" for v in equation.invars]
        made = [str(getattr(v.aval, "shape", "")) for v in equation.outvars]
        yield " ".join([equation.primitive.name, *read, "->", *made])
        for name in sorted(equation.params):
            for leaf in jax.tree.leaves(equation.params[name], is_leaf=_is_program):
                if _is_program(leaf):
                    yield from _lines(
                        getattr(leaf, "jaxpr", leaf), getattr(leaf, "consts", ())
                    )


def _is_program(value: Any) -> bool:
    return hasattr(value, "eqns") or hasattr(value, "jaxpr")


def _number(value: Any) -> str:
    """Few digits: a device may have computed the number, and another differs a bit."""
    shape, dtype = np.shape(value), getattr(value, "dtype", None)
    if dtype is not None and jax.dtypes.issubdtype(dtype, jax.dtypes.extended):
        return f"{shape}"
    if np.size(value) > LARGEST:
        return f"{shape}"
    numbers = np.asarray(value).ravel()
    return f"{shape}:" + ",".join(
        f"{n:.5g}" if np.issubdtype(type(n), np.floating) else str(n) for n in numbers
    )
