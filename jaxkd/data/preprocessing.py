"""How an image file becomes what a network sees: it travels with the network."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxkd.data import augment, decode
from jaxkd.data.dataset import Dataset, channel_statistics

# Of the training images of ImageNet, in units of [0, 1], as torchvision has them.
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
Numbers = str | Sequence[float]


class Preprocessing(NamedTuple):
    """What happens to an image before the network.

    A file is decoded, brought to `size` by `resize`, its bytes 0 to 255 are mapped to
    `range`, and each channel becomes (x - mean) / deviation.

    Attributes:
      size: (height, width) in pixels.
      channels: 1 for grey, 3 for colour.
      resize: "crop", "pad" or "stretch", as for `decode.fit`.
      range: what the bytes 0 and 255 become; None if the images are floats already,
        which no image file gives.
      mean: one number a channel, in units of `range`.
      deviation: likewise, > 0.
      classes: the classes' names, in the order of the logits.
      test: the share of a folder that was kept for tests, if it has no test folder.
      validation: likewise, for validation.
    """

    size: tuple[int, int]
    channels: int
    resize: str
    range: tuple[float, float] | None
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    classes: tuple[str, ...]
    test: float = 0.1
    validation: float = 0.1

    def view(self) -> augment.View:
        """The view from uint8 images (floats if `range` is None) to the network's."""
        low, high = self.range or (0.0, 1.0)
        mean = (np.array(self.mean) - low) / (high - low)
        deviation = np.array(self.deviation) / (high - low)
        return augment.chain(augment.to_float(), augment.normalise(mean, deviation))

    def decode(self, encoded: bytes) -> np.ndarray:
        """Return the content of an image file as uint8 `[height, width, channels]`.

        Raises:
          ValueError: if the network was trained on floats, or the file is no image.
        """
        if self.range is None:
            raise ValueError(
                "the network was trained on arrays of floats, and no image file says "
                "how to make them: call export.load(FILE) with arrays of your own"
            )
        whole = decode.fit(self.size, resize=self.resize, channels=self.channels)
        try:
            return whole(encoded, 0)
        except Exception as error:  # pillow has many, SyntaxError among them
            raise ValueError(reason(error)) from error

    def to_json(self) -> dict[str, Any]:
        """Return the fields, of types that JSON keeps."""
        listed = lambda v: list(v) if isinstance(v, tuple) else v
        return {name: listed(value) for name, value in self._asdict().items()}


def from_json(found: Mapping[str, Any]) -> Preprocessing:
    """Read what `Preprocessing.to_json` gave."""
    tupled = lambda v: tuple(v) if isinstance(v, list) else v
    fields = Preprocessing._fields
    known: dict[str, Any] = {k: tupled(v) for k, v in found.items() if k in fields}
    return Preprocessing(**known)


def of(
    train: Dataset,
    *,
    resize: str = "stretch",
    mean: Numbers = "data",
    deviation: Numbers = "same",
    test: float = 0.1,
    validation: float = 0.1,
) -> Preprocessing:
    """Return the preprocessing of training images that are decoded already.

    Args:
      train: whose images tell size and channels, and "data" the mean and deviation.
      resize: how they were brought to their size.
      mean: "data", measured on `train`; "imagenet"; or one number a channel.
      deviation: likewise; "same" chooses as `mean` does.
      test: the share that was kept for tests.
      validation: likewise, for validation.

    Raises:
      ValueError: if mean or deviation do not fit the channels.
    """
    height, width, channels = train.images.shape[1:]
    means, deviations = normalisation(train, mean, deviation)
    floats = np.issubdtype(train.images.dtype, np.floating)
    return Preprocessing(
        (height, width),
        channels,
        resize,
        None if floats else (0.0, 1.0),
        means,
        deviations,
        tuple(train.classes),
        test,
        validation,
    )


def normalisation(
    train: Dataset, mean: Numbers, deviation: Numbers
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each channel, measured where "data" asks for it.

    Raises:
      ValueError: naming the argument, if it does not fit the channels.
    """
    channels = train.images.shape[-1]
    if deviation == "same":
        if not isinstance(mean, str):
            raise ValueError("deviation: must be given as numbers where mean is")
        deviation = mean
    asked = [v for v in (mean, deviation) if isinstance(v, str)]
    measured = channel_statistics(train) if "data" in asked else ((), ())
    found = []
    for place, (name, given) in enumerate((("mean", mean), ("deviation", deviation))):
        if given == "data":
            values = np.asarray(measured[place])
            if name == "deviation":
                values = np.where(values > 0, values, 1)  # a channel of one value
        elif isinstance(given, str):
            if given != "imagenet":
                raise ValueError(
                    f'{name}: must be "data", "imagenet" or numbers, got {given!r}'
                )
            values = np.array(IMAGENET[place])
        else:
            values = np.array(given, float)
        if values.shape != (channels,) or not np.isfinite(values).all():
            raise ValueError(
                f"{name}: must have {channels} finite numbers, one a channel of the "
                f"images, got {given if isinstance(given, str) else list(given)}"
            )
        if name == "deviation" and not (values > 0).all():
            raise ValueError(f"deviation: must be > 0, got {list(given)}")
        found.append(tuple(values.astype(np.float32).tolist()))
    return found[0], found[1]


def reason(error: Exception) -> str:
    """Why an image cannot be read, in a line, without the address of a buffer."""
    text = " ".join(str(error).split()) or type(error).__name__
    return "it is no image that Pillow knows" if "cannot identify" in text else text
