"""Augmentation: keyed pure functions of a batch, each image with its own draw.

A view is made once for each batch and handed to teacher and student alike. The usual
order is `chain(flip(), crop(4), to_float(), normalise(mean, sd), cutout(16))`: moving
bytes is cheaper than moving floats, padding is then black, and what cutout erases is
the mean colour.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array

from jaxkd import _check
from jaxkd.types import Batch


@dataclasses.dataclass(frozen=True)
class View:
    """A function from (key, batch) to the batch as the networks see it.

    Attributes:
      apply: pure; runs inside `jit`, `scan` and `vmap`.
      random: whether the result depends on the key. Outputs of a teacher that were
        stored once belong to fixed images, so they are refused under a random view.
    """

    apply: Callable[[Array, Batch], Batch]
    random: bool

    def __call__(self, key: Array, batch: Batch) -> Batch:
        """The view of this batch."""
        return self.apply(key, batch)


def chain(*views: View) -> View:
    """One view after another, each with a key of its own; `chain()` changes nothing.

    Args:
      *views: in the order in which they are applied.

    Returns:
      A view that is random if any of them is.
    """

    def apply(key: Array, batch: Batch) -> Batch:
        for place, view in enumerate(views):
            batch = view.apply(jax.random.fold_in(key, place), batch)
        return batch

    return View(apply, any(view.random for view in views))


def _on_images(change: Callable[[Array, Array], Array], *, random: bool) -> View:
    def apply(key: Array, batch: Batch) -> Batch:
        return {**batch, "image": change(key, batch["image"])}

    return View(apply, random)


def _floating(images: Array, view: str) -> None:
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            f"{view} expects float images, got {images.dtype}: put to_float() before it"
        )


def _per_image(images: Array, values: Array) -> Array:
    """One value for each image, shaped to act on all its pixels."""
    return jnp.expand_dims(values, tuple(range(1, images.ndim)))


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

    return _on_images(change, random=False)


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
        _floating(images, "normalise")
        if images.shape[-1:] != mean.shape:
            raise ValueError(
                f"mean and sd must have one entry for each channel of images "
                f"{images.shape}, got shape {mean.shape}"
            )
        # Broadcast by hand: an implicit change of rank is an error in strict numerics.
        shift = jnp.broadcast_to(jnp.asarray(mean, images.dtype), images.shape)
        scale = jnp.broadcast_to(jnp.asarray(sd, images.dtype), images.shape)
        return (images - shift) / scale

    return _on_images(change, random=False)


def flip() -> View:
    """Mirrors each image left to right with probability 1/2."""

    def change(key: Array, images: Array) -> Array:
        chosen = jax.random.bernoulli(key, shape=images.shape[:1])
        return jnp.where(_per_image(images, chosen), images[:, :, ::-1], images)

    return _on_images(change, random=True)


def crop(padding: int, *, mode: str = "constant") -> View:
    """Pads each side, then cuts the original size out at a uniform place.

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

    return _on_images(change, random=padding > 0)


def jitter(pixels: int) -> View:
    """Shifts each image by up to so many pixels in x and y, filling in zeros.

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

    return _on_images(change, random=size > 0)


def mixup(alpha: float) -> View:
    """Blends each image with another of its batch: w image + (1 - w) other.

    "label" stays the image's own; "label_other" is added for the partner's and
    "label_weight", float32 `[batch]`, for w, so that the loss on labels is
    w loss(label) + (1 - w) loss(label_other). Networks see the blend, hence losses
    against the teacher need nothing of it.

    Args:
      alpha: w is drawn for each image from Beta(alpha, alpha), >= 0; 0 leaves the
        images alone, 0.2 to 1 is usual.

    References:
      H. Zhang, M. Cisse, Y. N. Dauphin, D. Lopez-Paz, mixup: Beyond Empirical Risk
      Minimization, 2018, https://arxiv.org/abs/1710.09412, section 2.
    """
    _check.not_negative("alpha", alpha)

    def apply(key: Array, batch: Batch) -> Batch:
        images, labels = batch["image"], batch["label"]
        _floating(images, "mixup")
        if alpha == 0:
            one = jnp.ones(labels.shape, jnp.float32)
            return {**batch, "label_other": labels, "label_weight": one}
        by_weight, by_partner = jax.random.split(key)
        weight = jax.random.beta(by_weight, alpha, alpha, labels.shape, jnp.float32)
        partner = jax.random.permutation(by_partner, len(labels))
        w = _per_image(images, weight).astype(images.dtype)
        blend = w * images + (1 - w) * images[partner]
        other = {"label_other": labels[partner], "label_weight": weight}
        return {**batch, **other, "image": blend}

    return View(apply, alpha > 0)
