"""Pruning, run small on the digits in the package, and extended by a method."""

import dataclasses
import json

import pytest

from experiments import prune as experiment

TINY = experiment.Config(
    net="resnet8",
    dataset="digits",
    methods=("uniform",),
    epochs=4,
    train_images=1000,
    tune_epochs=2,
    tune_images=1000,
    seeds=1,
    budget=4,
)


@pytest.mark.slow
def test_half_of_the_channels_are_enough_and_methods_can_be_added(tmp_path):
    first = experiment.main(dataclasses.replace(TINY, out=str(tmp_path)))
    (directory,) = (tmp_path / "prune").iterdir()
    more = dataclasses.replace(
        TINY, methods=("uniform", "search"), out=str(tmp_path), resume=str(directory)
    )
    found = experiment.main(more)
    assert found[:2] == first  # the same again, without training
    whole, *pruned = found
    assert [row["name"] for row in pruned] == ["uniform 0.5", "search 0.5"]
    for row in pruned:
        assert row["macs"] <= whole["macs"] / 2
        assert row["accuracy"][0] > row["before"]  # fine-tuning helps
        assert row["validation"] > row["before"] + 0.1  # so do statistics of its own

    rows = (directory / "metrics.jsonl").read_text().splitlines()
    names = [json.loads(row)["run"] for row in rows]
    assert names.count("whole") == 4 and names.count("uniform 0.5") == 2
    assert (directory / "search_0_5.jsonl").exists()
    assert "| uniform 0.5 |" in (directory / "report.md").read_text()


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"fractions": (0.0001,)}, "cannot be met: in steps of 8 channels"),
        ({"fractions": (1.5,)}, r"fraction must be in \(0, 1\]"),
        ({"seeds": 0}, "seeds must be >= 1"),
        ({"net": "resnet9"}, "there is no: 'resnet9'"),
    ],
)
def test_what_cannot_work_is_refused_before_training(tmp_path, wrong, message):
    with pytest.raises(SystemExit, match=message):
        config = dataclasses.replace(TINY, **wrong, out=str(tmp_path))
        experiment.main(dataclasses.replace(config, epochs=10**9))
    assert not list(tmp_path.iterdir())
