"""Views that mix each image with another of its batch: mixup and CutMix.

A mixed batch has two labels. "label" stays the image's own; "label_other" is added for
its partner's and "label_weight", float32 `[batch]`, for the share w of its own, so that
the loss on labels is w loss(label) + (1 - w) loss(label_other). Networks see the mixed
image, so losses against the teacher need no labels.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxkd import _check
from jaxkd.data.views import View, check_floats, per_image
from jaxkd.types import Batch


def mixup(alpha: float) -> View:
    """Blend each image with another of its batch: w image + (1 - w) other.

    Adds "label_other", and "label_weight" for w: see `jaxkd.data.mixing`.

    Args:
      alpha: w is drawn for each image from Beta(alpha, alpha), >= 0; 0 leaves the
        images alone, 0.2 to 1 is usual.

    References:
      H. Zhang, M. Cisse, Y. N. Dauphin, D. Lopez-Paz, mixup: Beyond Empirical Risk
      Minimization, 2018, https://arxiv.org/abs/1710.09412, section 2.
    """
    _check.not_negative("alpha", alpha)

    def apply(key: Array, batch: Batch) -> Batch:
        images = batch["image"]
        check_floats(images, "mixup")
        if alpha == 0:
            return _unmixed(batch, "mixup")
        weight, partner = _draw(key, alpha, len(images))
        w = per_image(images, weight).astype(images.dtype)
        blend = w * images + (1 - w) * images[partner]
        return _mixed(batch, "mixup", blend, weight, partner)

    return View(apply, alpha > 0)


def cutmix(alpha: float) -> View:
    """Paste a rectangle of another image of the batch over each image.

    With w drawn from Beta(alpha, alpha), the rectangle has the image's proportions and
    1 - w of its area; its centre is anywhere on the image, and it is cut at the border.
    Adds "label_other", and "label_weight" for the share of pixels that are the image's
    own: see `jaxkd.data.mixing`. Each image has a rectangle and a w of its own; the
    authors' program has one for the whole batch.

    Args:
      alpha: >= 0; 0 leaves the images alone, the authors have 1.

    References:
      S. Yun, D. Han, S. J. Oh, S. Chun, J. Choe, Y. Yoo, CutMix: Regularization
      Strategy to Train Strong Classifiers with Localizable Features, ICCV 2019,
      https://arxiv.org/abs/1905.04899, section 3.1.
    """
    _check.not_negative("alpha", alpha)

    def apply(key: Array, batch: Batch) -> Batch:
        images = batch["image"]
        if alpha == 0:
            return _unmixed(batch, "cutmix")
        by_mix, by_place = jax.random.split(key)
        drawn, partner = _draw(by_mix, alpha, len(images))
        pasted = _rectangles(by_place, jnp.sqrt(1 - drawn), images.shape[1:3])
        cut = jnp.where(pasted[..., None], images[partner], images)
        weight = 1 - jnp.mean(pasted, axis=(1, 2), dtype=jnp.float32)
        return _mixed(batch, "cutmix", cut, weight, partner)

    return View(apply, alpha > 0)


def _rectangles(
    key: Array, share: Float[Array, " batch"], sides: tuple[int, ...]
) -> Bool[Array, "batch height width"]:
    """Rectangles of this share of each side, centred anywhere, cut at the border."""
    inside = jnp.ones((len(share), *sides), bool)
    for axis, side in enumerate(sides):
        key_axis = jax.random.fold_in(key, axis)
        centre = jax.random.randint(key_axis, (len(share), 1), 0, side)
        # The authors truncate the length, and half of it, to whole pixels.
        half = (share * side).astype(jnp.int32)[:, None] // 2
        offset = jnp.arange(side)[None, :] - centre
        inside &= jnp.expand_dims((offset >= -half) & (offset < half), 2 - axis)
    return inside


def _draw(
    key: Array, alpha: float, n: int
) -> tuple[Float[Array, " batch"], Int[Array, " batch"]]:
    """Return a weight and a partner for each of n images."""
    by_weight, by_partner = jax.random.split(key)
    weight = jax.random.beta(by_weight, alpha, alpha, (n,), jnp.float32)
    return weight, jax.random.permutation(by_partner, n)


def _mixed(
    batch: Batch, view: str, images: Array, weight: Array, partner: Array
) -> Batch:
    """Return the batch with these images and the labels of both.

    Raises:
      ValueError: if the batch is mixed already: its images would have four labels.
    """
    if "label_other" in batch:
        raise ValueError(
            f"{view} expects images that are not mixed yet, but the batch has "
            '"label_other": use one view of mixup and cutmix'
        )
    other = {"label_other": batch["label"][partner], "label_weight": weight}
    return {**batch, **other, "image": images}


def _unmixed(batch: Batch, view: str) -> Batch:
    """Return the batch with the labels of an image that is wholly its own."""
    n = len(batch["label"])
    return _mixed(batch, view, batch["image"], jnp.ones(n, jnp.float32), jnp.arange(n))
