"""Argument checks. Shapes are checked while tracing, knobs while they are concrete.

Each check raises a ValueError that names the argument, what was expected and what
came. A check of a knob takes `(name, value)`, so that a loss can list its knobs' ranges
beside its signature (see `jaxkd.losses._compile`).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

Range = Callable[[str, Any], None]


def same_shape(**arrays: ArrayLike) -> None:
    """Every array has exactly the same shape: nothing is broadcast."""
    shapes = {name: jnp.shape(array) for name, array in arrays.items()}
    if len(set(shapes.values())) > 1:
        got = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"shapes must be equal (no broadcasting), got {got}")


def rank(least: int, most: int | None = None, **arrays: ArrayLike) -> None:
    """Every array has `least` to `most` axes (`most=None`: at least `least`)."""
    for name, array in arrays.items():
        shape = jnp.shape(array)
        if len(shape) < least or (most is not None and len(shape) > most):
            if most is None:
                wanted = f"at least {least}"
            else:
                wanted = f"{least}" if most == least else f"{least} to {most}"
            raise ValueError(f"{name} must have {wanted} axes, got shape {shape}")


def not_empty(**arrays: ArrayLike) -> None:
    """No axis has length 0."""
    for name, array in arrays.items():
        if 0 in jnp.shape(array):
            raise ValueError(f"{name} must not be empty, got shape {jnp.shape(array)}")


def real(**arrays: ArrayLike) -> None:
    """Every array holds floating-point numbers."""
    for name, array in arrays.items():
        dtype = jnp.result_type(array)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(f"{name} must be real (float32 or so), got {dtype}")


def logits(
    class_mask_: ArrayLike | None, where: ArrayLike | None, **arrays: Any
) -> None:
    """What every loss of logits `[*batch, classes]` asks, masks included."""
    real(**arrays)
    rank(1, **arrays)
    same_shape(**arrays)
    not_empty(**arrays)
    shape = jnp.shape(next(iter(arrays.values())))
    class_mask(class_mask_, shape)
    mask("where", where, shape[:-1])


def batch(shape: tuple[int, ...], **arrays: ArrayLike) -> None:
    """Every array holds one number for each example of a batch of this shape."""
    for name, array in arrays.items():
        if jnp.shape(array) != shape:
            raise ValueError(f"{name} must have batch {shape}, got {jnp.shape(array)}")


def labels(labels: ArrayLike, batch: tuple[int, ...], name: str = "labels") -> None:
    """`labels` holds one integer for each example of a batch of shape `batch`."""
    dtype = jnp.result_type(labels)
    if not jnp.issubdtype(dtype, jnp.integer):
        raise ValueError(f"{name} must be integers (class indices), got {dtype}")
    if jnp.shape(labels) != batch:
        raise ValueError(f"{name} must have shape {batch}, got {jnp.shape(labels)}")
    if not isinstance(labels, jax.core.Tracer):
        column(name, labels)


def column(name: str, values: Any) -> None:
    """Values of the host are numbers, of which JAX loses nothing but precision.

    Without x64, JAX keeps the lower 32 bits of an integer of 64: 2**32 + 2 would be 2.
    """
    kind = values.dtype if hasattr(values, "dtype") else np.asarray(values).dtype
    if jax.dtypes.issubdtype(kind, jax.dtypes.prng_key):
        return
    if kind.kind not in "biufcV":
        raise ValueError(
            f"column {name} must hold numbers, got {kind}; give classes by their index"
        )
    if kind.itemsize < 8 or kind.kind not in "iu" or not np.size(values):
        return
    kept = np.iinfo(jax.dtypes.canonicalize_dtype(kind))
    low, high = np.min(values), np.max(values)
    if low < kept.min or high > kept.max:
        raise ValueError(
            f"column {name} holds integers beyond 32 bits, {low} to {high}: JAX would "
            "cut them off"
        )


def columns(examples: Any) -> None:
    """Every leaf of a tree of host arrays passes `column`."""
    for path, values in jax.tree_util.tree_leaves_with_path(examples):
        column(jax.tree_util.keystr(path), values)


def classes(name: str, labels: Any, count: int, where: ArrayLike | None = None) -> None:
    """Every used label is a class, 0 to `count` - 1, or -1 for none; while concrete.

    Args:
      name: of the argument.
      labels: `[*batch, ...]`; anything but integers is left to `labels`.
      count: how many classes there are.
      where: boolean `[*batch]`: the examples whose labels are used, or None for all.
    """
    found = _concrete(labels)
    if found is None or not np.issubdtype(found.dtype, np.integer):
        return
    wrong = (found < -1) | (found >= count)
    if where is not None:
        if isinstance(where, jax.core.Tracer):
            return
        used = np.asarray(where)
        if used.dtype != bool or used.shape != found.shape[: used.ndim]:
            return  # `mask` refuses it
        wrong &= np.expand_dims(used, tuple(range(used.ndim, found.ndim)))
    if wrong.any():
        raise ValueError(
            f"{name} must be classes from 0 to {count - 1}, or -1 for an example "
            f"without one, got {found[wrong].flat[0]}; exclude examples by where="
        )


def mask(name: str, mask: ArrayLike | None, shape: tuple[int, ...]) -> None:
    """`mask` is None, or boolean of exactly this shape."""
    if mask is None:
        return
    if jnp.result_type(mask) != jnp.bool_:
        raise ValueError(f"{name} must be boolean, got {jnp.result_type(mask)}")
    if jnp.shape(mask) != shape:
        raise ValueError(f"{name} must have shape {shape}, got {jnp.shape(mask)}")


def class_mask(mask: ArrayLike | None, shape: tuple[int, ...]) -> None:
    """`mask` is None, or boolean and broadcastable to logits of this shape."""
    if mask is None:
        return
    if jnp.result_type(mask) != jnp.bool_:
        raise ValueError(f"class_mask must be boolean, got {jnp.result_type(mask)}")
    got = jnp.shape(mask)
    fits = len(got) <= len(shape) and all(
        g in (1, s) for g, s in zip(got[::-1], shape[::-1], strict=False)
    )
    if not fits:
        raise ValueError(f"class_mask {got} does not broadcast to logits {shape}")


def _concrete(value: Any) -> np.ndarray | None:
    """Return the value as an array, or None while it is being traced."""
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(value)):
        return None
    array = np.asarray(value)
    return array if np.issubdtype(array.dtype, np.number) else np.asarray(np.nan)


def _range(
    wanted: str, holds: Callable[[np.ndarray], np.ndarray], axes: int = 0
) -> Range:
    """A number (`axes=0`) or a sequence of numbers (`axes=1`), all in the range."""

    def check(name: str, value: Any) -> None:
        if np.ndim(value) != axes:
            kind = "one number" if axes == 0 else "a sequence of numbers"
            raise ValueError(f"{name} must be {kind}, {wanted}, got {value}")
        array = _concrete(value)
        if array is not None and not np.all(holds(array) & np.isfinite(array)):
            raise ValueError(f"{name} must be {wanted}, got {value}")

    return check


positive = _range("finite and > 0", lambda v: v > 0)
not_negative = _range("finite and >= 0", lambda v: v >= 0)
open_unit = _range("in the open interval (0, 1)", lambda v: (v > 0) & (v < 1))
positives = _range("finite and > 0", lambda v: v > 0, axes=1)
closed_unit = _range("in [0, 1]", lambda v: (v >= 0) & (v <= 1))


def whole(least: int, most: int | None = None) -> Range:
    """A Python integer of at least `least`, and at most `most` if that is given."""

    def check(name: str, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise ValueError(f"{name} must be an integer, got {value!r}")
        if value < least:
            raise ValueError(f"{name} must be >= {least}, got {value}")
        if most is not None and value > most:
            raise ValueError(f"{name} must be <= {most}, got {value}")

    return check


def one_of(*choices: Any) -> Range:
    """One of the listed values."""

    def check(name: str, value: Any) -> None:
        if value not in choices:
            raise ValueError(f"{name} must be one of {choices}, got {value!r}")

    return check
