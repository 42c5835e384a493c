"""A random part of each image, resized: the usual view for training on ImageNet."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxkd import _check
from jaxkd.data.views import View, on_images

ATTEMPTS = 10  # to find a part that fits, as in torchvision


def resized_crop(
    size: int | tuple[int, int] | None = None,
    *,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> View:
    """Cut a random part out of each image and resize it.

    The part's share of the area is uniform in `scale` and the logarithm of its
    proportions in that of `ratio`; its place is uniform. Of ten such draws the first
    that fits into the image is taken; if none does, the largest central part whose
    proportions are within `ratio`.

    Resizing is linear and, where the part shrinks, averages over what a pixel covers
    (Pillow's and torchvision's "bilinear" with antialiasing). Bytes are rounded.

    Args:
      size: of the result, one side or (height, width), >= 1; None keeps the images'.
      scale: least and largest share of the area, in (0, 1].
      ratio: least and largest width over height, > 0.

    Example:
      >>> view = resized_crop(2, scale=(1.0, 1.0), ratio=(1.0, 1.0))  # only resizes
      >>> image = jnp.array([[0, 4], [8, 12]], jnp.uint8).repeat(2, 0).repeat(2, 1)
      >>> view(jax.random.key(0), {"image": image[None, ..., None]})["image"][0, ..., 0]
      Array([[ 2,  5],
             [ 7, 10]], dtype=uint8)

    References:
      C. Szegedy et al., Going Deeper with Convolutions, CVPR 2015,
      https://arxiv.org/abs/1409.4842, section 6.
    """
    for name, pair, most in (("scale", scale, 1.0), ("ratio", ratio, math.inf)):
        if not 0 < pair[0] <= pair[1] <= most or not math.isfinite(pair[1]):
            limits = "0 < least <= largest" + (" <= 1" if most == 1 else "")
            raise ValueError(f"{name} must be a pair with {limits}, got {pair}")
    fixed = (size, size) if isinstance(size, int) else size
    for side in fixed or ():
        _check.whole(1)("size", side)

    def change(key: Array, images: Array) -> Array:
        n, *sides, _ = images.shape
        starts, lengths = parts(key, n, (sides[0], sides[1]), scale, ratio)
        to = tuple(sides) if fixed is None else fixed
        rows, columns = (
            _weights(starts[:, i], lengths[:, i], of=sides[i], to=to[i]) for i in (0, 1)
        )
        dtype = images.dtype
        images = images.astype(jnp.promote_types(dtype, jnp.float32))
        exact = jax.lax.Precision.HIGHEST
        images = jnp.einsum("byh,bhwc->bywc", rows, images, precision=exact)
        images = jnp.einsum("bxw,bywc->byxc", columns, images, precision=exact)
        if jnp.issubdtype(dtype, jnp.integer):
            images = jnp.floor(images + 0.5)
        return images.astype(dtype)

    return on_images(change, random=scale != (1, 1) or ratio[0] != ratio[1])


def parts(
    key: Array,
    n: int,
    sides: tuple[int, int],
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> tuple[Int[Array, "batch 2"], Int[Array, "batch 2"]]:
    """The first row and column, and height and width, of a part of each of n images."""
    height, width = sides
    by_area, by_ratio, by_place = jax.random.split(key, 3)
    draw = lambda key, least, most: jax.random.uniform(
        key, (n, ATTEMPTS, 1), minval=least, maxval=most
    )
    area = height * width * draw(by_area, *scale)
    root = jnp.exp(draw(by_ratio, *(math.log(r) for r in ratio)) / 2)
    drawn = jnp.round(jnp.sqrt(area) * jnp.concatenate([1 / root, root], axis=-1))
    most = jnp.array(sides, drawn.dtype)[None, None]
    fits = jnp.all((drawn >= 1) & (drawn <= most), axis=-1)
    first = jnp.argmax(fits, axis=1)
    found = jnp.take_along_axis(drawn, first[:, None, None], axis=1)[:, 0]
    within = min(max(width / height, ratio[0]), ratio[1])
    central = (
        min(height, max(1, round(width / within))),
        min(width, max(1, round(height * within))),
    )
    any_fits = jnp.any(fits, axis=1, keepdims=True)
    lengths = jnp.where(any_fits, found, jnp.array(central, drawn.dtype)[None])
    lengths = lengths.astype(jnp.int32)
    free = jnp.array(sides, jnp.int32)[None] - lengths
    # The product may be rounded up to free + 1.
    starts = jax.random.uniform(by_place, (n, 2)) * (free + 1)
    starts = jnp.minimum(starts.astype(jnp.int32), free)
    return jnp.where(any_fits, starts, free // 2), lengths


def _weights(
    start: Int[Array, " batch"], length: Int[Array, " batch"], *, of: int, to: int
) -> Float[Array, "batch to of"]:
    """Return how much each of the old pixels counts in each new one, along one axis."""
    size = length.astype(jnp.float32)[:, None, None]
    step = size / to
    centres = (jnp.arange(to, dtype=jnp.float32) + 0.5)[None, :, None] * step
    place = jnp.arange(of, dtype=jnp.int32)[None, None] - start[:, None, None]
    place = place.astype(jnp.float32) + 0.5
    distance = jnp.abs(place - centres) / jnp.maximum(step, 1)
    within = (place > 0) & (place < size)
    weights = jnp.where(within, jnp.maximum(1 - distance, 0), 0)
    return weights / jnp.sum(weights, axis=-1, keepdims=True)
