"""What a program computes, as a digest that is equal in every process."""

import enum
import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from jaxkd import jaxpr

LARGEST = 4096  # numbers in a constant, beyond which its SHA-256 is in the text


def of(closed: Any) -> str:
    """The digest of a closed jaxpr: its operations with their parameters, in order.

    Operations count with what they read, their parameters (strides, padding, axes),
    the shapes and types of their results, and the constants. The text of a jaxpr would
    not do: it names Python objects by their addresses. Of a parameter that is such an
    object (a function, a device mesh), only the class counts.

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
    places = {v: n for n, v in enumerate([*program.constvars, *program.invars])}
    read = lambda v: _number(v.val) if hasattr(v, "val") else f"%{places[v]}"
    for equation in program.eqns:
        reads = [read(v) for v in equation.invars]
        for variable in equation.outvars:
            places[variable] = len(places)
        made = [v.aval.str_short() for v in equation.outvars]
        name, params = equation.primitive.name, equation.params
        if name in jaxpr.CALLS:  # the rest says how it is called, not what it computes
            params = {key: params[key] for key in params if _programs(params[key])}
        said = [f"{key}={_text(params[key])}" for key in sorted(params)]
        yield " ".join([name, *reads, "->", *made, *said])
        for key in sorted(params):
            for inner in _programs(params[key]):
                yield from _lines(
                    getattr(inner, "jaxpr", inner), getattr(inner, "consts", ())
                )
    yield " ".join(["return", *map(read, program.outvars)])


def _programs(value: Any) -> list[Any]:
    return [
        leaf
        for leaf in jax.tree.leaves(value, is_leaf=_is_program)
        if _is_program(leaf)
    ]


def _is_program(value: Any) -> bool:
    return hasattr(value, "eqns") or hasattr(value, "jaxpr")


def _text(value: Any) -> str:
    """Return a parameter; without what differs between processes, such as addresses."""
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return repr(value)
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, np.dtype):
        return str(value)
    if isinstance(value, type):
        number = issubclass(value, np.generic)
        return str(np.dtype(value)) if number else value.__name__
    if isinstance(value, Mapping):
        pairs = sorted((_text(k), _text(v)) for k, v in value.items())
        return f"{{{', '.join(f'{k}: {v}' for k, v in pairs)}}}"
    if isinstance(value, frozenset | set):
        return f"{{{', '.join(sorted(map(_text, value)))}}}"
    if isinstance(value, tuple | list):
        return f"({', '.join(map(_text, value))})"
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return _number(value)
    if hasattr(value, "__dataclass_fields__") and not _is_program(value):
        fields = {name: getattr(value, name) for name in value.__dataclass_fields__}
        return f"{type(value).__name__}{_text(fields)}"
    return type(value).__name__


def _number(value: Any) -> str:
    """Few digits: a device may have computed the number, and another differs a bit."""
    shape, dtype = np.shape(value), getattr(value, "dtype", None)
    if dtype is not None and jax.dtypes.issubdtype(dtype, jax.dtypes.extended):
        return f"{shape}"
    if not getattr(value, "is_fully_addressable", True):  # parts are with others
        return f"{shape}"
    if np.size(value) > LARGEST:
        array = np.ascontiguousarray(value)
        return f"{array.dtype}{shape}:{hashlib.sha256(array.tobytes()).hexdigest()}"
    numbers = np.asarray(value).ravel()
    return f"{shape}:" + ",".join(
        f"{n:.5g}" if np.issubdtype(type(n), np.floating) else str(n) for n in numbers
    )
