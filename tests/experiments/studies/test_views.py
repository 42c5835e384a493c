"""The networks of the studies, and their augmentations."""

import dataclasses

import jax
import numpy as np
import pytest

from experiments.studies import _nets, augmentation
from tests.experiments.studies import small


def test_every_ladder_starts_at_the_student_and_ends_linear():
    for name, ladder in _nets.LADDERS.items():
        assert ladder[0] == _nets.STUDENTS[name]
        titles = [_nets.title(spec) for spec in ladder]
        assert titles[-1] == "linear" and len(set(titles)) == len(titles)
        assert any(len(spec.get("widths", "..")) == 1 for spec in ladder)


def test_digits_are_never_mirrored():
    for name in ("digits", "mnist"):
        assert not any("flip" in view for view in augmentation._ON_BYTES[name])


def views(tmp_path, dataset):
    lab = small.lab(tmp_path)
    lab = lab._replace(scale=dataclasses.replace(lab.scale, dataset=dataset))
    return lab, augmentation.views(lab)


@pytest.mark.parametrize("dataset", _nets.STUDENTS)
def test_every_augmentation_is_random_and_keeps_what_networks_take(tmp_path, dataset):
    lab, found = views(tmp_path, dataset)
    batch = jax.eval_shape(
        lambda r: jax.tree.map(lambda a: a[:50], r), lab.task.resident
    )
    for view in found.values():
        seen = jax.eval_shape(view.apply, jax.random.key(0), batch)
        assert view.random
        assert seen["image"].shape == batch["image"].shape
        assert seen["image"].dtype == np.float32


@pytest.mark.slow
@pytest.mark.parametrize("dataset", ["digits", "fashion_mnist"])
def test_every_augmentation_changes_images_and_stays_in_their_range(tmp_path, dataset):
    lab, found = views(tmp_path, dataset)
    batch = jax.tree.map(lambda a: a[:50], lab.task.resident)
    plain = lab.task.view(jax.random.key(0), batch)["image"]
    for view in found.values():
        seen = view(jax.random.key(0), batch)["image"]
        assert np.abs(seen - plain).max() > 0.1
        assert float(seen.min()) >= float(plain.min()) - 1e-5
