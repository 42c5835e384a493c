"""Quantization, run small on the digits in the package, and extended by a cell."""

import dataclasses
import json

import pytest

from experiments import quantize as experiment
from jaxkd import data, export
from jaxkd.data import augment

TINY = experiment.Config(
    net="digits_student",
    teacher="resnet8",
    dataset="digits",
    methods=("PTQ",),
    activations=("static",),
    scales=("per channel",),
    bits=(8,),
    epochs=3,
    train_images=1000,
    teacher_images=1000,
    tune_images=1000,
    teacher_epochs=1,
    tune_epochs=1,
    seeds=1,
    repeats=2,
)
PTQ, QAT = (f"{way} static per channel W8A8" for way in ("PTQ", "QAT"))


@pytest.mark.slow
def test_accuracies_are_those_of_the_files_and_the_grid_can_grow(tmp_path):
    first = experiment.main(dataclasses.replace(TINY, out=str(tmp_path)))
    (directory,) = (tmp_path / "quantize").iterdir()
    more = dataclasses.replace(
        TINY, methods=("PTQ", "QAT"), out=str(tmp_path), resume=str(directory)
    )
    found = {row["name"]: row for row in experiment.main(more)}
    assert list(found) == ["float, alone", "float, distilled", PTQ, QAT]
    for row in first:  # neither trained nor written again
        assert found[row["name"]]["accuracy"] == row["accuracy"]
    whole, small = found["float, distilled"], found[QAT]
    assert small["bytes"] < 0.6 * whole["bytes"] and small["float_ops"] == 0
    assert whole["float_ops"] > 0

    train, test = data.load("digits", "train"), data.load("digits", "test")
    normalise = augment.normalise(*data.channel_statistics(train))
    view = augment.chain(augment.to_float(), normalise)
    file = export.load(directory / small["file"])
    assert export.evaluate(file, test, view=view)["accuracy"] == small["accuracy"][0]

    rows = (directory / "metrics.jsonl").read_text().splitlines()
    names = [json.loads(row)["run"] for row in rows]
    assert names.count("float, distilled") == 3 and names.count(f"{QAT}, seed 0") == 1
    assert f"| {QAT} |" in (directory / "report.md").read_text()


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"net": "resnet9"}, "no: 'resnet9'"),
        ({"bits": (9,)}, "weights must be 2 to 8 bits, got 9"),
        ({"temperature": 0.0}, "temperature must be finite and > 0"),
    ],
)
def test_what_cannot_work_is_refused_before_training(tmp_path, wrong, message):
    config = dataclasses.replace(TINY, **wrong, epochs=10**9, out=str(tmp_path))
    with pytest.raises(SystemExit, match=message):
        experiment.main(config)
    assert not list(tmp_path.iterdir())
