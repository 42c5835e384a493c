"""A first configuration for a folder of images: `jaxkd new photos > mine.toml`."""

import os
import pathlib
import re
import statistics

from jaxkd.data import folders
from jaxkd.pipeline import toml

SIDES = (32, 48, 64, 96)
LOOKED_AT = 200  # images by which the side is chosen

TEXT = """\
# Teach, distil and quantize on the images of a folder, and write an int8 file:
#   jaxkd run THIS_FILE --check     refuses what cannot work, before any work
#   jaxkd run THIS_FILE
# jaxkd config THIS_FILE prints all options; {images} images, {classes} classes.
name = {name}

[data]
kind = "folder"
path = {path}
size = {size}
resize = "crop"
augment = {{ flip = true, crop = {crop} }}

[models.teacher]
kind = "cnn"
stages = [{teacher}]
hidden = [128]

[models.student]
kind = "cnn"
stages = [{student}]
hidden = [64]

[[stages]]
kind = "train"
name = "teach"
model = "teacher"
epochs = {epochs}
batch_size = {batch}
optimizer = {{ rate = 1e-3 }}
schedule = {{ kind = "cosine" }}
take = "best"

[[stages]]
kind = "distill"
epochs = {epochs}
batch_size = {batch}
optimizer = {{ rate = 1e-3 }}
schedule = {{ kind = "cosine" }}
take = "best"
losses = {{ ce = {{ weight = 0.1 }}, kd = {{ weight = 0.9 }} }}

[[stages]]
kind = "quantize"
teacher = "teacher"
epochs = {tuned}
batch_size = {batch}
optimizer = {{ rate = 1e-4 }}
losses = {{ ce = {{ weight = 0.1 }}, kd = {{ weight = 0.9 }} }}

[[stages]]
kind = "export"
formats = ["tflite"]
int8 = true
"""


def for_folder(path: str, *, size: int | None = None) -> str:
    """Return the text of a configuration for a folder of class folders.

    Batches, epochs and networks follow the number of images and their size; all of it
    is a beginning, to be changed.

    Args:
      path: of the folder; it stays as it is given.
      size: a side in pixels; by default what the images have, at most 96.

    Raises:
      FileNotFoundError: if there is no folder.
      ValueError: naming what is out of place in it.
    """
    if size is not None and not 8 <= size <= 512:
        raise ValueError(f"--size: must be 8 to 512 pixels, got {size}")
    root = pathlib.Path(path).expanduser()
    examples, classes = folders.find(root, test=0.1, validation=0.1)
    trained = sum(e.split == "train" for e in examples)
    if not trained:
        raise ValueError(f"path: {root} has no training images, of {len(examples)}")
    side = size or _side([str(root / e.name) for e in examples])
    batch = max(1, min(64, trained // 4))
    steps = max(1, trained // batch)
    epochs = max(10, min(60, round(1500 / steps)))
    stages = max(2, min(4, (side // 4).bit_length() - 1))
    name = re.sub(r"[^A-Za-z0-9_.+-]+", "-", root.resolve().name).strip("-.+_")[:60]
    return TEXT.format(
        images=len(examples),
        classes=len(classes),
        name=toml._text(name or "mine"),
        path=toml._text(os.fspath(path)),
        size=side,
        crop=max(1, side // 12),
        teacher=_widths(32, stages),
        student=_widths(8, stages),
        epochs=epochs,
        tuned=max(2, epochs // 5),
        batch=batch,
    )


def _widths(first: int, stages: int) -> str:
    """Each stage has half the side of the one before, and twice the channels."""
    return ", ".join(f"[{first * 2**stage}]" for stage in range(stages))


def _side(paths: list[str]) -> int:
    """Return the largest usual side that most images have."""
    from PIL import Image

    found = []
    for path in paths[:: max(1, len(paths) // LOOKED_AT)]:
        try:
            with Image.open(path) as image:
                found.append(min(image.size))
        except Exception:  # pillow has many; the run lists them all
            continue
    median = statistics.median(found) if found else SIDES[-1]
    return max((side for side in SIDES if side <= median), default=SIDES[0])
