"""The other data of the crossdata study, and its scores."""

import dataclasses
import os

import numpy as np
import pytest

from experiments.studies import crossdata
from jaxkd import data, evaluate
from jaxkd.data import classes
from tests.experiments.studies import small


def test_shares_are_the_overlaps_of_pixels_and_areas():
    np.testing.assert_allclose(
        crossdata.shares(4, 2), [[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]]
    )
    twenty = crossdata.shares(20, 8)
    np.testing.assert_allclose(twenty.sum(1), 1)
    np.testing.assert_allclose(twenty.sum(0), 8 / 20)
    np.testing.assert_allclose(twenty[0, :4], [0.4, 0.4, 0.2, 0])


def test_reduced_mnist_keeps_the_ink_of_the_box_and_its_place():
    images = np.zeros((2, 28, 28, 1), np.uint8)
    images[0, 4:24, 4:24] = 200
    images[1, 4:9, 4:14] = 100  # two of eight rows, four of eight columns
    found = crossdata.reduced(small.dataset(images, [0, 1], "01")).images[..., 0]
    assert found.dtype == np.uint8 and found.shape == (2, 8, 8)
    assert (found[0] == 200).all()
    wanted = np.zeros((8, 8))
    wanted[:2, :4] = 100
    np.testing.assert_array_equal(found[1], wanted)


def test_shifted_images_move_by_one_pixel_in_four_directions():
    image = np.zeros((1, 4, 4, 1), np.uint8)
    image[0, 1, 2] = 9
    moved = crossdata.shifted(small.dataset(image, [3], "0123")).images[..., 0]
    places = {tuple(np.argwhere(one)[0]) for one in moved}
    assert places == {(0, 2), (2, 2), (1, 1), (1, 3)}
    assert (
        crossdata.shifted(small.dataset(image, [3], "0123")).labels.tolist() == [3] * 4
    )


def test_matching_classes_of_cifar100():
    names = [*classes.CIFAR100]
    labels = [names.index(name) for name in ("wolf", "apple", "bus", "lion", "wolf")]
    images = np.zeros((5, 2, 2, 3), np.uint8)
    place = crossdata.matching(small.dataset(images, labels, names), classes.CIFAR10)
    assert [names[i] for i in place.data.labels] == ["wolf", "bus", "lion", "wolf"]
    right = [
        {classes.CIFAR10[k] for k in np.flatnonzero(row)}
        for row in place.right[place.data.labels]
    ]
    assert right == [{"dog"}, {"automobile", "truck"}, {"cat"}, {"dog"}]
    assert place.right.sum() == sum(map(len, crossdata.CIFAR100_AS_CIFAR10.values()))


def test_with_one_right_answer_the_score_is_the_usual_one():
    rng = np.random.default_rng(0)
    logits, others = rng.normal(size=(2, 40, 5)).astype(np.float32)
    labels = rng.integers(0, 5, 40).astype(np.int32)
    found = crossdata.score(logits, labels, np.eye(5, dtype=bool), others)
    assert found["accuracy"] == pytest.approx(evaluate.accuracy(logits, labels))
    assert found["nll"] == pytest.approx(float(evaluate.nll(logits, labels)), rel=1e-5)
    assert found["agreement"] == pytest.approx(evaluate.agreement(logits, others))


def test_with_two_right_answers_their_probabilities_add():
    logits = np.log([[0.2, 0.3, 0.5], [0.2, 0.3, 0.5]])
    right = np.array([[True, True, False], [False, True, True]])
    found = crossdata.score(logits, np.array([0, 1]), right, logits)
    assert found["accuracy"] == 0.5
    assert found["nll"] == pytest.approx(-(np.log(0.5) + np.log(0.8)) / 2)


@pytest.mark.bad_input
def test_crossdata_refuses_a_set_without_a_partner(tmp_path):
    lab = small.lab(tmp_path)
    lab = lab._replace(scale=dataclasses.replace(lab.scale, dataset="mnist"))
    with pytest.raises(SystemExit, match="must be digits or cifar10, got 'mnist'"):
        crossdata.run(lab)


@pytest.mark.skipif(
    not os.environ.get("JAXKD_ARCHIVES"),
    reason="JAXKD_ARCHIVES names no folder of the official archives",
)
def test_cifar100_has_a_hundred_images_of_each_matching_class():
    place = crossdata.matching(data.load("cifar100", "test"), classes.CIFAR10)
    assert len(place.data.images) == 100 * len(crossdata.CIFAR100_AS_CIFAR10)
    names = {place.data.classes[label] for label in place.data.labels}
    assert names == set(crossdata.CIFAR100_AS_CIFAR10)
