"""The data of a run: its splits, on the device, and how networks see them."""

from typing import NamedTuple

import numpy as np

from jaxkd import data
from jaxkd.data import augment
from jaxkd.pipeline.parts import Data
from jaxkd.types import Batch


class World(NamedTuple):
    """The data of a run.

    Attributes:
      train: what is trained on: the training set without the validation images.
      validation: what choices are made by.
      test: what results are measured on, and nothing else.
      resident: the training images on the device.
      held_out: the validation images on the device.
      view: how networks see images in training.
      plain: how they see them otherwise.
    """

    train: data.Dataset
    validation: data.Dataset
    test: data.Dataset
    resident: Batch
    held_out: Batch
    view: augment.View
    plain: augment.View

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Of one image."""
        return tuple(self.train.images.shape[1:])

    @property
    def classes(self) -> int:
        """How many there are."""
        return self.train.num_classes


def make(config: Data) -> World:
    """Loads the data and puts it on the device.

    Raises:
      ValueError: and the other errors of `data.load`; if there are too few images.
    """
    where = {"archives": config.archives or None, "data_dir": config.data_dir or None}
    whole = data.load(config.name, "train_rest", **where)
    validation = data.load(config.name, "validation", **where)
    test = data.load(config.name, "test", **where)
    train = whole
    if config.train_images:
        try:
            train = data.subset(whole, config.train_images, seed=0)
        except ValueError as error:
            raise ValueError(f"data.train_images: {error}") from error
    plain = plain_view(whole)
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
    return World(
        train,
        validation,
        test,
        data.on_device(train),
        data.on_device(validation),
        augment.chain(*first, plain, *last),
        plain,
    )


def plain_view(train_rest: data.Dataset) -> augment.View:
    """Bytes to floats, normalised by the statistics of the training images."""
    mean, sd = data.channel_statistics(train_rest)
    sd = np.where(sd > 0, sd, 1).astype(np.float32)
    return augment.chain(augment.to_float(), augment.normalise(mean, sd))
