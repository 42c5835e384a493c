"""RandAugment: a few of fourteen operations at random, all at one strength.

Each image goes through all operations that only look at its levels, of which one
result is kept, and through one resampling for all that move pixels. Whole levels are
exact in float32.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxkd import _check
from jaxkd.data import colour
from jaxkd.data.colour import Image
from jaxkd.data.views import View, check_bytes, on_images

LARGEST = 30.0  # the largest magnitude
Matrix = Float[Array, "2 3"]


def keep(image: Image, strength: Array) -> Image:
    """Return the image."""
    return image


def auto_contrast(image: Image, strength: Array) -> Image:
    """Stretch the levels of each channel to 0 and 255."""
    low = jnp.min(image, axis=(0, 1), keepdims=True)
    span = jnp.max(image, axis=(0, 1), keepdims=True) - low
    # A quotient of whole numbers below 2**16, rounded once, never rises to the next.
    stretched = jnp.floor((image - low) * 255 / jnp.where(span > 0, span, 1))
    return jnp.where(span > 0, stretched, image)


def equalize(image: Image, strength: Array) -> Image:
    """Make the levels of each channel equally frequent."""
    levels = image.astype(jnp.int32)
    channels = jnp.arange(image.shape[-1], dtype=jnp.int32)[None, None]
    counts = jnp.zeros((256, image.shape[-1]), jnp.int32).at[levels, channels].add(1)
    total = image.shape[0] * image.shape[1]
    of_last = jnp.take_along_axis(counts, jnp.max(levels, axis=(0, 1))[None], axis=0)
    step = (total - of_last) // 255
    below = jnp.cumsum(counts, axis=0) - counts
    table = jnp.clip((below + step // 2) // jnp.maximum(step, 1), 0, 255)
    equal = table[levels, channels].astype(image.dtype)
    return jnp.where(step[None] > 0, equal, image)


def solarize(image: Image, strength: Array) -> Image:
    """Invert the levels from 256 (1 - strength) on."""
    return jnp.where(image >= 256 * (1 - jnp.abs(strength)), 255 - image, image)


def posterize(image: Image, strength: Array) -> Image:
    """Keep the upper 8 - round(4 strength) bits of each level."""
    size = jnp.exp2(jnp.round(4 * jnp.abs(strength)))
    return jnp.floor(image / size) * size


def _enhance(
    other: Callable[[Image], Array],
) -> Callable[[Image, Array], Image]:
    """Move all levels from another image, by 1 + 0.9 strength, and truncate."""

    def change(image: Image, strength: Array) -> Image:
        from_ = jnp.broadcast_to(jnp.floor(other(image) + 0.5), image.shape)
        # Products that are whole in decimals may come out a rounding error below.
        moved = colour.blend(from_, image, 1 + 0.9 * strength) + 2.0**-10
        return jnp.minimum(jnp.floor(moved), 255)

    return change


def _mean_grey(image: Image) -> Array:
    """Return the mean luminance, whose pixels are whole levels."""
    levels = jnp.floor(colour.grey(image) + 0.5).astype(jnp.int32)
    return jnp.sum(levels).astype(jnp.float32) / levels.size


def smooth(image: Image) -> Image:
    """Average each pixel (weight 5) with its eight neighbours; the border is kept."""
    if min(image.shape[:2]) < 3:
        return image
    height, width, _ = image.shape
    total = 4 * image[1:-1, 1:-1]
    for row in range(3):
        for column in range(3):
            total += image[row : row + height - 2, column : column + width - 2]
    return image.at[1:-1, 1:-1].set(total / 13)


def _affine(rows: Sequence[Sequence[Array | float]]) -> Matrix:
    return jnp.array([[jnp.asarray(x, jnp.float32) for x in row] for row in rows])


def rotate(strength: Array, height: int, width: int) -> Matrix:
    """Turn about the centre by 30 degrees times the strength."""
    angle = strength * (math.pi / 6)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    x, y = width / 2, height / 2
    return _affine(
        [[cos, sin, x - cos * x - sin * y], [-sin, cos, y + sin * x - cos * y]]
    )


def shear_x(strength: Array, height: int, width: int) -> Matrix:
    """Move each row by 0.3 times the strength times its distance from the top."""
    return _affine([[1, 0.3 * strength, 0], [0, 1, 0]])


def shear_y(strength: Array, height: int, width: int) -> Matrix:
    """Move each column by 0.3 times the strength times its distance from the left."""
    return _affine([[1, 0, 0], [0.3 * strength, 1, 0]])


def translate_x(strength: Array, height: int, width: int) -> Matrix:
    """Move by 150/331 of the width times the strength, truncated to whole pixels."""
    return _affine([[1, 0, jnp.trunc(strength * (width * 150 / 331))], [0, 1, 0]])


def translate_y(strength: Array, height: int, width: int) -> Matrix:
    """Move by 150/331 of the height times the strength, truncated to whole pixels."""
    return _affine([[1, 0, 0], [0, 1, jnp.trunc(strength * (height * 150 / 331))]])


LEVELS: dict[str, Callable[[Image, Array], Image]] = {
    "identity": keep,
    "auto_contrast": auto_contrast,
    "equalize": equalize,
    "solarize": solarize,
    "posterize": posterize,
    "brightness": _enhance(jnp.zeros_like),
    "contrast": _enhance(_mean_grey),
    "colour": _enhance(colour.grey),
    "sharpness": _enhance(smooth),
}
MATRICES: dict[str, Callable[[Array, int, int], Matrix]] = {
    "rotate": rotate,
    "shear_x": shear_x,
    "shear_y": shear_y,
    "translate_x": translate_x,
    "translate_y": translate_y,
}
OPERATIONS = (*LEVELS, *MATRICES)


def move(image: Image, matrix: Matrix) -> Image:
    """Take each pixel from where the matrix sends its centre; 0 from outside."""
    height, width, _ = image.shape
    x = jnp.arange(width, dtype=jnp.float32)[None, :] + 0.5
    y = jnp.arange(height, dtype=jnp.float32)[:, None] + 0.5
    column, row = (
        jnp.floor(m[0] * x + m[1] * y + m[2]).astype(jnp.int32) for m in matrix
    )
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    found = image[jnp.where(inside, row, 0), jnp.where(inside, column, 0)]
    return jnp.where(inside[..., None], found, 0)


def rand_augment(
    count: int = 2,
    magnitude: float = 9.0,
    *,
    operations: Sequence[str] = OPERATIONS,
) -> View:
    """Do `count` operations to each image, each drawn uniformly, with repetition.

    With the strength `magnitude` / 30, whose sign is random where there are two
    directions, on bytes, as in torchvision and, operation by operation, Pillow::

        identity, auto_contrast, equalize    the strength does not matter
        solarize                             levels >= 256 (1 - strength) are inverted
        posterize                            8 - round(4 strength) bits are kept
        brightness, contrast, colour, sharpness
                                             factor 1 +- 0.9 strength from black, the
                                             mean grey, the grey and the smooth image
        rotate                               +- 30 degrees strength, about the centre
        shear_x, shear_y                     +- 0.3 strength, from the upper left corner
        translate_x, translate_y             +- 150/331 strength of the side

    Pixels that are moved are taken from the nearest one, and are black where there is
    none. Colour does not change a grey image.

    Args:
      count: operations for each image, >= 0; the authors have 1 to 3.
      magnitude: 0 to 30. At 0 only auto_contrast and equalize change an image.
      operations: the names of those to draw from, of `OPERATIONS`.

    References:
      E. D. Cubuk, B. Zoph, J. Shlens, Q. V. Le, RandAugment: Practical Automated Data
      Augmentation with a Reduced Search Space, 2020, https://arxiv.org/abs/1909.13719,
      section 3. The ranges are torchvision's, transforms.RandAugment.
    """
    _check.whole(0)("count", count)
    if not 0 <= magnitude <= LARGEST:
        raise ValueError(f"magnitude must be in [0, 30], got {magnitude}")
    names = tuple(operations)
    if not names:
        raise ValueError(f"operations must name at least one of {OPERATIONS}")
    for name in names:
        _check.one_of(*OPERATIONS)("operations", name)
    moving = any(name in MATRICES for name in names)

    def once(image: Image, drawn: tuple[Array, Array]) -> tuple[Image, None]:
        which, strength = drawn
        new, matrix = image, _affine([[1, 0, 0], [0, 1, 0]])
        for place, name in enumerate(names):
            chosen = which == place
            if name in MATRICES:
                its = MATRICES[name](strength, *image.shape[:2])
                matrix = jnp.where(chosen, its, matrix)
            else:
                new = jnp.where(chosen, LEVELS[name](image, strength), new)
        return move(new, matrix) if moving else new, None

    def of_one(key: Array, image: Array) -> Array:
        by_operation, by_sign = jax.random.split(key)
        which = jax.random.randint(by_operation, (count,), 0, len(names))
        strength = (
            magnitude / LARGEST * jax.random.rademacher(by_sign, (count,), jnp.float32)
        )
        drawn = (which, strength)
        new, _ = jax.lax.scan(once, image.astype(jnp.float32), drawn)
        return new.astype(jnp.uint8)

    def change(key: Array, images: Array) -> Array:
        check_bytes(images, "rand_augment")
        if count == 0:
            return images
        return jax.vmap(of_one)(jax.random.split(key, len(images)), images)

    return on_images(change, random=count > 0)
