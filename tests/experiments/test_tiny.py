"""The whole of `tiny` on few images, and the files that it left behind."""

import dataclasses
import json
import os
import pathlib

import numpy as np
import pytest

from experiments import tiny, tiny_files
from jaxkd import data, export
from jaxkd.data import augment

RESULTS = pathlib.Path(tiny.__file__).parent / "results"


@pytest.mark.slow
def test_every_line_is_trained_resumed_and_written(tmp_path):
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
        batch_size=64,
        views=2,
        bfloat16=False,
    )
    trained = tiny.main(config)
    assert [*trained] == ["teacher", "alone", "distilled", "pruned"]
    (directory,) = (tmp_path / "tiny").iterdir()
    assert tiny.main(dataclasses.replace(config, resume=str(directory))) == trained

    files = tiny_files.Config(str(directory), calibration_images=128, repeats=1)
    rows = tiny_files.main(files)
    assert [(row["line"], row["kind"]) for row in rows] == [
        (line, kind) for line in [*trained][1:] for kind in ("float", "int8")
    ]
    for row in rows:
        np.testing.assert_allclose(row["tflite"], trained[row["line"]], atol=0.02)
        np.testing.assert_allclose(row["onnx"], row["tflite"], atol=0.005)
    float_, int8, _, _, _, pruned = (row["tflite_bytes"] for row in rows)
    assert int8 < 98_496 < float_
    assert pruned < 98_496 / 2


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch_size": 100_000}, "batch_size"),
        ({"fraction": 2.0}, "fraction must be in"),
        ({"views": 0}, "views must be >= 1"),
        ({"teacher": "nonsense"}, "nonsense"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_trained(
    wrong, message, tmp_path
):
    with pytest.raises(SystemExit, match=message):
        tiny.main(tiny.Config(dataset="digits", out=str(tmp_path), **wrong))
    assert not [*tmp_path.iterdir()]


@pytest.mark.bad_input
def test_a_directory_without_a_run_is_refused(tmp_path):
    with pytest.raises(SystemExit, match=r"no run of experiments\.tiny"):
        tiny_files.main(tiny_files.Config(str(tmp_path)))


@pytest.mark.slow
@pytest.mark.skipif("JAXKD_ARCHIVES" not in os.environ, reason="needs CIFAR-10")
@pytest.mark.parametrize(
    ("file", "line"),
    [("tiny-int8.tflite", "distilled"), ("tiny-half-int8.tflite", "pruned")],
)
def test_the_files_that_are_kept_have_the_accuracy_in_the_table(file, line):
    rows = [
        json.loads(row) for row in (RESULTS / "tiny.jsonl").read_text().splitlines()
    ]
    (row,) = [row for row in rows if row.get("file", "").startswith(line)]
    images = data.load("cifar10", "train")
    normalise = augment.normalise(*data.channel_statistics(images))
    view = augment.chain(augment.to_float(), normalise)
    test = data.load("cifar10", "test")
    assert (RESULTS / file).stat().st_size == row["bytes"]
    found = export.evaluate(export.load(RESULTS / file), test, view=view)
    # Processors may break ties in rounding otherwise, for a few images of 10,000.
    np.testing.assert_allclose(found["accuracy"], row["accuracy"][0], atol=5e-4)
