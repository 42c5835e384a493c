"""Refuse variables, ranges and inputs that are not finite, naming them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import _tree


def check(name: str, tree: Any) -> None:
    """Refuse a tree with a NaN or an infinity; what has no numbers yet is passed over.

    Args:
      name: of the tree, for the message: "params".
      tree: arrays in nested dicts, or one array.

    Raises:
      ValueError: naming the leaf, how many of its numbers are not finite, and one.
    """
    for path, leaf in _tree.flatten(tree).items():
        if not _is_known(leaf) or not jnp.issubdtype(leaf.dtype, jnp.floating):
            continue
        values = np.asarray(leaf, np.float32)
        bad = ~np.isfinite(values)
        if bad.any():
            where = f"{name}/{path}" if path else name
            raise ValueError(
                f"{where} must be finite: {int(bad.sum())} of its {bad.size} numbers "
                f"are not, the first is {values[bad][0]}"
            )


def _is_known(leaf: Any) -> bool:
    """Return whether the numbers are here to be looked at."""
    if isinstance(leaf, jax.core.Tracer):
        return False
    here = getattr(
        leaf, "is_fully_addressable", True
    )  # not on other processes' devices
    return isinstance(leaf, jax.Array | np.ndarray) and here


def check_variables(params: Any, state: Any) -> None:
    """Refuse parameters and a state that are not finite.

    Raises:
      ValueError: naming the leaf.
    """
    check("params", params)
    check("state", state)
