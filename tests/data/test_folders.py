"""Folders of pictures become splits, or an error that names the file."""

import os
import pathlib
import re
import shutil
import unicodedata

import numpy as np
import pytest
from PIL import Image

from jaxkd import data
from jaxkd.data import decode, folders, images
from tests import pictures


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return pictures.write(tmp_path_factory.mktemp("p") / "photos", each=30)


@pytest.fixture
def copy(photos, tmp_path):
    return pathlib.Path(shutil.copytree(photos, tmp_path / "photos"))


def load(path, where, **more):
    options = {"size": 8, "test": 0.2, "validation": 0.2, "data_dir": where} | more
    return data.folder(path, **options)


def fingerprints(found):
    return [data.fingerprint(part) for part in found[:3]]


def test_every_image_is_in_one_split_under_its_class(photos, tmp_path):
    found = load(photos, tmp_path)
    parts = found[:3]
    assert sum(map(len, parts)) == 60
    indices = np.concatenate([part.index for part in parts])
    assert sorted(indices.tolist()) == list(range(60))
    assert found.train.classes == ("null", "één") == found.preprocessing.classes
    examples, _ = folders.find(photos, test=0.2, validation=0.2)
    whole = decode.fit(8)
    for part in parts:
        for image, label, index in zip(
            part.images, part.labels, part.index, strict=True
        ):
            name = examples[index].name
            path = photos / name
            assert name.split("/")[0] == part.classes[label]
            np.testing.assert_array_equal(image, whole(path.read_bytes(), 0))


def test_all_modes_show_the_same_picture(tmp_path):
    """What is in the file is what is seen: 16 bits, palettes, CMYK, alpha."""
    pixels = data.load("digits", "train").images[0]
    for mode in ["RGB", "RGBA", "LA", "P", "I;16"]:
        path = tmp_path / "one.png"
        pictures.picture(pixels, mode, 16).save(path)
        seen = decode.fit(16, channels=1)(path.read_bytes(), 0)
        pictures.picture(pixels, "L", 16).save(path)
        wanted = decode.fit(16, channels=1)(path.read_bytes(), 0)
        limit = 3 if mode == "P" else 1  # a palette has its own nearest colours
        assert np.abs(seen.astype(int) - wanted).max() <= limit, mode


def test_an_image_stays_in_its_split_when_others_are_added(copy, tmp_path):
    split = lambda: {
        e.name: e.split for e in folders.find(copy, test=0.3, validation=0.2)[0]
    }
    before = split()
    pictures.write(copy, classes=("drei", "vier"), each=10)
    after = split()
    assert before.items() < after.items()


def test_names_do_not_depend_on_how_a_system_writes_accents(copy):
    decomposed = copy / unicodedata.normalize("NFD", "één")
    before = folders.find(copy, test=0.3, validation=0.2)
    (copy / "één").rename(decomposed)
    after = folders.find(copy, test=0.3, validation=0.2)
    assert [e[:3] for e in before[0]] == [e[:3] for e in after[0]]
    assert before[1] == after[1]


def test_folders_of_splits_are_the_splits(photos, tmp_path):
    root = tmp_path / "split"
    shutil.copytree(photos, root / "train")
    shutil.copytree(photos, root / "Test")
    found = load(root, tmp_path / "cache")
    assert len(found.test) == 60
    assert len(found.train) + len(found.validation) == 60
    shutil.copytree(photos, root / "val")
    found = load(root, tmp_path / "cache")
    assert [len(part) for part in found[:3]] == [60, 60, 60]


def test_the_second_start_decodes_nothing_and_a_change_decodes_again(
    copy, tmp_path, monkeypatch
):
    first = load(copy, tmp_path / "cache")
    before, calls = fingerprints(first), []
    original = images.decode_all
    monkeypatch.setattr(
        images, "decode_all", lambda *a: calls.append(1) or original(*a)
    )
    second = load(copy, tmp_path / "cache")
    assert not calls
    for one, other in zip(first[:3], second[:3], strict=True):
        np.testing.assert_array_equal(one.images, other.images)
    assert first.preprocessing == second.preprocessing
    path = next((copy / "null").glob("*.png"))
    Image.new("RGB", (9, 9), "red").save(path)
    os.utime(path, (1, 1))
    third = load(copy, tmp_path / "cache")
    assert calls
    assert fingerprints(third) != before


def test_what_cannot_be_read_is_listed_together_or_skipped(copy, tmp_path):
    jpeg = next((copy / "null").glob("*.jpg"))
    jpeg.write_bytes(jpeg.read_bytes()[:200])
    (copy / "één" / "notes.txt").write_text("not an image")
    (copy / "één" / "empty.png").touch()
    Image.fromarray(np.ones((4, 4), np.float32)).save(copy / "één" / "float.tif")
    with pytest.raises(ValueError) as found:
        load(copy, tmp_path / "cache")
    text = str(found.value)
    assert "4 of 63 images" in text and "skip_unreadable" in text
    for name in (jpeg.name, "notes.txt", "empty.png", "float.tif"):
        assert re.search(rf"{name}: \w+", text), name
    for _ in range(2):  # the second time from the cache
        with pytest.warns(UserWarning, match=r"4 of 63 (.|\n)*notes.txt"):
            kept = load(copy, tmp_path / "cache", skip_unreadable=True)
        assert sum(map(len, kept[:3])) == 59
    with pytest.raises(ValueError, match="4 of 63"):
        load(copy, tmp_path / "cache")


def test_what_does_not_fit_is_checked_once_and_read_in_a_stream(
    copy, tmp_path, monkeypatch
):
    resident = load(copy, tmp_path / "cache")
    monkeypatch.setattr(images, "memory", lambda: 1000)
    streamed = load(copy, tmp_path / "cache")
    assert streamed.preprocessing == resident.preprocessing
    positions = np.arange(len(resident.train))
    batch = streamed.train.read(positions, np.zeros(len(positions), np.uint64))
    np.testing.assert_array_equal(batch["image"], resident.train.images)
    np.testing.assert_array_equal(batch["label"], resident.train.labels)
    monkeypatch.setattr(images, "decode_all", lambda *a: pytest.fail("again"))
    load(copy, tmp_path / "cache")
    batches = data.Stream(streamed.train, 4)
    assert batches.steps == len(resident.train) // 4


def beside(folder):
    (folder / "stray.png").touch()
    return "stray.png lies beside the class folders"


def empty(folder):
    (folder / "nothing").mkdir()
    return "nothing has no images"


def one_class(folder):
    shutil.rmtree(folder / "null")
    return "two classes or more, has only 'één'"


def mixed(folder):
    (folder / "train").mkdir()
    return "null lies beside train"


def no_train(folder):
    (folder / "x").mkdir()
    for name in ("null", "één"):
        shutil.move(folder / name, folder / "x" / name)
    (folder / "x").rename(folder / "test")
    return "must have train"


def unknown(folder):
    for name in ("null", "één"):
        shutil.copytree(folder / name, folder / "train" / name)
        shutil.move(folder / name, folder / "test" / name)
    (folder / "test" / "nul").mkdir()
    shutil.copy(folder / "train/null/001.jpg", folder / "test" / "nul")
    return "nul is no known class.*did you mean null"


def gone(folder):
    shutil.rmtree(folder)
    return "photos does not exist"


CASES = [beside, empty, one_class, mixed, no_train, unknown, gone]


@pytest.mark.parametrize("damage", CASES, ids=lambda f: f.__name__)
def test_what_is_out_of_place_is_named(copy, tmp_path, damage):
    message = damage(copy)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load(copy, tmp_path / "cache")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"test": 0.0}, "test: must be a share"),
        ({"test": 1e-9}, "test: leaves no images for test, of 60"),
        ({"test": 0.6, "validation": 0.4}, "no training image|leaves no images"),
        ({"size": 0}, "height must be"),
        ({"resize": "zoom"}, "resize must be one of"),
        ({"mean": "imagenett"}, "mean: must be"),
        ({"mean": (0.5, 0.5, 0.5)}, "deviation: must be given"),
        ({"mean": "imagenet", "channels": 1}, "1 finite numbers"),
        ({"deviation": (0.0, 1.0, 1.0)}, "deviation: must be > 0"),
    ],
)
def test_options_that_cannot_work_are_refused(photos, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        load(photos, tmp_path, **options)


def test_hidden_files_and_links_in_a_circle_are_no_images(copy, tmp_path):
    (copy / ".DS_Store").touch()
    (copy / "null" / "Thumbs.db").touch()
    (copy / "null" / "again").symlink_to(copy / "null")
    assert sum(map(len, load(copy, tmp_path / "cache")[:3])) == 60
