"""Folders of pictures, made of the digits in the package, in many modes and sizes."""

import io

import numpy as np
from PIL import Image

from jaxkd import data

MODES = ["L", "RGB", "RGBA", "LA", "P", "CMYK", "1", "I;16"]
ENDINGS = {"L": "png", "RGB": "jpg", "CMYK": "jpg"}


def picture(pixels, mode, side):
    """A digit of 8x8 pixels as an image of this mode, at least `side` large."""
    grey = Image.fromarray(pixels[..., 0]).resize((side, side + side // 4))
    if mode == "I;16":
        return Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    if mode == "P":
        return grey.convert("RGB").quantize(256)
    if mode in ("RGBA", "LA"):
        return grey.convert(mode[:-1]).convert(mode)
    return grey.convert("RGB").convert(mode) if mode == "CMYK" else grey.convert(mode)


def write(folder, *, classes=("null", "één"), each=20, modes=MODES, side=10):
    """Write `each` images a class, of all modes in turn; names are not all ASCII."""
    digits = data.load("digits", "train")
    for label, name in enumerate(classes):
        (folder / name / "más").mkdir(parents=True)
        for place in range(each):
            mode = modes[place % len(modes)]
            pixels = digits.images[np.flatnonzero(digits.labels == label)[place]]
            below = "más" if place % 5 == 0 else "."
            path = folder / name / below / f"{place:03d}.{ENDINGS.get(mode, 'png')}"
            picture(pixels, mode, side + place % 3).save(path)
    return folder


def encode(image, kind="png"):
    """The bytes of an image's file."""
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def arrays():
    """A data set, as a function of one's own makes it."""
    digits = data.load("digits", "train")
    images, labels = digits.images[:100], digits.labels[:100]
    return data.Dataset.of_images("own", "all", images, labels)
