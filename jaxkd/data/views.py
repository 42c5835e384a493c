"""What a view is, and what the views of `jaxkd.data.augment` share."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

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
        """Return the view of this batch."""
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


def on_images(change: Callable[[Array, Array], Array], *, random: bool) -> View:
    """Make the view that changes the images alone: `change(key, images)`."""

    def apply(key: Array, batch: Batch) -> Batch:
        return {**batch, "image": change(key, batch["image"])}

    return View(apply, random)


def check_floats(images: Array, view: str) -> None:
    """Refuse images that are not floats.

    Raises:
      ValueError: naming the view and the type.
    """
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            f"{view} expects float images, got {images.dtype}: put to_float() before it"
        )


def check_bytes(images: Array, view: str) -> None:
    """Refuse images that are not bytes, or have neither 1 nor 3 channels.

    Raises:
      ValueError: naming the view, and the type or the shape.
    """
    if images.dtype != jnp.uint8:
        raise ValueError(
            f"{view} expects uint8 images, got {images.dtype}: put it before to_float()"
        )
    if images.shape[-1] not in (1, 3):
        raise ValueError(
            f"{view} expects images of 1 or 3 channels, got shape {images.shape}"
        )


def per_image(images: Array, values: Array) -> Array:
    """One value for each image, shaped to act on all its pixels."""
    return jnp.expand_dims(values, tuple(range(1, images.ndim)))
