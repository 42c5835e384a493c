"""The official archives themselves, where JAXKD_ARCHIVES names their folder."""

import gzip
import os
import pathlib

import numpy as np
import pytest

from jaxkd import data
from jaxkd.data import archives, classes, specs

FOLDER = os.environ.get("JAXKD_ARCHIVES")


def find(name):
    """The archives of a data set, or a skip that says what is missing."""
    if not FOLDER:
        pytest.skip("JAXKD_ARCHIVES is not set")
    found = archives.find(specs.SOURCES[name], [pathlib.Path(FOLDER)])
    if found is None:
        pytest.skip(f"no archives of {name} in {FOLDER}")
    return found


def contents(name):
    edition, found = find(name)
    parts = {}
    for item in found:
        parts |= archives.contents(item)
    return edition, parts


@pytest.mark.parametrize("name", specs.SOURCES)
def test_the_archives_verify_and_have_the_official_sizes(name):
    source = specs.SOURCES[name]
    splits = archives.read(source, *find(name))
    for split, count in source.counts.items():
        images, labels = splits[split]
        assert images.shape == (count, *source.shape)
        assert set(labels.tolist()) == set(range(len(source.classes)))
    if name != "mnist":  # the only one whose classes are not equally frequent
        counts = np.bincount(splits["train"][1])
        assert (counts == counts[0]).all()


def test_cifar100s_coarse_classes_are_a_function_of_the_fine_ones():
    edition, parts = contents("cifar100")
    if edition is not specs.CIFAR100.editions[0]:
        pytest.skip("the coarse labels are compared with the binary edition's")
    records = np.frombuffer(b"".join(parts.values()), np.uint8).reshape(-1, 3074)
    of = np.array(classes.CIFAR100_COARSE_OF)
    np.testing.assert_array_equal(of[records[:, 1]], records[:, 0])
    assert len(classes.CIFAR100_COARSE) == 20 and (np.bincount(of) == 5).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", specs.SOURCES)
def test_what_is_loaded_is_what_the_archive_holds(name, tmp_path):
    source = specs.SOURCES[name]
    truth = archives.read(source, *find(name))
    for split, (images, labels) in truth.items():
        loaded = data.load(name, split, archives=FOLDER, data_dir=tmp_path)
        np.testing.assert_array_equal(loaded.images, images)
        np.testing.assert_array_equal(loaded.labels, labels)
        np.testing.assert_array_equal(loaded.index, np.arange(len(labels)))
    held = data.load(name, "validation", data_dir=tmp_path)
    share = source.counts["train"] // 10 // len(source.classes)
    assert (np.bincount(held.labels) == share).all()


def test_mnist_packed_anew_is_still_mnist(tmp_path):
    for item in find("mnist")[1]:
        member = item.archive.members[0]
        content = archives.contents(item)[member]
        (tmp_path / item.archive.file).write_bytes(gzip.compress(content, 1))
    splits = archives.read(specs.MNIST, *archives.find(specs.MNIST, [tmp_path]))
    assert splits["test"][1][:5].tolist() == [7, 2, 1, 0, 4]


def test_mnist_in_the_place_of_fashion_mnist_is_called_mnist(tmp_path):
    for item in find("mnist")[1]:
        content = next(iter(archives.contents(item).values()))
        (tmp_path / item.archive.file).write_bytes(gzip.compress(content, 1))
    found = archives.find(specs.FASHION_MNIST, [tmp_path])
    with pytest.raises(ValueError, match="the bytes of mnist"):
        archives.read(specs.FASHION_MNIST, *found)
