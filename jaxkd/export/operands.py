"""Operands as integer kernels want them: constants on grids, windows not padded."""

from typing import Any

import numpy as np
from jax import lax
from jaxtyping import Array

from jaxkd.export import fold
from jaxkd.export.views import Mark, marked

JOINED = ("add", "sub", "mul", "div")


def with_grids(
    equation: Any, values: list, marks: dict[int, Mark], *, exact: bool
) -> tuple[Any, list] | None:
    """An equation of a quantized value and a constant, with the constant quantized.

    Runtimes add and multiply integers only where both operands have a grid. One number
    is on its grid exactly; an array is rounded to 8 bits. A quotient becomes a product.

    Args:
      equation: a sum, difference, product or quotient.
      values: its operands.
      marks: of the quantized values.
      exact: leave arrays of more than one number as they are.

    Returns:
      The primitive and its operands, or None of any other equation.
    """
    name = equation.primitive.name
    if name not in JOINED or len(values) != 2:
        return None
    place = next((i for i, v in enumerate(values) if fold.is_constant(v)), None)
    if place is None or id(values[1 - place]) not in marks:
        return None
    constant = values[place]
    if constant.dtype != np.float32 or not constant.any():
        return None
    if exact and constant.size > 1:
        return None
    primitive = equation.primitive
    if name == "div":
        if place == 0:
            return None
        primitive, constant = lax.mul_p, (1 / constant).astype(np.float32)
    largest = np.max(np.abs(constant))
    attributes = {
        "scale": np.asarray([largest / 127], np.float32),
        "zero_point": np.zeros(1, np.int64),
        "dtype": "i8",
        "narrow_range": False,
    }
    operands = list(values)
    operands[place] = marked(constant, attributes)
    return primitive, operands


def padded_first(equation: Any, x: Any, marks: dict[int, Mark]) -> Array | None:
    """Return a sum over windows with padding, as a sum over windows of what was padded.

    LiteRT's mean over windows leaves padding out of the count, or takes none.
    """
    params = equation.params
    around = params["padding"]
    if not any(n for pad in around for n in pad) or set(params["base_dilation"]) != {1}:
        return None
    wide = lax.pad(x, np.zeros((), x.dtype), [(*pad, 0) for pad in around])
    if (mark := marks.get(id(x))) is not None:
        wide = marked(wide, mark.attributes)
    none = tuple((0, 0) for _ in around)
    return equation.primitive.bind(wide, **{**params, "padding": none})
