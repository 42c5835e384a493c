"""From an encoded image to the pixels that a network sees, resized while decoded.

Each function makes a `Decode`: `(bytes, draw) -> uint8 [size, size, 3]`. The draw
decides what is random about it; equal draws give equal crops.
"""

import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxkd import _check
from jaxkd.data.dataset import MASK

Decode = Callable[[bytes, int], np.ndarray]
Box = tuple[float, float, float, float]  # left, upper, right, lower

ATTEMPTS = 10
# How much larger than needed the JPEG decoder's own scaling may leave an image: below
# 2, what is left to the resampling filter is too little for it to be exact.
REDUCING_GAP = 2.0


def uniform(draw: int, place: int) -> float:
    """The number at a place in the stream of a draw, in [0, 1): splitmix64."""
    x = (int(draw) + (place + 1) * 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return ((x ^ (x >> 31)) >> 11) * 2.0**-53


def plain() -> Decode:
    """The image as it is, `[h, w, c]`: for data sets whose images are equally large."""

    def decode(encoded: bytes, draw: int) -> np.ndarray:
        image = np.asarray(_open(encoded))
        return image[..., None] if image.ndim == 2 else image

    return decode


def random_crop(
    size: int,
    *,
    area: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Decode:
    """A part of random place, size and shape, resized: "Inception" crops.

    Its share of the image's area is uniform in `area`, and the logarithm of its width
    over its height uniform between those of `ratio`; whole pixels. After ten parts that
    do not lie within the image, the largest centred one of allowed shape is taken.

    Args:
      size: the side of what comes out, in pixels.
      area: smallest and largest share of the area, in (0, 1].
      ratio: smallest and largest width over height, > 0.

    Raises:
      ValueError: if an argument is out of its range.

    References:
      C. Szegedy et al., Going Deeper with Convolutions, 2015,
      https://arxiv.org/abs/1409.4842, section 6.
    """
    _check.whole(1)("size", size)
    _check.positives("area", area)
    _check.positives("ratio", ratio)
    if not (len(area) == 2 and area[0] <= area[1] <= 1):
        raise ValueError(f"area must be a range within (0, 1], got {area}")
    if not (len(ratio) == 2 and ratio[0] <= ratio[1]):
        raise ValueError(f"ratio must be a range, got {ratio}")

    def decode(encoded: bytes, draw: int) -> np.ndarray:
        image = _open(encoded)
        return _resized(image, random_box(image.size, draw, area, ratio), size)

    return decode


def random_box(
    whole: tuple[int, int],
    draw: int,
    area: tuple[float, float],
    ratio: tuple[float, float],
) -> Box:
    """The box that `random_crop` cuts out of an image of (width, height)."""
    width, height = whole
    low, high = map(math.log, ratio)
    for attempt in range(ATTEMPTS):
        u = [uniform(draw, 4 * attempt + place) for place in range(4)]
        pixels = width * height * (area[0] + u[0] * (area[1] - area[0]))
        shape = math.exp(low + u[1] * (high - low))
        w, h = round(math.sqrt(pixels * shape)), round(math.sqrt(pixels / shape))
        if 0 < w <= width and 0 < h <= height:
            left, upper = int(u[2] * (width - w + 1)), int(u[3] * (height - h + 1))
            return left, upper, left + w, upper + h
    w = min(width, round(height * ratio[1]))
    h = min(height, round(width / ratio[0]))
    return _centred(whole, max(w, 1), max(h, 1))


def centre_crop(size: int, *, resize: int | None = None) -> Decode:
    """The middle of the image, whose shorter side becomes `resize`: how to test.

    Args:
      size: the side of what comes out, in pixels.
      resize: the shorter side before cropping, >= `size`; by default 8/7 of it, as 256
        is of 224.

    Raises:
      ValueError: if an argument is out of its range.
    """
    _check.whole(1)("size", size)
    resize = round(size * 8 / 7) if resize is None else resize
    _check.whole(size)("resize", resize)

    def decode(encoded: bytes, draw: int) -> np.ndarray:
        image = _open(encoded)
        side = min(image.size) * size / resize
        return _resized(image, _centred(image.size, side, side), size)

    return decode


def _centred(whole: tuple[int, int], w: float, h: float) -> Box:
    left, upper = (whole[0] - w) / 2, (whole[1] - h) / 2
    return left, upper, left + w, upper + h


def _open(encoded: bytes) -> Any:
    from PIL import Image  # only who reads encoded images needs it

    return Image.open(io.BytesIO(encoded))


def _resized(image: Any, box: Box, size: int) -> np.ndarray:
    """A box of an image that is not decoded yet, resized to a square of RGB."""
    from PIL import Image

    width, height = image.size
    across, down = box[2] - box[0], box[3] - box[1]
    # A JPEG can be decoded at 1/2, 1/4 or 1/8 for less than the price of the whole.
    needed = [
        math.ceil(REDUCING_GAP * size * whole / part)
        for whole, part in ((width, across), (height, down))
    ]
    image.draft("RGB", tuple(needed))
    x, y = image.size[0] / width, image.size[1] / height
    scaled = (box[0] * x, box[1] * y, box[2] * x, box[3] * y)
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    return np.asarray(rgb.resize((size, size), Image.Resampling.BILINEAR, box=scaled))
