"""The parts of the experiment against their definitions, and a small run of it."""

import dataclasses
import json
import os
import pathlib

import numpy as np
import pytest

from experiments import _transfer_report as reports, transfer
from jaxkd import data, train
from jaxkd.data import archives, classes, specs

NEEDED = {"mnist": ("fashion_mnist", "mnist"), "cifar": ("cifar10", "cifar100")}
TINY = transfer.Config(sizes=(25, 100), seeds=2, steps=100, source_epochs=4)
WAYS = ("teacher", "from scratch", "fine-tuned", "distilled", "fused")


@pytest.mark.slow
def test_a_small_run_of_all_ways_compiles_each_once(tmp_path, monkeypatch, capsys):
    traced = []

    def counted(*args, make=train.make_epoch, **knobs):
        epoch = make(*args, **knobs)

        def run(*args):
            traced.append(args)
            return epoch(*args)

        return run

    monkeypatch.setattr(train, "make_epoch", counted)
    results = transfer.main(dataclasses.replace(TINY, out=str(tmp_path)))
    # The rehearsal, two source networks and five ways, whatever the number of sizes.
    assert len(traced) == 8
    learnt = {f"{way}, {n}" for way in WAYS for n in (25, 100)}
    assert set(results) == learnt | {"source, large", "source, small"}
    assert min(results[name] for name in learnt) > 0.5  # chance is 0.2

    (folder,) = (tmp_path / "transfer").iterdir()
    names = {path.name for path in folder.iterdir()}
    wanted = {"config.json", "versions.json", "metrics.jsonl", "report.md"}
    assert wanted | {"curves.png", "source_large", "source_small"} <= names
    text = (folder / "report.md").read_text()
    assert "| target images | teacher | from scratch |" in text
    assert "| 100 |" in text and "fused - fine-tuned" in text
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    final = {row["run"]: row["accuracy"] for row in rows if "final" in row}
    assert set(final) == learnt
    for name, accuracies in final.items():
        assert len(accuracies) == 2
        np.testing.assert_allclose(np.mean(accuracies), results[name], rtol=1e-6)
    assert "paired differences" in capsys.readouterr().out


def test_only_some_classes_labelled_anew():
    digits = data.load("digits", "test")
    part = transfer.only(digits, ("7", "3"))
    assert part.classes == ("7", "3") and len(part.images) == 100
    assert part.labels.dtype == np.int32
    for label, digit in enumerate((7, 3)):
        there = digits.index[digits.labels == digit]
        np.testing.assert_array_equal(part.index[part.labels == label], there)
    whole = transfer.only(digits, None)
    assert whole is digits


def test_few_images_of_a_seed_fill_the_rows_evenly():
    digits = data.load("digits", "train")
    found = transfer.few(digits, 30, seeds=2, rows=100)
    assert found["image"].shape == (2, 100, 8, 8, 1)
    chosen = []
    for index, label in zip(found["index"], found["label"], strict=True):
        values, counts = np.unique(index, return_counts=True)
        assert len(values) == 30 and set(counts) == {3, 4}
        chosen.append(set(values.tolist()))
        np.testing.assert_array_equal(label, digits.labels[index])
    assert chosen[0] != chosen[1]
    more = transfer.few(digits, 60, seeds=1, rows=100)
    assert chosen[0] < set(np.asarray(more["index"][0]).tolist())


def test_the_new_classes_are_new():
    names = transfer.NEW_IN_CIFAR100
    assert len(set(names)) == 10 and set(names) <= set(classes.CIFAR100)
    assert not set(names) & set(classes.CIFAR10)


def test_the_plan_is_the_tasks_unless_something_is_said():
    config = transfer.Config(task="mnist")
    assert config.plan == transfer.PLANS["mnist"] and config.runs == 3
    short = dataclasses.replace(config, preset="short")
    assert short.plan.sizes == (100, 500) and short.runs == 2
    assert (short.plan.source_epochs, short.plan.steps) == (1, 100)
    said = dataclasses.replace(short, sizes=(7,), steps=3, source_epochs=9)
    assert (said.plan.sizes, said.plan.steps, said.plan.source_epochs) == ((7,), 3, 9)


def test_choosing_leaves_the_test_set_alone():
    config = transfer.Config(evaluate_on="validation")
    source, target = transfer.tasks(config)
    assert (target.train.split, target.test.split) == ("train_rest", "validation")
    assert not set(target.train.index.tolist()) & set(target.test.index.tolist())
    assert source.train.classes == tuple("01234")
    assert target.test.classes == tuple("56789")
    assert source.view is target.view


def test_tables_by_hand():
    found = {way: {50: np.array([0.5, 0.7])} for way in WAYS}
    found["fine-tuned"] = {50: np.array([0.8, 0.8])}
    accuracy, gains = reports.tables(found)
    # Mean 60, deviations of 10 either way: sqrt(200) = 14.14.
    assert accuracy[0]["from scratch"] == "60.00 ± 14.14"
    # Differences of 30 and 10: mean 20, standard deviation 14.14, by sqrt(2) is 10.
    assert gains[0]["fine-tuned - from scratch"] == "+20.00 ± 10.00"
    assert gains[0]["fused - fine-tuned"] == "-20.00 ± 10.00"
    assert gains[0]["distilled - from scratch"] == "+0.00 ± 0.00"
    one = {way: {50: values[50][:1]} for way, values in found.items()}
    assert reports.tables(one)[1][0]["fine-tuned - from scratch"] == "+30.00"


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_picture_of_any_number_of_seeds(tmp_path, seeds):
    found = {way: {n: np.full(seeds, 0.5) for n in (10, 1000)} for way in WAYS}
    assert reports.picture(tmp_path / "curves.png", found)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"sizes": (10, 9999)}, "images: n must be at most the 646 examples"),
        ({"sizes": (10,), "batch_size": 50}, "batch_size must be at most n = 20"),
        ({"temperature": 0.0}, "temperature must be finite and > 0, got 0.0"),
        ({"seeds": 0}, "seeds must be >= 1, got 0"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_trained(
    tmp_path, wrong, message
):
    config = transfer.Config(**wrong, source_epochs=10**9, out=str(tmp_path))
    with pytest.raises(SystemExit, match=message):
        transfer.main(config)


def lacking(names):
    """Those of which JAXKD_ARCHIVES holds no official archives."""
    folder = os.environ.get("JAXKD_ARCHIVES")
    folders = [pathlib.Path(folder)] if folder else []
    return [n for n in names if archives.find(specs.SOURCES[n], folders) is None]


@pytest.mark.slow
@pytest.mark.parametrize("task", NEEDED)
def test_official_tasks(tmp_path, task):
    if names := lacking(NEEDED[task]):
        pytest.skip(f"JAXKD_ARCHIVES names no folder with archives of {names}")
    results = transfer.main(
        transfer.Config(
            task=task,
            sizes=(100,),
            seeds=2,
            steps=60,
            source_epochs=1,
            source_images=1000,
            evaluate_on="validation",
            out=str(tmp_path),
        )
    )
    learnt = {name: value for name, value in results.items() if ", 100" in name}
    assert len(learnt) == len(WAYS) and min(learnt.values()) > 0.12  # chance is 0.1
