"""Augmentation: keyed pure functions of a batch, each image with its own draw.

A view is made once for each batch and handed to teacher and student alike. The usual
order is `chain(flip(), crop(4), to_float(), normalise(mean, sd), cutout(16))`: moving
bytes is cheaper than moving floats, padding is then black, and what cutout erases is
the mean colour. `resized_crop`, `colour_jitter` and `rand_augment` too come before
`to_float`; `mixup` or `cutmix` comes last.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array

from jaxkd import _check
from jaxkd.data.colour import colour_jitter
from jaxkd.data.mixing import cutmix, mixup
from jaxkd.data.rand_augment import rand_augment
from jaxkd.data.resizing import resized_crop
from jaxkd.data.views import View, chain, check_floats, on_images, per_image

__all__ = [
    "View",
    "chain",
    "colour_jitter",
    "crop",
    "cutmix",
    "cutout",
    "flip",
    "jitter",
    "mixup",
    "normalise",
    "rand_augment",
    "resized_crop",
    "to_float",
]


def to_float() -> View:
    """Bytes 0 to 255 become float32 in [0, 1]; images that are floats already stay.

    Example:
      >>> view = to_float()
      >>> batch = {"image": jnp.full((1, 1, 1, 1), 51, jnp.uint8)}
      >>> round(float(view(jax.random.key(0), batch)["image"][0, 0, 0, 0]), 6)
      0.2
    """

    def change(_: Array, images: Array) -> Array:
        if jnp.issubdtype(images.dtype, jnp.floating):
            return images
        return images.astype(jnp.float32) / 255

    return on_images(change, random=False)


def normalise(mean: ArrayLike, sd: ArrayLike) -> View:
    """(image - mean) / sd in each channel.

    Args:
      mean: of each channel of the training set, in the images' unit, `[channels]`.
      sd: likewise, > 0; `jaxkd.data.channel_statistics` gives both.
    """
    mean, sd = np.asarray(mean, np.float32), np.asarray(sd, np.float32)
    _check.same_shape(mean=mean, sd=sd)
    if mean.ndim != 1 or not np.isfinite(mean).all():
        raise ValueError(f"mean must be finite numbers [channels], got {mean}")
    if not (np.isfinite(sd) & (sd > 0)).all():
        raise ValueError(f"sd must be finite and > 0, got {sd}")

    def change(_: Array, images: Array) -> Array:
        check_floats(images, "normalise")
        if images.shape[-1:] != mean.shape:
            raise ValueError(
                f"mean and sd must have one entry for each channel of images "
                f"{images.shape}, got {len(mean)}"
            )
        # Broadcast by hand: an implicit change of rank is an error in strict numerics.
        shift = jnp.broadcast_to(jnp.asarray(mean, images.dtype), images.shape)
        scale = jnp.broadcast_to(jnp.asarray(sd, images.dtype), images.shape)
        return (images - shift) / scale

    return on_images(change, random=False)


def flip() -> View:
    """Mirrors each image left to right with probability 1/2."""

    def change(key: Array, images: Array) -> Array:
        chosen = jax.random.bernoulli(key, shape=images.shape[:1])
        return jnp.where(per_image(images, chosen), images[:, :, ::-1], images)

    return on_images(change, random=True)


def crop(padding: int, *, mode: str = "constant") -> View:
    """Pad each side, then cut the original size out at a uniform place.

    Args:
      padding: pixels on each side, >= 0; each of the (2 padding + 1)**2 places is
        equally likely.
      mode: what the border is, "constant" (zeros) or "reflect" (the image mirrored at
        its edge pixels; `padding` must then be smaller than the image).
    """
    _check.whole(0)("padding", padding)
    _check.one_of("constant", "reflect")("mode", mode)

    def change(key: Array, images: Array) -> Array:
        n, height, width, channels = images.shape
        if mode == "reflect" and padding >= min(height, width):
            raise ValueError(
                f"padding must be smaller than images {images.shape} to reflect them, "
                f"got {padding}"
            )
        border = ((0, 0), (padding, padding), (padding, padding), (0, 0))
        padded = jnp.pad(images, border, mode=mode)
        corners = jax.random.randint(key, (n, 2), 0, 2 * padding + 1)

        def cut(image: Array, corner: Array) -> Array:
            start = (corner[0], corner[1], jnp.zeros((), corner.dtype))
            return jax.lax.dynamic_slice(image, start, (height, width, channels))

        return jax.vmap(cut)(padded, corners)

    return on_images(change, random=padding > 0)


def jitter(pixels: int) -> View:
    """Shift each image by up to so many pixels in x and y, filling in zeros.

    The augmentation with which Hinton et al. distilled MNIST, there with 2 pixels.

    Args:
      pixels: the largest shift, >= 0; every shift is equally likely.

    References:
      G. Hinton, O. Vinyals, J. Dean, Distilling the Knowledge in a Neural Network,
      2015, https://arxiv.org/abs/1503.02531, section 3.
    """
    _check.whole(0)("pixels", pixels)
    return crop(pixels, mode="constant")


def cutout(size: int) -> View:
    """Erases a square from each image, centred anywhere on it and cut at its border.

    Args:
      size: the square's side in pixels, >= 0; 16 was best for CIFAR-10 and 8 for
        CIFAR-100. Erased pixels become 0, the mean colour after `normalise`.

    References:
      T. DeVries, G. W. Taylor, Improved Regularization of Convolutional Neural Networks
      with Cutout, 2017, https://arxiv.org/abs/1708.04552, section 3.
    """
    _check.whole(0)("size", size)

    def change(key: Array, images: Array) -> Array:
        n, *sides = images.shape[:3]
        erased = jnp.ones((n, *sides), bool)
        for axis, side in enumerate(sides):
            centre = jax.random.randint(jax.random.fold_in(key, axis), (n, 1), 0, side)
            offset = jnp.arange(side)[None, :] - (centre - size // 2)
            inside = (offset >= 0) & (offset < size)
            erased &= jnp.expand_dims(inside, 2 - axis)
        return jnp.where(erased[..., None], jnp.zeros((), images.dtype), images)

    return on_images(change, random=size > 0)
