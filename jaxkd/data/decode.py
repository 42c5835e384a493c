"""From an encoded image to the pixels that a network sees, resized while decoded.

Each function makes a `Decode`: `(bytes, draw) -> uint8 [height, width, channels]`. The
draw decides what is random about it; equal draws give equal crops.

Whatever the file holds, the pixels are those that a viewer shows, except that an alpha
channel is dropped, as torchvision and TensorFlow do: colours of a palette are looked
up, 16 bits are scaled to 8, CMYK is converted, EXIF's orientation is applied. Of an
animation it is the first frame. Images of floating-point numbers, and whole numbers
whose range the format leaves open, are refused.
"""

import contextlib
import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxkd import _check
from jaxkd.data.dataset import MASK

Decode = Callable[[bytes, int], np.ndarray]
Box = tuple[float, float, float, float]  # left, upper, right, lower
RESIZE = ("crop", "pad", "stretch")

ATTEMPTS = 10
# How much larger than needed the JPEG decoder's own scaling may leave an image: below
# 2, what is left to the resampling filter is too little for it to be exact.
REDUCING_GAP = 2.0

ORIENTATION = 0x0112  # EXIF's tag; 1 is upright, 5 to 8 exchange width and height
BITS_PER_SAMPLE, PHOTOMETRIC = 258, 262  # TIFF's tags
WHITE_IS_ZERO = 0  # a value of PHOTOMETRIC
PNG_COLOUR, GREY_AND_ALPHA = 25, 4  # where a PNG has its colour type; one of these


def uniform(draw: int, place: int) -> float:
    """Return the number at a place in the stream of a draw, in [0, 1): splitmix64."""
    x = (int(draw) + (place + 1) * 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return ((x ^ (x >> 31)) >> 11) * 2.0**-53


def plain(channels: int | None = None) -> Decode:
    """Return the whole image: for data sets whose images are equally large.

    Args:
      channels: 1 for grey, 3 for colour; by default what the file holds, 1 for a grey
        image and 3 for any other.

    Returns:
      The decoder, whose pixels are uint8 `[height, width, channels]`.

    Raises:
      ValueError: if `channels` is neither 1, 3 nor None.
    """
    if channels not in (None, 1, 3):
        raise ValueError(f"channels must be 1, 3 or None, got {channels}")

    def decode(encoded: bytes, draw: int) -> np.ndarray:
        image = _upright(*_open(encoded))
        if channels is not None:
            image = image.convert("L" if channels == 1 else "RGB")
        pixels = np.asarray(image)
        return pixels[..., None] if pixels.ndim == 2 else pixels

    return decode


def random_crop(
    size: int,
    *,
    area: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Decode:
    """Return a part of random place, size and shape, resized: "Inception" crops.

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
        image, orientation = _open(encoded)
        seen = _size(image, orientation)
        box = random_box(seen, draw, area, ratio)
        return _resized(image, orientation, box, (size, size))

    return decode


def random_box(
    whole: tuple[int, int],
    draw: int,
    area: tuple[float, float],
    ratio: tuple[float, float],
) -> Box:
    """Return the box that `random_crop` cuts out of an image of (width, height)."""
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
    """Resize the shorter side to `resize`, and cut out the central square, for tests.

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
        image, orientation = _open(encoded)
        seen = _size(image, orientation)
        side = min(seen) * size / resize
        return _resized(image, orientation, _centred(seen, side, side), (size, size))

    return decode


def fit(
    size: int | tuple[int, int], *, resize: str = "crop", channels: int = 3
) -> Decode:
    """Return the image at one size, whatever its own: nothing is random.

    Args:
      size: the side in pixels, or (height, width).
      resize: "crop" cuts the largest centred part of this shape out, "pad" makes the
        whole image fit and adds black to both sides, "stretch" changes its shape.
      channels: 1 for grey, 3 for colour.

    Raises:
      ValueError: if an argument is out of its range.
    """
    height, width = (size, size) if isinstance(size, int) else size
    _check.whole(1)("height", height)
    _check.whole(1)("width", width)
    _check.one_of(*RESIZE)("resize", resize)
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 or 3, got {channels}")

    def decode(encoded: bytes, draw: int) -> np.ndarray:
        image, orientation = _open(encoded)
        seen = _size(image, orientation)
        across, down = seen[0] / width, seen[1] / height  # own pixels for each new one
        whole: Box = (0, 0, *seen)
        if resize == "crop":
            side = min(across, down)
            w, h = min(seen[0], width * side), min(seen[1], height * side)
            whole = _centred(seen, w, h)
        inner = (height, width)
        if resize == "pad":
            side = max(across, down)
            inner = (
                max(1, min(height, round(seen[1] / side))),
                max(1, min(width, round(seen[0] / side))),
            )
        pixels = _resized(image, orientation, whole, inner, channels)
        pixels = pixels[..., None] if channels == 1 else pixels
        if inner == (height, width):
            return pixels
        padded = np.zeros((height, width, channels), np.uint8)
        top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
        padded[top : top + inner[0], left : left + inner[1]] = pixels
        return padded

    return decode


def _centred(whole: tuple[int, int], w: float, h: float) -> Box:
    left, upper = (whole[0] - w) / 2, (whole[1] - h) / 2
    return left, upper, left + w, upper + h


def _open(encoded: bytes) -> tuple[Any, int]:
    """Return an image and its EXIF orientation; a JPEG's pixels are not decoded yet."""
    from PIL import Image  # only who reads encoded images needs it

    image: Any = Image.open(io.BytesIO(encoded))
    if image.format not in ("JPEG", "MPO"):
        image.load()  # PNG may have its EXIF at the end; TIFF turns itself
    orientation = 1
    if any("exif" in str(key) or "xmp" in str(key) for key in image.info):
        # EXIF that cannot be parsed (errors of many types) turns nothing.
        with contextlib.suppress(Exception):
            orientation = image.getexif().get(ORIENTATION, 1)
    # Pillow has no mode for grey and alpha of 16 bits, and makes colours of them.
    if image.format == "PNG" and encoded[PNG_COLOUR] == GREY_AND_ALPHA:
        image = image.convert("L")
    return image, orientation if orientation in range(1, 9) else 1


def _size(image: Any, orientation: int) -> tuple[int, int]:
    """(width, height) once the image is upright."""
    width, height = image.size
    return (height, width) if orientation >= 5 else (width, height)


def _upright(image: Any, orientation: int) -> Any:
    """Return the image as it is meant to be seen, with 8 bits a channel."""
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    image = _to_8_bits(image)
    return image.transpose(turns[orientation]) if orientation in turns else image


def _to_8_bits(image: Any) -> Any:
    """Convert an image of any of Pillow's modes to "L" (grey) or "RGB".

    Raises:
      ValueError: for floating-point numbers, and whole numbers of unknown range.
    """
    if image.mode in ("L", "RGB"):
        return image
    if image.mode in ("1", "LA", "La"):
        return image.convert("L")
    if image.mode == "F":
        raise ValueError(
            "the image holds floating-point numbers (mode F), which do not say what is "
            "black and what is white: scale them to 0..255 and save 8 bits"
        )
    if image.mode.startswith("I"):
        return _scale(image)
    if "transparency" in image.info:  # colours of a palette: keep them, drop the alpha
        image = image.convert("RGBA")
    return image.convert("RGB")


def _scale(image: Any) -> Any:
    """Scale whole numbers of more than 8 bits from the range that the file declares."""
    from PIL import Image

    # Pillow scales PGM to 16 bits itself, and calls 12 bits of TIFF "I;16".
    if image.mode == "I" and image.format not in ("PNG", "PPM"):
        raise ValueError(
            f"the image holds whole numbers of 32 bits or with a sign ({image.format}, "
            "mode I), which do not say what is white: scale them to 0..255 and save 8 "
            "bits, or to 0..65535 and save 16"
        )
    tags = getattr(image, "tag_v2", {})
    (bits,) = tags.get(BITS_PER_SAMPLE, (16,))
    white = (1 << bits) - 1
    values = np.asarray(image).astype(np.uint32)
    if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
        values = white - values
    return Image.fromarray(((values * 255 + white // 2) // white).astype(np.uint8))


def _resized(
    image: Any, orientation: int, box: Box, size: tuple[int, int], channels: int = 3
) -> np.ndarray:
    """Return a box of an image, in upright coordinates, resized to (height, width)."""
    from PIL import Image

    width, height = _size(image, orientation)
    across, down = box[2] - box[0], box[3] - box[1]
    # A JPEG can be decoded at 1/2, 1/4 or 1/8 for less than the price of the whole.
    needed = [
        math.ceil(REDUCING_GAP * side * whole / part)
        for side, whole, part in ((size[1], width, across), (size[0], height, down))
    ]
    image.draft("RGB", tuple(needed[::-1] if orientation >= 5 else needed))
    image = _upright(image, orientation)
    x, y = image.size[0] / width, image.size[1] / height
    right, lower = min(box[2] * x, image.size[0]), min(box[3] * y, image.size[1])
    scaled = (box[0] * x, box[1] * y, right, lower)
    mode = "L" if channels == 1 else "RGB"
    image = image.convert(mode) if image.mode != mode else image
    bilinear = Image.Resampling.BILINEAR
    return np.asarray(image.resize((size[1], size[0]), bilinear, box=scaled))
