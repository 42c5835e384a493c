"""Methods against each other: every one fits its pairs; a run, cut short, goes on."""

import dataclasses
import json
import os
import pathlib

import numpy as np
import pytest

from experiments import _contest, _protocol, cifar100, features
from jaxkd import recipes

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
        ({"methods": ("kdd",)}, "no recipe 'kdd'; there are labels.*mean kd"),
        ({"methods": ("no.such:thing",)}, "no method 'no.such:thing'"),
        ({"methods": ("dkd:betta=2",)}, "dkd has no option 'betta'.*mean beta"),
        ({"methods": ("cc",)}, "cc has no published weight"),
        ({"methods": ("mutual",)}, "run by jaxkd.schemes.mutual"),
        ({"student": "resnet9"}, "no network 'resnet9'; there are"),
    ],
)
def test_what_is_not_there_is_refused_at_once(tmp_path, wrong, message):
    config = dataclasses.replace(TINY, **wrong, teacher_epochs=10**9, out=str(tmp_path))
    with pytest.raises(SystemExit, match=message):
        features.main(config)


def test_a_method_may_have_options_or_be_one_of_ones_own():
    assert _contest.contestant("dkd:beta=2.0") == (recipes.dkd, {"beta": 2.0})
    assert _contest.contestant("none") == (recipes.labels, {})
    assert _contest.contestant("jaxkd.recipes:kd").method is recipes.kd


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
