"""Max pooling that is also fast where its gradient is taken."""

import functools
import itertools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxkd import _check


def max_pool(
    x: Float[Array, "batch height width channels"],
    window: Sequence[int],
    strides: Sequence[int] | None = None,
) -> Float[Array, "batch rows columns channels"]:
    """The maximum of each window; what does not fill a window at the edges is left out.

    Equal to `nn.max_pool` with padding "VALID". Where windows do not overlap it is also
    much faster to differentiate: `nn.max_pool`'s gradient looks for each maximum anew,
    by a select-and-scatter. Entries that share the maximum share the gradient evenly
    (`nn.max_pool` gives it to the first); overlapping windows are `nn.max_pool`'s.

    Args:
      x: images.
      window: height and width of the window, positive.
      strides: its steps; None for those of windows side by side.

    Returns:
      The maxima.

    Raises:
      ValueError: if `x` has not four axes, or a window does not fit in it.

    Example:
      >>> x = jnp.arange(9.0).reshape(1, 3, 3, 1)
      >>> max_pool(x, (2, 2)).item()  # of 0, 1, 3, 4
      4.0
    """
    _check.rank(4, 4, x=x)
    window = tuple(window)
    strides = window if strides is None else tuple(strides)
    if any(k > n for k, n in zip(window, x.shape[1:3], strict=True)):
        raise ValueError(f"window {window} does not fit in x {x.shape}")
    if strides != window:
        return nn.max_pool(x, window, strides)
    images, height, width, channels = x.shape
    rows, columns = height // window[0], width // window[1]
    x = x[:, : rows * window[0], : columns * window[1]]
    return _tile_max(x.reshape(images, rows, window[0], columns, window[1], channels))


def _slices(tiles: Array) -> list[Array]:
    """One array for each place in a tile `[n, rows, height, columns, width, c]`."""
    places = itertools.product(range(tiles.shape[2]), range(tiles.shape[4]))
    return [tiles[:, :, i, :, j] for i, j in places]


@jax.custom_jvp
def _tile_max(tiles: Array) -> Array:
    """The maximum of each tile; of slices, which on the CPU is faster than of axes."""
    return functools.reduce(jnp.maximum, _slices(tiles))


@_tile_max.defjvp
def _tile_max_jvp(primals, tangents):
    (tiles,), (change,) = primals, tangents
    largest = _tile_max(tiles)
    sharers = sum((s == largest).astype(tiles.dtype) for s in _slices(tiles))
    over_tile = lambda a: a[:, :, None, :, None]
    moved = jnp.where(tiles == over_tile(largest), change, 0) / over_tile(sharers)
    # Transposed, this sum is a broadcast: the gradient is one pass over the tiles.
    return largest, moved.sum((2, 4))
