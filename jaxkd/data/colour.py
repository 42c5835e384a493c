"""What is done to the colours of one image, and the view that does it at random.

Images are `[height, width, channels]`, 1 or 3 channels, levels 0 to 255 as float32.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxkd import _check
from jaxkd.data.views import View, check_bytes, on_images

Image = Float[Array, "height width channels"]

# ITU-R BT.601, in the 2**-16 of Pillow, with which whole levels give whole sums.
LUMINANCE = (19595, 38470, 7471)


def blend(other: Image, image: Image, factor: Array) -> Image:
    """From `other` (factor 0) over `image` (1) and beyond, cut at 0 and 255."""
    return jnp.clip(other + factor * (image - other), 0, 255)


def grey(image: Image) -> Float[Array, "height width 1"]:
    """Return the luminance; of a grey image the image."""
    if image.shape[-1] == 1:
        return image
    red, green, blue = (image[..., i : i + 1] for i in range(3))
    parts = LUMINANCE[0] * red + LUMINANCE[1] * green + LUMINANCE[2] * blue
    return parts / 2**16


def brighten(image: Image, factor: Array) -> Image:
    """Multiply all levels: 0 is black, 1 the image."""
    return blend(jnp.zeros_like(image), image, factor)


def change_contrast(image: Image, factor: Array) -> Image:
    """Move all levels from the mean luminance: 0 is one grey, 1 the image."""
    return blend(jnp.full_like(image, jnp.mean(grey(image))), image, factor)


def saturate(image: Image, factor: Array) -> Image:
    """Move all levels from the pixel's luminance: 0 is grey, 1 the image."""
    return blend(jnp.broadcast_to(grey(image), image.shape), image, factor)


def turn_hue(image: Image, turns: Array) -> Image:
    """Turn the hue of each pixel, 1 being once round; a grey image has none.

    Saturation and value are kept, as in the hexcone model (HSV).
    """
    if image.shape[-1] == 1:
        return image
    red, green, blue = (image[..., i] for i in range(3))
    value = jnp.max(image, axis=-1)
    chroma = value - jnp.min(image, axis=-1)
    over = jnp.where(chroma > 0, chroma, 1)
    sixths = jnp.where(
        value == red,
        (green - blue) / over,
        jnp.where(value == green, 2 + (blue - red) / over, 4 + (red - green) / over),
    )
    # Each channel is the value less a trapezium in the hue, of the chroma's height.
    place = sixths[..., None] + 6 * turns + jnp.array([5.0, 3.0, 1.0])[None, None]
    place = place - 6 * jnp.floor(place / 6)
    height = jnp.clip(jnp.minimum(place, 4 - place), 0, 1)
    return value[..., None] - chroma[..., None] * height


def colour_jitter(
    *,
    brightness: float = 0.0,
    contrast: float = 0.0,
    saturation: float = 0.0,
    hue: float = 0.0,
) -> View:
    """Change brightness, contrast, saturation and hue of each image, in random order.

    Factors are uniform in [max(0, 1 - x), 1 + x] and the hue is turned by up to `hue`
    of a circle, as in torchvision. Levels are cut at 0 and 255 after each change and
    rounded at the end. Saturation and hue do not change a grey image.

    Args:
      brightness: x of the factor of all levels, >= 0; 0 leaves it out.
      contrast: x of the factor of the differences from the mean luminance.
      saturation: x of the factor of the differences from the pixel's luminance.
      hue: in [0, 0.5].

    References:
      T. Chen, S. Kornblith, M. Norouzi, G. Hinton, A Simple Framework for Contrastive
      Learning of Visual Representations, ICML 2020, https://arxiv.org/abs/2002.05709,
      appendix A, which has 0.8, 0.8, 0.8 and 0.2 times the strength.
    """
    knobs = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
    for name, value in knobs.items():
        _check.not_negative(name, value)
    if not 0 <= hue <= 0.5:
        raise ValueError(f"hue must be in [0, 0.5], got {hue}")
    makes = (brighten, change_contrast, saturate)
    changes: list[tuple[Callable[[Image, Array], Image], float, float]] = [
        (make, max(0.0, 1 - x), 1 + x)
        for make, x in zip(makes, knobs.values(), strict=True)
        if x
    ]
    changes += [(turn_hue, -hue, hue)] if hue else []
    count = len(changes)

    def of_one(key: Array, image: Array) -> Array:
        by_order, by_factor = jax.random.split(key)
        order = jax.random.permutation(by_order, count)
        least, most = (jnp.array([c[i] for c in changes]) for i in (1, 2))
        factors = jax.random.uniform(by_factor, (count,), minval=least, maxval=most)

        def step(image: Image, which: Array) -> tuple[Image, None]:
            new = image
            for place, (make, _, _) in enumerate(changes):
                new = jnp.where(which == place, make(image, factors[place]), new)
            return new, None

        image, _ = jax.lax.scan(step, image.astype(jnp.float32), order)
        return jnp.floor(image + 0.5).astype(jnp.uint8)

    def change(key: Array, images: Array) -> Array:
        check_bytes(images, "colour_jitter")
        if not changes:
            return images
        return jax.vmap(of_one)(jax.random.split(key, len(images)), images)

    return on_images(change, random=count > 0)
