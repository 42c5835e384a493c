"""Pooling and indexing as JAX writes them, recognised as what runtimes have."""

from collections import Counter
from typing import Any

from jax import lax
from jaxtyping import Array

from jaxkd import jaxpr
from jaxkd.export import fold
from jaxkd.export.channels import value

CUTS = ("slice", "squeeze", "gather", "broadcast_in_dim", "concatenate")


def tile_window(name: str, called: jaxpr.Program) -> tuple[int, int] | None:
    """Return height and width of the tiles, if a call is a maximum over whole tiles.

    `jaxkd.models.max_pool` cuts images into tiles and takes the maximum of slices. It
    is recognised by what it does: a maximum of as many cuts as a tile has places.
    """
    if name != jaxpr.CUSTOM_JVP or len(called.inputs) != 1:
        return None
    tiles, out = called.shape(called.inputs[0]), called.shape(called.outputs[0])
    if len(tiles) != 6 or out != (tiles[0], tiles[1], tiles[3], tiles[5]):
        return None
    steps = Counter(step.name for step in called.steps)
    if steps["max"] != tiles[2] * tiles[4] - 1 or set(steps) - {"max", *CUTS}:
        return None
    return tiles[2], tiles[4]


def slice_of(params: dict, values: list) -> Array | None:
    """Return a gather from known places of one block, as the slice that it is.

    So `jnp`'s indexing looks where the number of images is not known.
    """
    x, places = values
    numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
    if not fold.is_constant(places) or places.ndim != 1:
        return None
    kept = len(sizes) - len(numbers.collapsed_slice_dims)
    if numbers.offset_dims != tuple(range(kept)) or numbers.operand_batching_dims:
        return None
    starts = [0] * len(sizes)
    for axis, place in zip(numbers.start_index_map, places, strict=True):
        starts[axis] = int(place)
    limits = [start + size for start, size in zip(starts, sizes, strict=True)]
    whole = not any(starts) and tuple(limits) == x.shape
    out = x if whole else lax.slice(x, starts, limits)
    shape = [n for i, n in enumerate(sizes) if i not in numbers.collapsed_slice_dims]
    return out if len(shape) == len(sizes) else lax.reshape(out, shape)


def tile_max(tiles: Any, window: tuple[int, int], whole: Array | None) -> Array:
    """Return the same as one pooling of the images that were cut into tiles.

    Args:
      tiles: of images, six axes.
      window: height and width of a tile.
      whole: what was cut into tiles, if it is known.
    """
    images, rows, height, columns, width, channels = tiles.shape
    shape = (images, rows * height, columns * width, channels)
    if whole is None or whole.shape != shape:
        whole = lax.reshape(value(tiles), shape)
    sizes = (1, *window, 1)
    return lax.reduce_window_max_p.bind(
        whole,
        window_dimensions=sizes,
        window_strides=sizes,
        padding=((0, 0),) * 4,
        base_dilation=(1,) * 4,
        window_dilation=(1,) * 4,
    )
