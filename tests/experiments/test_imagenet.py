"""ImageNet's pair end to end: on encoded records, across a pause, and with fakes."""

import dataclasses
import json

import numpy as np
import pytest

from experiments import imagenet
from experiments.bench import fake_images as fake
from jaxkd import checkpoint
from jaxkd.models.net import from_linen
from tests import toys

TINY = imagenet.Config(
    image_size=32,
    batch_size=4,
    epochs=1,
    learning_rate=0.01,
    workers=2,
    fake_images=8,
    fake_classes=6,
)


@pytest.fixture
def small(monkeypatch):
    """Networks that are compiled at once, with batch statistics and dropout."""
    widths = {"resnet34": 9, "resnet18": 6}
    network = lambda name, classes: from_linen(toys.Toy(widths[name], classes))
    monkeypatch.setattr(imagenet, "network", network)


@pytest.fixture(scope="module")
def encoded(tmp_path_factory):
    """A prepared data set of 60 + 6 small JPEGs, as TFDS prepares ImageNet."""
    root = tmp_path_factory.mktemp("data")
    fake.prepare(root, {"train": 60, "validation": 6}, classes=6, side=48)
    return root


def only(folder):
    (found,) = (folder / "imagenet").iterdir()
    return found


def rows(directory):
    return [*map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())]


def test_a_teacher_is_trained_then_teaches_and_a_run_resumes(
    small, encoded, tmp_path, capsys
):
    config = dataclasses.replace(
        TINY, data_dir=str(encoded), batch_size=16, save_every=2
    )
    of = lambda where, **what: dataclasses.replace(
        config, out=str(tmp_path / where), **what
    )
    imagenet.main(of("teacher", method="teacher"))
    teacher_run = str(only(tmp_path / "teacher"))
    dkd = {"method": "dkd", "teacher_run": teacher_run, "epochs": 2}
    result = imagenet.main(of("whole", **dkd))
    whole = only(tmp_path / "whole")
    assert [row["epoch"] for row in rows(whole)] == [1, 2]
    assert set(rows(whole)[1]) >= {"loss/ce", "loss/dkd", "accuracy", "nll", "waited"}
    assert "resnet34-resnet18, dkd: accuracy" in capsys.readouterr().out
    # 60 // 16 = 3 steps an epoch; a run that was killed has an earlier checkpoint.
    checkpoint.read(whole / "checkpoints" / "000006")
    last = whole / "checkpoints" / "000006"
    last.rename(tmp_path / "elsewhere")
    again = imagenet.main(of("whole", **dkd, resume=str(whole)))
    assert again["loss"] == result["loss"] and again["accuracy"] == result["accuracy"]
    with pytest.raises(SystemExit, match='method was "dkd", is "kd"'):
        imagenet.main(of("whole", **{**dkd, "method": "kd"}, resume=str(whole)))


def test_held_out_images_are_not_trained_on(encoded):
    config = dataclasses.replace(TINY, data_dir=str(encoded), evaluate_on="held_out")
    train, test = imagenet.streams(config, 4, None)
    assert (train.source.examples, test.source.examples) == (59, 1)
    assert train.source.record(0).endswith("record 1")
    assert test.source.record(0).endswith("record 0")


def test_fake_images_are_the_same_every_time():
    source = fake.source(100, 8, classes=7)
    found = source.read(np.array([3, 99, 3]), np.zeros(3, np.uint64))
    assert found["image"].shape == (3, 8, 8, 3) and found["image"].dtype == np.uint8
    np.testing.assert_array_equal(found["image"][0], found["image"][2])
    assert (found["image"][0] != found["image"][1]).any()
    assert found["label"].tolist() == [3, 1, 3]
    sizes = [len(fake.jpeg(place, 500, 375)) for place in range(3)]
    assert 70_000 < np.mean(sizes) < 140_000  # ImageNet's mean is about 110 kB


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"fake": True, "batch_size": 9}, "batch_size must be 1 to the 8 examples"),
        ({"fake": False, "data_dir": "/nonexistent"}, "imagenet2012 is not prepared"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(
    small, tmp_path, monkeypatch, wrong, message
):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "no-such-folder"))
    config = dataclasses.replace(TINY, method="none", out=str(tmp_path), **wrong)
    with pytest.raises(SystemExit) as error:
        imagenet.main(config)
    assert message in str(error.value) and not any(tmp_path.iterdir())


@pytest.mark.bad_input
def test_a_teacher_has_to_come_from_somewhere(small, tmp_path):
    net = imagenet.network("resnet34", 6)
    with pytest.raises(SystemExit, match="--teacher-run"):
        imagenet.teacher_variables(TINY, net)
    config = dataclasses.replace(TINY, teacher_run=str(tmp_path))
    with pytest.raises(SystemExit, match="there is no whole checkpoint"):
        imagenet.teacher_variables(config, net)


@pytest.mark.slow
def test_a_pair_runs_with_fakes(tmp_path, capsys):
    config = dataclasses.replace(TINY, fake=True, out=str(tmp_path), method="patient")
    result = imagenet.main(config)
    assert np.isfinite(result["loss"]) and result["examples/s"] > 0
    assert "fake images" in capsys.readouterr().out
