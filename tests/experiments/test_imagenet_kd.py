"""The ImageNet pair end to end: on encoded records, across a pause, and with fakes."""

import dataclasses
import json
import os

import jax
import numpy as np
import pytest

from experiments import _fake_images as fake, imagenet_kd
from jaxkd import checkpoint, mesh
from jaxkd.models.net import from_linen
from tests import toys

TINY = imagenet_kd.Config(
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
    monkeypatch.setattr(imagenet_kd.protocol, "network", network)


@pytest.fixture(scope="module")
def encoded(tmp_path_factory):
    """A prepared data set of 60 + 6 small JPEGs, as TFDS prepares ImageNet."""
    root = tmp_path_factory.mktemp("data")
    fake.prepare(root, {"train": 60, "validation": 6}, classes=6, side=48)
    return root


def only(folder):
    (found,) = (folder / "imagenet_kd").iterdir()
    return found


def rows(directory):
    return [*map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())]


def last_state(directory):
    found = checkpoint.newest(directory / "checkpoints", pytest.fail)
    return found.tree, found.meta["place"]


class Killed(Exception):
    pass


def test_a_teacher_is_trained_then_teaches_across_a_pause(
    small, encoded, tmp_path, monkeypatch, capsys
):
    config = dataclasses.replace(
        TINY, data_dir=str(encoded), batch_size=16, save_every=2
    )
    of = lambda where, **what: dataclasses.replace(
        config, out=str(tmp_path / where), **what
    )
    imagenet_kd.main(of("teacher", method="teacher"))
    teacher_run = str(only(tmp_path / "teacher"))
    dkd = {"method": "dkd", "teacher_run": teacher_run, "epochs": 2}
    imagenet_kd.main(of("whole", **dkd))
    whole = only(tmp_path / "whole")
    assert [row["epoch"] for row in rows(whole)] == [1, 2]
    assert set(rows(whole)[1]) >= {"loss/ce", "loss/dkd", "accuracy", "nll", "waited"}
    tree, place = last_state(whole)
    assert place == [2, 0, {}] and int(tree["step"]) == 6  # 60 // 16 steps an epoch

    def killed(saving_fit=imagenet_kd.train.fit, **_):
        def fit(*args, save, **knobs):
            def save_then_die(state, place):
                save(state, place)
                if place[:2] == (1, 2):
                    raise Killed

            return saving_fit(*args, save=save_then_die, **knobs)

        return fit

    with monkeypatch.context() as patch:
        patch.setattr(imagenet_kd.train, "fit", killed())
        with pytest.raises(Killed):
            imagenet_kd.main(of("cut", **dkd))
    cut = only(tmp_path / "cut")
    assert last_state(cut)[1][:2] == [1, 2]
    result = imagenet_kd.main(of("cut", **dkd, resume=str(cut)))
    jax.tree.map(np.testing.assert_array_equal, last_state(cut)[0], tree)
    measured = ("seconds", "examples/s", "waited")
    timeless = lambda found: [
        {k: v for k, v in row.items() if k not in measured} for row in found
    ]
    assert timeless(rows(cut)) == timeless(rows(whole))
    assert (
        json.loads((cut / "result.json").read_text())["accuracy"] == result["accuracy"]
    )
    assert "resnet34-resnet18, dkd: accuracy" in capsys.readouterr().out
    assert imagenet_kd.main(of("cut", **dkd, resume=str(cut))) == {}
    with pytest.raises(SystemExit, match="its method was 'dkd', now it is 'kd'"):
        imagenet_kd.main(of("cut", **{**dkd, "method": "kd"}, resume=str(cut)))


def test_held_out_images_are_not_trained_on(encoded):
    config = dataclasses.replace(TINY, data_dir=str(encoded), evaluate_on="held_out")
    train, test = imagenet_kd.streams(config, None)
    assert (train.source.examples, test.source.examples) == (59, 1)
    assert train.source.record(0).endswith("record 1")
    assert test.source.record(0).endswith("record 0")


def test_recipes_are_the_published_ones_unless_something_is_said():
    config = imagenet_kd.Config()
    assert config.recipe() == imagenet_kd.Recipe(100, 512, 0.2)
    patient = dataclasses.replace(config, method="patient", batch_size=64)
    assert patient.recipe() == imagenet_kd.Recipe(1200, 64, 3e-3)
    assert set(imagenet_kd.spec(patient)) == {"kd"}  # no labels
    view, test_view = imagenet_kd.views(patient)
    batch = {
        "image": np.full((2, 4, 4, 3), 255, np.uint8),
        "label": np.zeros(2, np.int32),
    }
    assert "label_other" in jax.eval_shape(view, jax.random.key(0), batch)
    assert view.random and not test_view.random
    white = (1 - imagenet_kd.MEAN) / imagenet_kd.SD
    seen = jax.jit(test_view.apply)(jax.random.key(0), batch)
    np.testing.assert_allclose(seen["image"][1, 3, 2], white, rtol=1e-5)


def test_the_rates_fall_where_they_should():
    config = dataclasses.replace(TINY, epochs=10, learning_rate=1.0)
    params = {"w": np.zeros(1, np.float32)}
    tx = imagenet_kd.optimiser(config, steps=10)
    state, sizes, update = tx.init(params), [], jax.jit(tx.update)
    for step in range(100):
        momentum = (step == 0) * 1.0  # one gradient, whose trace then decays by 0.9
        updates, state = update({"w": np.full(1, momentum)}, state, params)
        sizes.append(-float(updates["w"][0]) / 0.9**step)
    np.testing.assert_allclose(sizes[:30], 1, rtol=1e-4)
    np.testing.assert_allclose(sizes[30:60], 0.1, rtol=1e-4)
    np.testing.assert_allclose(sizes[90:], 0.001, rtol=1e-3)


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
        imagenet_kd.main(config)
    assert message in str(error.value) and not any(tmp_path.iterdir())


@pytest.mark.bad_input
def test_a_teacher_has_to_come_from_somewhere(small, tmp_path):
    devices = mesh.make(devices=jax.devices()[:1])
    net = imagenet_kd.protocol.network("resnet34", 6)
    with pytest.raises(SystemExit, match="--teacher-run"):
        imagenet_kd.teacher(TINY, net, devices)
    config = dataclasses.replace(TINY, teacher_run=str(tmp_path))
    with pytest.raises(SystemExit, match="there is no whole checkpoint"):
        imagenet_kd.teacher(config, net, devices)


@pytest.fixture
def quick():
    """Four steps are not worth an optimiser that takes longer than they do."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    if "JAX_DISABLE_MOST_OPTIMIZATIONS" not in os.environ:  # see tests/conftest.py
        jax.config.update("jax_disable_most_optimizations", False)


@pytest.mark.slow
def test_a_pair_runs_with_fakes(quick, tmp_path, capsys):
    config = dataclasses.replace(TINY, fake=True, out=str(tmp_path))
    result = imagenet_kd.main(config)
    assert np.isfinite(result["loss"]) and result["examples/s"] > 0
    tree, place = last_state(only(tmp_path))
    assert place == [1, 0, {}] and int(tree["step"]) == 2
    assert "fake images" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dkd", "patient"])
def test_the_other_pair_fits_together(tmp_path, monkeypatch, method):
    """As shapes: it takes a minute to compile."""
    traced = []

    def fit(step, state, variables, stream, *, key, **knobs):
        size = stream.batch_size
        batch = stream.source.read(np.arange(size), np.zeros(size, np.uint64))
        place = np.int32(0)
        traced.append(jax.eval_shape(step, state, variables, batch, key, place, place))
        return train.Run(state, [], interrupted=False)

    def teacher(config, net, devices):
        image = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
        return jax.eval_shape(net.init, jax.random.key(0), image)

    def begin(directory, init, arguments, devices):
        return jax.eval_shape(init, *arguments), train.Place()

    monkeypatch.setattr(imagenet_kd.train, "fit", fit)
    monkeypatch.setattr(imagenet_kd, "teacher", teacher)
    monkeypatch.setattr(imagenet_kd, "begin", begin)
    imagenet_kd.main(
        dataclasses.replace(
            TINY,
            fake=True,
            pair="resnet50-mobilenet_v1",
            method=method,
            out=str(tmp_path),
        )
    )
    ((state, metrics),) = traced
    kinds = {"dkd": {"loss/ce", "loss/dkd"}, "patient": {"loss/kd"}}
    assert set(metrics) == {"loss", "norm/grad"} | kinds[method]
    head = state.params["student"]["head"]["kernel"]
    assert head.shape == (1024, 6) and head.dtype == np.float32
