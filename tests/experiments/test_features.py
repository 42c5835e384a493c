"""Methods against each other: every one fits its pairs; a run, cut short, goes on."""

import dataclasses
import json
import os
import pathlib

import jax
import numpy as np
import optax
import pytest

from experiments import _contest, _methods, _protocol, cifar100, features
from jaxkd import data, models

ARCHIVES = os.environ.get("JAXKD_ARCHIVES")
needs_archives = pytest.mark.skipif(
    not ARCHIVES, reason="JAXKD_ARCHIVES names no folder of the official archives"
)


def only(directory: pathlib.Path) -> pathlib.Path:
    (found,) = directory.iterdir()
    return found


TINY = features.Config(
    teacher="resnet8",
    student="resnet8",
    methods=("kd", "fitnets"),
    dataset="digits",
    seeds=2,
    epochs=2,
    teacher_epochs=1,
    train_images=128,
    batch_size=32,
    every_epoch=True,
)


def pair_of(student, teacher, size=32):
    images = jax.ShapeDtypeStruct((2, size, size, 3), np.float32)
    nets = [models.ZOO[name](classes=100) for name in (student, teacher)]
    few = data.load("digits", "train")
    few = data.subset(few, 64, seed=0)
    return _methods.Pair(
        *nets,
        jax.eval_shape(nets[1].init, jax.random.key(0), images),
        np.zeros((2, size, size, 3), np.float32),
        few,
        240,
        100,
        lambda epochs: optax.sgd(0.05),
    )


@pytest.mark.parametrize("name", _methods.METHODS)
def test_every_method_fits_a_pair_of_unlike_networks(name):
    # Traced only: nothing is compiled. The widths differ, and so does the depth.
    _contest._rehearse(pair_of("resnet8", "wrn_16_2"), _methods.METHODS[name])


@pytest.mark.parametrize(
    "pair", [("mobilenet_v2", "vgg8"), ("shufflenet_v1", "resnet8x4")]
)
def test_stages_are_matched_by_the_size_of_their_maps(pair):
    alike = _methods.stages_alike(pair_of(*pair))
    student, teacher = _methods._outputs(pair_of(*pair))
    assert alike
    for name, other in alike.items():
        assert student.taps[name].shape[1:3] == teacher.taps[other].shape[1:3]


def test_budgets_of_stages_add_up():
    for name, method in _methods.METHODS.items():
        if name != "ofd":  # which looks at the teacher's features, and needs variables
            plan = method(pair_of("resnet8", "resnet8"))
            assert sum(stage.epochs for stage in plan.stages) == 240, name


@pytest.mark.slow
def test_a_contest_leaves_its_table_and_goes_on_after_the_last_whole_result(
    tmp_path, capsys
):
    first = dataclasses.replace(TINY, methods=("kd",), out=str(tmp_path))
    features.main(first)
    directory = only(tmp_path / "features")
    results = directory / "results.jsonl"
    lines = results.read_text().splitlines()
    assert [json.loads(line)["method"] for line in lines] == ["none", "kd"]
    # A kill while a line is being written leaves half of it.
    results.write_text(results.read_text() + '{"method": "fitn')
    again = dataclasses.replace(TINY, out=str(tmp_path), resume=str(directory))
    found = features.main(again)
    assert {result["method"] for result in found} == {"none", "kd", "fitnets"}
    assert results.read_text().splitlines()[:2] == lines  # not trained again
    log = (directory / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in log]
    assert sum(row["run"].startswith("teacher") for row in rows) == 2  # 1 epoch, 1 end
    report = (directory / "report.md").read_text()
    assert "| fitnets |" in report and "two standard errors" in report
    assert (directory / "methods.png").read_bytes().startswith(b"\x89PNG")
    assert (
        "resnet8 to resnet8, 128 images of digits, 2 seeds" in capsys.readouterr().out
    )

    other = dataclasses.replace(again, batch_size=64)
    with pytest.raises(SystemExit, match="batch_size was 32, now it is 64"):
        features.main(other)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"methods": ("kdd",)}, "no method 'kdd'; there are none, kd, dkd"),
        ({"methods": ("no.such:thing",)}, "no method 'no.such:thing'"),
        ({"student": "resnet9"}, "no network 'resnet9'; there are"),
    ],
)
def test_what_is_not_there_is_refused_at_once(tmp_path, wrong, message):
    config = dataclasses.replace(TINY, **wrong, teacher_epochs=10**9, out=str(tmp_path))
    with pytest.raises(SystemExit, match=message):
        features.main(config)


def test_a_method_of_ones_own():
    assert _methods.method("experiments._methods:kd") is _methods.kd


def test_the_full_protocol_is_the_published_one():
    student, teacher = cifar100.Config().protocols()
    assert student == teacher == _protocol.FULL
    tx = _protocol.optimiser(student, _protocol.rate(student, "resnet20"), 240, 50_000)
    weights = {"w": np.ones(())}
    state = tx.init(weights)
    update, _ = tx.update({"w": np.zeros(())}, state, weights)
    np.testing.assert_allclose(update["w"], -0.05 * 5e-4, rtol=1e-6)
    assert _protocol.rate(student, "mobilenet_v2") == 0.01


@needs_archives
@pytest.mark.slow
def test_methods_with_parts_of_their_own_train_on_cifar100(tmp_path):
    # Margins of the teacher, a network that is extended. Stages are in the test above,
    # schedules in tests/terms; other methods differ in a loss.
    names = ("ofd", "simkd")
    config = features.Config(
        teacher="resnet8",
        student="resnet8",
        methods=names,
        seeds=1,
        epochs=2,
        teacher_epochs=1,
        train_images=256,
        teacher_images=1000,
        evaluate_on="validation",
        out=str(tmp_path),
    )
    found = features.main(config)
    assert {result["method"] for result in found} == {"none", *names}
    assert all(np.isfinite(result["nll"]).all() for result in found)
