"""Which of a program's products are of integers, and which of floats."""

from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

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


def attributes(equation: Any) -> dict[str, Any]:
    """The attributes of a `jax.lax.composite`, as they were given."""
    value = lambda leaf: getattr(leaf, "val", leaf)
    return {
        name: jax.tree.unflatten(tree, [value(leaf) for leaf in leaves])
        for name, leaves, tree in equation.params["attributes"]
    }


def is_fake_quant(equation: Any) -> bool:
    """Whether an equation marks a value as quantized."""
    composite = equation.primitive.name == "composite"
    return composite and equation.params["name"] == FAKE_QUANT


def of(closed: Any) -> Wanted:
    """Counts the products of a plain program (see `program.trace`)."""
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
    """The fake quantization that a value comes from unchanged, or None."""
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


def check(path: str, wanted: Wanted, integer: Counter, floats: Counter, allowed=()):
    """What is marked as quantized must have become integer in the file.

    Args:
      path: of the file, for the message.
      wanted: what the program asks for.
      integer: operations of integers in the file, by name.
      floats: operations of floats in the file, by name; conversions are not counted.
      allowed: names of operations that may stay in float.

    Raises:
      ValueError: if a product that was marked is not integer; or, where every product
        was marked, if anything is left in float that is not allowed. It lists them.
    """
    products = sum(integer[name] for name in integer if is_product(name))
    left = {name: n for name, n in floats.items() if name not in allowed}
    everything = wanted.integer and not wanted.real and not wanted.weight_only
    if products < wanted.integer or (everything and left):
        listed = ", ".join(f"{n} {name}" for name, n in sorted(floats.items()))
        raise ValueError(
            f"{path} was not written: of {wanted.integer} quantized products "
            f"{products} became integer; in float are {listed or 'none'}. Each input "
            "and output of these needs its own range, or name them in float_ops"
        )


def is_product(name: str) -> bool:
    """Whether an operation of any of the formats is a convolution or a product."""
    low = name.lower().replace("_", "")
    return any(k in low for k in ("conv", "gemm", "matmul", "fullyconnected", "dot"))
