"""What a configuration says of the views is what training images go through."""

import jax
import numpy as np
import pytest

from jaxkd import train
from jaxkd.data import augment
from jaxkd.pipeline import run_data
from jaxkd.pipeline.data_kinds import Tfds
from jaxkd.pipeline.parts import Augment

VALUES = {
    "flip": True,
    "crop": 1,
    "cutout": 3,
    "mixup": 0.4,
    "cutmix": 1.0,
    "resized_crop": 0.3,
    "colour_jitter": 0.4,
    "rand_augment": 9.0,
}


@pytest.mark.parametrize("name", VALUES)
def test_each_changes_the_training_images_and_no_others(name):
    chosen = Augment(**{name: VALUES[name]})
    made = run_data.make(Tfds(name="digits", train_images=100, augment=chosen))
    assert made.view.random and not made.plain.random
    batch = train.example(made.resident, made.plain, size=32)
    raw = train.example(made.resident, augment.chain(), size=32)
    seen = made.view(jax.random.key(1), raw)
    assert seen["image"].shape == batch["image"].shape
    assert seen["image"].dtype == batch["image"].dtype == np.float32
    assert np.any(seen["image"] != batch["image"])
    assert ("label_other" in seen) == (name in ("mixup", "cutmix"))


def test_the_table_has_every_view():
    assert set(VALUES) == set(Augment.__struct_fields__)
