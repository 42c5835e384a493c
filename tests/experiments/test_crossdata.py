"""Students on data they never saw: the data, and a small run."""

import numpy as np
import pytest

from experiments import crossdata
from jaxkd import data
from jaxkd.data import classes


def dataset(images, labels, names):
    labels = np.asarray(labels, np.int32)
    place = np.arange(len(labels), dtype=np.int32)
    return data.Dataset.of_images("fake", "test", images, labels, place, tuple(names))


def test_shifted_images_move_by_one_pixel_in_four_directions():
    image = np.zeros((1, 4, 4, 1), np.uint8)
    image[0, 1, 2] = 9
    moved = crossdata.shifted(dataset(image, [3], "0123"))
    places = {tuple(np.argwhere(one)[0]) for one in moved.images[..., 0]}
    assert places == {(0, 2), (2, 2), (1, 1), (1, 3)}
    assert moved.labels.tolist() == [3] * 4


def test_matching_classes_of_cifar100():
    names = [*classes.CIFAR100]
    labels = [names.index(name) for name in ("wolf", "apple", "bus", "lion", "wolf")]
    images = np.zeros((5, 2, 2, 3), np.uint8)
    kept, right = crossdata.matching(dataset(images, labels, names), classes.CIFAR10)
    assert [names[i] for i in kept.labels] == ["wolf", "bus", "lion", "wolf"]
    answers = [{classes.CIFAR10[k] for k in np.flatnonzero(row)} for row in right]
    assert [answers[i] for i in kept.labels] == [
        {"dog"},
        {"automobile", "truck"},
        {"cat"},
        {"dog"},
    ]
    assert right.sum() == sum(map(len, crossdata.CIFAR100_AS_CIFAR10.values()))


@pytest.mark.slow
def test_it_runs_and_shifted_digits_are_harder(tmp_path):
    config = crossdata.Config(
        dataset="digits",
        seeds=2,
        student_images=200,
        teacher_images=1000,
        epochs=3,
        teacher_epochs=3,
        batch_size=20,
        teacher_batch_size=50,
        out=str(tmp_path),
    )
    results = crossdata.main(config)
    home, shifted = results.values()
    assert home["teacher"][0] > 0.8 > shifted["teacher"][0]  # chance is 0.1
    (directory,) = (tmp_path / "crossdata").iterdir()
    rows = (directory / "metrics.jsonl").read_text()
    assert (
        '"accuracy"' not in rows
        and "| digits, shifted, 2,000 images |" in (directory / "report.md").read_text()
    )
