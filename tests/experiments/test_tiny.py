"""The whole of `tiny` on few images, and the files that it left behind."""

import json
import pathlib

import numpy as np
import pytest

from experiments import tiny
from jaxkd import data, export
from jaxkd.data import augment

RESULTS = pathlib.Path(tiny.__file__).parent / "results"


@pytest.mark.slow
def test_every_line_is_trained_written_and_resumed(tmp_path):
    config = tiny.Config(
        out=str(tmp_path),
        dataset="digits",
        seeds=1,
        teacher="resnet8",
        train_images=256,
        padding=1,
        teacher_epochs=1,
        epochs=2,
        prune_epochs=1,
        tune_epochs=1,
        batch_size=64,
        views=2,
        calibration_images=128,
        bfloat16=False,
        repeats=1,
    )
    rows = tiny.main(config)
    assert [(row["line"], row["kind"]) for row in rows] == [
        (line, kind) for kind in ("float", "int8") for line in tiny.LINES
    ]
    for row in rows:
        np.testing.assert_allclose(row["tflite"], row["network"], atol=0.01)
        np.testing.assert_allclose(row["onnx"], row["tflite"], atol=0.005)
    float_, _, _, int8, _, pruned = (row["tflite_bytes"] for row in rows)
    assert int8 < 98_496 < float_
    assert pruned < 98_496 / 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "line"),
    [("tiny-int8.tflite", "distilled"), ("tiny-half-int8.tflite", "pruned")],
)
def test_the_files_that_are_kept_have_the_accuracy_in_the_table(cifar10, file, line):
    rows = [json.loads(row) for row in (RESULTS / "tiny.jsonl").open()]
    (row,) = [row for row in rows if row.get("file", "").startswith(line)]
    images = data.load("cifar10", "train", data_dir=cifar10)
    normalise = augment.normalise(*data.channel_statistics(images))
    view = augment.chain(augment.to_float(), normalise)
    test = data.load("cifar10", "test", data_dir=cifar10)
    assert (RESULTS / file).stat().st_size == row["bytes"]
    found = export.evaluate(export.load(RESULTS / file), test, view=view)
    # Processors may break ties in rounding otherwise, for a few images of 10,000.
    np.testing.assert_allclose(found["accuracy"], row["accuracy"][0], atol=5e-4)
