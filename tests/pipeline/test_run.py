"""A whole run of small stages: what it leaves, and what may begin with it."""

import jax
import numpy as np
import pytest

from jaxkd import _tree, checkpoint, evaluate, export
from jaxkd.pipeline import directory, measuring, run as runs, run_data, state
from tests.pipeline.small import STAGES, assert_same, read, rows


def test_the_directory_is_what_it_is_said_to_be(whole, config):
    names = {p.name for p in whole.iterdir()}
    assert names == {
        *("config.toml", "run.json", "metrics.jsonl", "results.json", "lock"),
        *("test", "models", "stages"),
    }
    folders = sorted(p.name for p in (whole / "stages").iterdir())
    assert folders == [f"{i:02d}-{name}" for i, name in enumerate(STAGES)]
    facts = read(whole, "run.json")
    assert facts["data"]["train"] == 200 and facts["data"]["test"] == 500
    assert facts["format"] == 1 and facts["data"]["image_shape"] == [8, 8, 1]
    images = np.load(whole / "test" / "images.npy")
    labels = np.load(whole / "test" / "labels.npy")
    assert images.shape == (500, 8, 8, 1) and images.dtype == np.uint8
    assert labels.shape == np.load(whole / "test" / "index.npy").shape == (500,)
    again = runs.reading.load(whole / "config.toml")
    assert again == config


def test_results_are_those_of_the_logits_beside_them(whole):
    results = read(whole)
    labels = np.load(whole / "test" / "labels.npy")
    assert results["teacher"] == "teacher"
    assert [r["stage"] for r in results["rows"]] == STAGES
    teacher = np.load(whole / "stages" / "00-teach" / "logits.npy")
    for row in results["rows"]:
        logits = np.load(whole / row["directory"] / "logits.npy")
        assert logits.shape == (500, 10)
        np.testing.assert_allclose(row["accuracy"], np.mean(logits.argmax(1) == labels))
        agreement = np.mean(logits.argmax(1) == teacher.argmax(1))
        np.testing.assert_allclose(row["agreement"], agreement)
        np.testing.assert_allclose(row["nll"], float(evaluate.nll(logits, labels)))
    by_stage = {row["stage"]: row for row in results["rows"]}
    assert by_stage["prune"]["macs"] <= 0.7 * by_stage["distill"]["macs"]
    assert by_stage["prune"]["parameters"] < by_stage["distill"]["parameters"]
    quantized = by_stage["quantize"]
    assert quantized["quantized"] and not by_stage["finetune"]["quantized"]
    assert quantized["bytes"] < 0.5 * by_stage["finetune"]["bytes"]
    assert by_stage["export"]["digest"] == quantized["digest"]


def test_metrics_have_a_row_for_each_epoch_and_each_term(whole):
    found = [(r["stage"], r.get("epoch")) for r in rows(whole)]
    epochs = {"teach": 3, "source": 2, "distill": 3, "finetune": 2, "quantize": 2}
    wanted = [
        (s, e + 1 if s in epochs else None)
        for s in STAGES
        for e in range(epochs.get(s, 1))
    ]
    assert found == wanted
    (first, *_) = [r for r in rows(whole) if r["stage"] == "distill"]
    assert {"loss", "loss/ce", "loss/kd", "loss/hint", "norm/grad"} <= set(first)
    # The ramp gives kd no weight in the first steps: the total is near ce and hint.
    assert (
        first["loss"]
        < 0.5 * first["loss/ce"] + 0.1 * first["loss/hint"] + 0.25 * (first["loss/kd"])
    )


def test_best_takes_the_epoch_that_was_best_on_the_validation_images(whole, config):
    distilled = [r for r in rows(whole) if r["stage"] == "distill"]
    best = max(distilled, key=lambda r: r["accuracy"])  # of several the first
    assert best["epoch"] == 1 + int(np.argmax([r["accuracy"] for r in distilled]))
    folder = whole / "stages" / "03-distill"
    final = checkpoint.read(folder / "final")
    saved = checkpoint.read(folder / "checkpoints" / f"{4 * best['epoch']:06d}")
    for path, array in _tree.flatten(final.tree["params"]).items():
        kept = _tree.get(saved.tree["params"]["student"], path)
        np.testing.assert_array_equal(array, kept)
    assert final.meta["rows"][-1]["accuracy"] == distilled[-1]["accuracy"]


def test_the_exported_file_is_the_model(whole):
    (file,) = read(whole)["rows"][-1]["files"]
    program = export.load(whole / file["path"])
    splits = run_data.make(runs.reading.load(whole / "config.toml").data)
    seen = splits.plain(jax.random.key(0), {"image": splits.test.images[:100]})["image"]
    logits = np.load(whole / "stages" / "06-quantize" / "logits.npy")[:100]
    agree = np.mean(program(seen).argmax(1) == logits.argmax(1))
    assert agree >= 0.99
    assert abs(file["accuracy"] - read(whole)["rows"][-1]["accuracy"]) <= 0.01
    assert file["bytes"] == (whole / file["path"]).stat().st_size


@pytest.mark.slow
def test_two_runs_of_a_configuration_are_the_same(whole, config, tmp_path):
    assert_same(runs.start(config, tmp_path / "again"), whole)


@pytest.mark.slow
def test_weights_of_a_run_are_taken_up_by_another_pruned_and_quantized(whole, tmp_path):
    models = whole / "models"
    text = f"""
name = "next"
[data]
name = "digits"
train_images = 100
[models.teacher]
kind = "cnn"
stages = [[8]]
hidden = [16]
dropout = 0.1
weights = "{models / "student"}"
[models.student]
kind = "mlp"
widths = [8]
[[stages]]
kind = "distill"
epochs = 1
batch_size = 50
"""
    (tmp_path / "next.toml").write_text(text)
    run = runs.start(runs.reading.load(tmp_path / "next.toml"), tmp_path / "run")
    first, second = read(run)["rows"]
    assert first["kind"] == "weights" and first["index"] == -1
    before = read(whole)["rows"][-1]
    for key in ("digest", "accuracy", "nll", "macs", "bytes", "quantized"):
        assert first[key] == before[key], key
    assert second["agreement"] is not None and second["stage"] == "distill"


def test_a_digest_tells_any_bit_and_any_recipe_apart():
    held = runs.Model(None, {"a": np.zeros(3)}, {}, ())
    other = held._replace(params={"a": np.array([0.0, 0.0, -0.0])})
    digests = [state.digest(h) for h in (held, other, held._replace(recipe=({},)))]
    assert len(set(digests)) == 3
    assert state.digest(held._replace(params={"a": np.zeros(3)})) == digests[0]


@pytest.mark.bad_input
def test_a_directory_with_a_run_or_with_none_is_refused(whole, config, tmp_path):
    with pytest.raises(ValueError, match="holds a run already"):
        runs.start(config, whole)
    with pytest.raises(ValueError, match="holds no run"):
        runs.resume(tmp_path)
    with (
        directory.locked(whole),
        pytest.raises(ValueError, match="another process is working"),
    ):
        runs.resume(whole)
    with pytest.raises(OSError):
        runs.start(config, "/proc/nowhere/run")


def test_quality_without_a_teacher_has_no_agreement():
    logits, labels = np.eye(3, dtype=np.float32), np.arange(3, dtype=np.int32)
    found = measuring.quality(logits, labels, None)
    assert found["accuracy"] == 1 and found["agreement"] is None


def test_pruning_by_search_and_by_the_gradient_meets_its_target(whole, tmp_path):
    text = f"""
name = "next"
[data]
name = "digits"
train_images = 100
[models.student]
kind = "mlp"
widths = [24]
weights = "{whole / "models" / "teacher"}"
[[stages]]
kind = "prune"
method = "search"
criterion = "taylor"
ratio = 0.4
round_to = 1
step = 0.02
candidates = 2
examples = 50
"""
    (tmp_path / "next.toml").write_text(text)
    config = runs.reading.load(tmp_path / "next.toml")
    run = runs.start(config, tmp_path / "run")
    before, after = read(run)["rows"]
    assert 0.5 * before["macs"] < after["macs"] <= 0.6 * before["macs"]
    journal = run / "stages" / "00-prune" / "search.jsonl"
    assert len(journal.read_text().splitlines()) == 1 + 2
