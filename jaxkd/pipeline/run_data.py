"""The data of a run: its splits, on the device, and how networks see them."""

import re
from typing import NamedTuple

from jaxkd import data
from jaxkd.data import augment
from jaxkd.data.dataset import balance
from jaxkd.pipeline.data_kinds import Data
from jaxkd.types import Batch


class RunData(NamedTuple):
    """The data of a run.

    Attributes:
      train: what is trained on: the training set without the validation images.
      validation: what choices are made by.
      test: what results are measured on, and nothing else.
      resident: the training images on the device.
      held_out: the validation images on the device.
      view: how networks see images in training.
      plain: how they see them otherwise.
      preprocessing: from an image file to the network; it makes `plain`.
    """

    train: data.Dataset
    validation: data.Dataset
    test: data.Dataset
    resident: Batch
    held_out: Batch
    view: augment.View
    plain: augment.View
    preprocessing: data.Preprocessing

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Of one image."""
        return tuple(self.train.images.shape[1:])

    @property
    def classes(self) -> int:
        """How many there are."""
        return self.train.num_classes


def make(config: Data) -> RunData:
    """Load the data and put it on the device.

    Raises:
      ValueError: and the other errors of `data.load`; if there are too few images.
    """
    train, validation, test, preprocessing = loaded(config)
    if config.train_images:
        try:
            train = data.subset(train, config.train_images, seed=0)
        except ValueError as error:
            raise ValueError(f"data.train_images: {error}") from error
    train = balance(train) if config.class_balanced else train
    plain = preprocessing.view()
    a = config.augment
    first = []
    if a.resized_crop:
        first.append(augment.resized_crop(scale=(a.resized_crop, 1.0)))
    first += [augment.flip()] if a.flip else []
    first += [augment.crop(a.crop)] if a.crop else []
    if strength := a.colour_jitter:
        first.append(
            augment.colour_jitter(
                brightness=strength, contrast=strength, saturation=strength
            )
        )
    first += [augment.rand_augment(2, a.rand_augment)] if a.rand_augment else []
    last = [augment.cutout(a.cutout)] if a.cutout else []
    last += [augment.mixup(a.mixup)] if a.mixup else []
    last += [augment.cutmix(a.cutmix)] if a.cutmix else []
    return RunData(
        train,
        validation,
        test,
        data.on_device(train),
        data.on_device(validation),
        augment.chain(*first, plain, *last),
        plain,
        preprocessing,
    )


Loaded = tuple[data.Dataset, data.Dataset, data.Dataset, data.Preprocessing]


def loaded(config: Data) -> Loaded:
    """Load train, validation, test and preprocessing of a configuration.

    Raises:
      ValueError: and FileNotFoundError, naming the key.
    """
    try:
        splits = config.load()
    except (ValueError, FileNotFoundError) as error:
        if not re.match("[a-z_]+: ", str(error)):
            raise
        missing = isinstance(error, FileNotFoundError)
        kind = FileNotFoundError if missing else ValueError
        raise kind(f"data.{error}") from error
    parts = []
    for part in splits[:3]:
        if not isinstance(part, data.Dataset):
            raise ValueError(
                f"data.size: the {part.examples} images of {part.name} do not fit into "
                "memory, and a run needs them there: make size smaller, or train on "
                "data.Stream in Python"
            )
        parts.append(part)
    train, validation, test = parts
    return train, validation, test, splits.preprocessing
