"""The pruning experiment: what it refuses, what it writes, and a run on real digits."""

import json
import pathlib

import numpy as np
import pytest

from experiments import _prune_report as reports, prune as experiment
from jaxkd.compress import prune
from tests.compress.prune import small

ROWS = [
    {"name": "not pruned", "method": "", "before": 90.0, "accuracy": [90.0, 92.0]},
    {
        "name": "uniform 0.5",
        "method": "uniform",
        "before": 40.0,
        "accuracy": [88.0, 91.0],
    },
]
COSTS = {
    "validation": 70.0,
    "parameters": 10,
    "macs": 2_000_000,
    "bytes": 40,
    "milliseconds": 2.0,
}


def rows():
    small_costs = {**COSTS, "macs": 1_000_000, "milliseconds": 1.0}
    return [{**ROWS[0], **COSTS}, {**ROWS[1], **small_costs}]


def test_a_row_has_the_paired_difference_and_the_gain_in_speed():
    whole, pruned = rows()
    row = reports._row(pruned, whole)
    # Differences of 2 and 1 points: mean -1.5, standard error sqrt(0.5) / sqrt(2).
    assert row["difference"] == "-1.50 ± 0.50"
    assert row["MACs"] == "1,000,000 (50%)" and row["times faster"] == "2.00"
    assert reports._row(whole, whole)["difference"] == ""


def test_pictures_are_pictures(tmp_path):
    pytest.importorskip("matplotlib")
    assert reports.accuracy_picture(tmp_path / "accuracy.png", rows())
    file = tmp_path / "sensitivity.json"
    target = prune.target(small.plan(), "macs", fraction=0.5)
    metric = small.additive(np.ones(72))
    prune.sensitivity(small.plan(), small.scores(), target, metric, file=file)
    assert reports.sensitivity_picture(tmp_path / "sensitivity.png", file)
    for name in ("accuracy.png", "sensitivity.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_presets_and_what_overrides_them():
    whole, tuning = experiment.Config(preset="short", tune_epochs=7).protocols()
    assert (whole.epochs, whole.train_images, whole.learning_rate) == (8, 20_000, None)
    assert (tuning.epochs, tuning.train_images) == (7, 10_000)
    assert tuning.learning_rate == 0.01


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"methods": ("unifrom",)}, "methods must be one of"),
        ({"fractions": (0.0001,)}, "cannot be met: in steps of 8 channels"),
        ({"fractions": (1.5,)}, r"fraction must be in \(0, 1\]"),
        ({"seeds": 0}, "seeds must be >= 1"),
        ({"recalibrate": -1}, "recalibrate must be >= 0"),
        ({"net": "resnet9"}, "no network 'resnet9'"),
        ({"reuse": "nowhere"}, "cannot reuse: no checkpoint at"),
    ],
)
def test_what_cannot_work_is_refused_before_training(tmp_path, wrong, message):
    config = {"net": "resnet8", "dataset": "digits", "epochs": 10**9, **wrong}
    with pytest.raises(SystemExit, match=message):
        experiment.main(experiment.Config(**config, out=str(tmp_path)))


def digits(out: pathlib.Path, **how) -> experiment.Config:
    short = {"preset": "short", "epochs": 4, "tune_epochs": 3, "seeds": 2, "budget": 8}
    config = {"net": "resnet8", "dataset": "digits", "out": str(out), **short, **how}
    return experiment.Config(**config)


@pytest.mark.slow
def test_digits_from_training_to_the_report_and_again_after_a_crash(
    tmp_path, monkeypatch
):
    config = digits(tmp_path, methods=("uniform", "search"))
    learn, calls = experiment.protocol.learn, []

    def crash_in_the_last(name, *args, **how):
        calls.append(name)
        if name == "search 0.5" and calls.count(name) == 1:
            raise RuntimeError("the machine went away")
        return learn(name, *args, **how)

    monkeypatch.setattr(experiment.protocol, "learn", crash_in_the_last)
    with pytest.raises(RuntimeError, match="went away"):
        experiment.main(config)
    (directory,) = (tmp_path / "prune").iterdir()
    kept = (directory / "results.jsonl").read_text()
    assert len(kept.splitlines()) == 2
    found = experiment.main(
        digits(tmp_path, methods=config.methods, resume=str(directory))
    )
    assert calls.count("uniform 0.5") == 1 and calls.count("teacher resnet8") == 1
    assert (directory / "results.jsonl").read_text().startswith(kept)
    whole, uniform, searched = found
    for row in (uniform, searched):
        assert row["macs"] <= whole["macs"] / 2 and row["difference"] < 1e-4
        assert np.mean(row["accuracy"]) > row["before"]  # fine-tuning helps
        assert row["validation"] > row["before"] + 10  # and so do statistics of its own
    names = {path.name for path in directory.iterdir()}
    assert {"report.md", "accuracy.png", "groups.txt", "search_0_5.jsonl"} <= names
    assert "uniform 0.5" in (directory / "report.md").read_text()
    text = (directory / "results.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["name"] for line in lines] == [
        "not pruned",
        "uniform 0.5",
        "search 0.5",
    ]
