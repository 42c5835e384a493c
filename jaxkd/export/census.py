"""Which of a program's products are of integers, and which of floats."""

from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxkd.compress.quantize.graph import SCOPE

PRODUCTS = ("conv_general_dilated", "dot_general")
FAKE_QUANT = "quant.fake_quant"
# What hands on the values it is given, so that they stay on their grid.
SAME_GRID = {
    *("reshape", "squeeze", "transpose", "broadcast_in_dim", "slice", "split", "rev"),
    *("reduce_window_max", "reduce_max"),
}


class Wanted(NamedTuple):
    """What is asked of the file of a program.

    Attributes:
      integer: products of integers, or of two fake-quantized operands.
      weight_only: products whose kernel alone is fake-quantized.
      real: the other products.
      step: the step between representable outputs, or None.
      bytes: of the constants of its products, biases and so on, in float32.
    """

    integer: int
    weight_only: int
    real: int
    step: float | None
    bytes: int


class Operations(NamedTuple):
    """Operations of a file, by name; moves and conversions are not counted.

    Attributes:
      integer: how many compute in integers.
      floats: how many compute in floats.
      places: of those in float, the modules that they are of, one for each.
    """

    integer: Counter
    floats: Counter
    places: dict[str, list[str]]


def attributes(equation: Any) -> dict[str, Any]:
    """Return the attributes of a `jax.lax.composite`, as they were given."""
    value = lambda leaf: getattr(leaf, "val", leaf)
    return {
        name: jax.tree.unflatten(tree, [value(leaf) for leaf in leaves])
        for name, leaves, tree in equation.params["attributes"]
    }


def is_fake_quant(equation: Any) -> bool:
    """Return whether an equation marks a value as quantized."""
    composite = equation.primitive.name == "composite"
    return composite and equation.params["name"] == FAKE_QUANT


def of(closed: Any) -> Wanted:
    """Count the products of a plain program (see `program.trace`)."""
    made = {v: e for e in closed.jaxpr.eqns for v in e.outvars}
    kinds = Counter(
        _kind(e, made) for e in closed.jaxpr.eqns if e.primitive.name in PRODUCTS
    )
    last = _grid(closed.jaxpr.outvars[0], made)
    step = None if last is None else float(np.max(attributes(last)["scale"]))
    bytes = sum(4 * np.size(c) for c in closed.consts)
    return Wanted(kinds["integer"], kinds["weight"], kinds["float"], step, bytes)


def _kind(equation: Any, made: dict) -> str:
    left, right = equation.invars
    if all(np.issubdtype(v.aval.dtype, np.integer) for v in (left, right)):
        return "integer"
    if _grid(right, made) is None:
        return "float"
    return "weight" if _grid(left, made) is None else "integer"


def _grid(variable: Any, made: dict) -> Any:
    """Return the fake quantization that a value comes from unchanged, or None."""
    while not hasattr(variable, "val") and variable in made:
        equation = made[variable]
        if is_fake_quant(equation):
            return equation
        if equation.primitive.name not in SAME_GRID:
            return None
        variable = equation.invars[0]
    return None


def fake_quants(closed: Any) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Each marked equation of a plain program and its attributes."""
    for equation in closed.jaxpr.eqns:
        if is_fake_quant(equation):
            yield equation, attributes(equation)


def check(path: str, wanted: Wanted, ops: Operations, allowed: Any = ()) -> None:
    """What is marked as quantized must have become integer in the file.

    Args:
      path: of the file, for the message.
      wanted: what the program asks for.
      ops: operations in the file.
      allowed: names of operations that may stay in float, or "any".

    Raises:
      ValueError: if a product that was marked is not integer; or, where every product
        was marked, if anything is left in float that is not allowed. It lists the
        operations and their places.
    """
    products = sum(ops.integer[name] for name in ops.integer if is_product(name))
    accepted = () if allowed == "any" else allowed
    left = {name: at for name, at in ops.places.items() if name not in accepted}
    everything = wanted.integer and not wanted.real and not wanted.weight_only
    if allowed == "any" or (products >= wanted.integer and not (everything and left)):
        return
    if products < wanted.integer:
        accept, left = 'float_ops="any"', ops.places
    else:
        accept = f'float_ops="any", or these: float_ops={sorted({*accepted, *left})}'
    raise ValueError(
        f"{path} was not written: of {wanted.integer} quantized products {products} "
        f"became integer, and in float are {listed(left) or 'none'}. To accept them, "
        f"pass {accept}. For a file of integers alone, use operations that have "
        "integer kernels (relu, relu6, hard_swish, sigmoid, sums, means, "
        "concatenations) in their places; one of these is in float itself only if it "
        "reads the result of another that is"
    )


def listed(places: dict[str, list[str]]) -> str:
    """Operations with their places, as text.

    >>> listed({"Tanh": ["head", "head"], "Exp": ["stem"]})
    'Exp (in stem), 2 Tanh (in head)'
    """
    parts = []
    for name, at in sorted(places.items()):
        count = f"{len(at)} " if len(at) > 1 else ""
        shown = list(dict.fromkeys(at))
        more = f" and {len(shown) - 6} more" if len(shown) > 6 else ""
        parts.append(f"{count}{name} (in {', '.join(shown[:6])}{more})")
    return ", ".join(parts)


def place(scope: str) -> str:
    """Return the module of a name scope, e.g. of a tensor's name in a file.

    It is the class of the network where no module inside it is named, and "the network
    itself" where that is a function. Of several scopes it is the one furthest inside.

    >>> place("jit(g)/Net/block/conv/add"), place("Net/dot_general1"), place("f")
    ('block/conv', 'Net', 'the network itself')
    >>> place("Net/add;Net/block/elu()/exp"), place("Net/elu()/exp")
    ('block/elu()', 'Net/elu()')
    """
    found: list[str] = []
    for each in scope.split(";"):
        *path, _ = [p for p in each.split("/") if p and not p.startswith("jit(")] or [
            ""
        ]
        found = max(found, path, key=len)
    modules = [p for p in found[1:] if not p.endswith("()")]
    if found[:1] == [SCOPE]:
        found = found[1:]
    return "/".join(found[1:] if modules else found) or "the network itself"


def check_finite(closed: Any) -> None:
    """Refuse constants with NaN, and infinite kernels.

    An infinite number elsewhere may be meant, as in the mask of an attention.

    Raises:
      ValueError: with the operation that reads it and its place.
    """
    arrays = dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
    for equation in closed.jaxpr.eqns:
        kernel = equation.primitive.name in PRODUCTS or is_fake_quant(equation)
        for v in equation.invars:
            array = None if hasattr(v, "val") else arrays.get(v)
            if array is None or not np.issubdtype(array.dtype, np.inexact):
                continue
            wide = np.asarray(array, np.float32)
            if np.isnan(wide).any() or (kernel and np.isinf(wide).any()):
                name, scope = equation.primitive.name, equation.source_info.name_stack
                raise ValueError(
                    f"a constant of shape {array.shape} is not finite (NaN or "
                    f"infinite): {name} reads it in {place(f'{scope}/{name}')}; "
                    "nothing was written"
                )


def is_product(name: str) -> bool:
    """Whether an operation of any of the formats is a convolution or a product."""
    low = name.lower().replace("_", "")
    return any(k in low for k in ("conv", "gemm", "matmul", "fullyconnected", "dot"))
