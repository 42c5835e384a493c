"""A whole run of small stages: what it leaves, and that it can be gone on with."""

import contextlib
import functools
import json
import os
import shutil
import signal

import jax
import numpy as np
import pytest

from jaxkd import _tree, checkpoint, evaluate, export
from jaxkd.compress import search
from jaxkd.pipeline import directory, measuring, run as runs, state, world as worlds
from tests.pipeline import small

STAGES = [
    *("teach", "source", "transfer", "distill"),
    *("prune", "finetune", "quantize", "export"),
]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return small.config(tmp_path_factory.mktemp("config"))


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """A run that nobody has disturbed. Tests copy it."""
    return runs.start(config, tmp_path_factory.mktemp("runs") / "whole")


class Stop(BaseException):
    """As sudden as a kill, for those who cannot catch it."""


def stop(*args, **kwargs):
    raise Stop


def copied(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    return tmp_path / "run"


def read(run, name="results.json"):
    return json.loads((run / name).read_text())


def rows(run):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return small.without_timings([json.loads(line) for line in lines])


def assert_same(run, whole):
    """The same results, rows and arrays, bit for bit."""
    assert rows(run) == rows(whole)
    a, b = (small.without_timings(read(r)) for r in (run, whole))
    for left, right in zip(a["rows"], b["rows"], strict=True):
        for one, other in zip(left["files"], right["files"], strict=True):
            # StableHLO remembers the calls that led to it: a few bytes more or less.
            assert one.pop("bytes") == pytest.approx(other.pop("bytes"), rel=0.1)
        assert left == right
    assert a == b and a["finished"]
    for name in ("teacher", "student", "source"):
        left, right = (small.variables(r, name) for r in (run, whole))
        for path, array in _tree.flatten(left).items():
            np.testing.assert_array_equal(array, _tree.get(right, path), strict=True)
    for stage in ("03-distill", "06-quantize"):
        one, other = (
            np.load(r / "stages" / stage / "logits.npy") for r in (run, whole)
        )
        np.testing.assert_array_equal(one, other)


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
    assert again == runs.order.named(config)


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
    saved = checkpoint.read(folder / "checkpoints" / f"{best['epoch']:06d}")
    for path, array in _tree.flatten(final.tree["params"]).items():
        kept = _tree.get(saved.tree["params"]["student"], path)
        np.testing.assert_array_equal(array, kept)
    assert final.meta["rows"][-1]["accuracy"] == distilled[-1]["accuracy"]


def test_the_exported_file_is_the_model(whole):
    (file,) = read(whole)["rows"][-1]["files"]
    program = export.load(whole / file["path"])
    world = worlds.make(runs.reading.load(whole / "config.toml").data)
    seen = world.plain(jax.random.key(0), {"image": world.test.images[:100]})["image"]
    logits = np.load(whole / "stages" / "06-quantize" / "logits.npy")[:100]
    agree = np.mean(program(seen).argmax(1) == logits.argmax(1))
    assert agree >= 0.99
    assert abs(file["accuracy"] - read(whole)["rows"][-1]["accuracy"]) <= 0.01
    assert file["bytes"] == (whole / file["path"]).stat().st_size


@pytest.mark.slow
def test_two_runs_of_a_configuration_are_the_same(whole, config, tmp_path):
    assert_same(runs.start(config, tmp_path / "again"), whole)


def test_resuming_a_finished_run_changes_nothing(whole, tmp_path):
    run = copied(whole, tmp_path)
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file()}
    runs.resume(run)
    after = {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file()}
    changed = {p.name for p in after if before.get(p) != after[p]}
    assert changed <= {"results.json", "lock"}
    assert_same(run, whole)


def test_a_damaged_stage_is_done_again_with_a_warning_and_later_ones_stay(
    whole, tmp_path
):
    run, said = copied(whole, tmp_path), []
    final = run / "stages" / "05-finetune" / "final"
    (final / "meta.json").write_bytes(b"{}")
    (run / "results.json").unlink()
    later = (run / "stages" / "06-quantize" / "final" / "meta.json").stat().st_mtime_ns
    runs.resume(run, say=said.append)
    assert any("05-finetune" in s and "meta.json has changed" in s for s in said)
    assert [s for s in said if s.startswith("stage ")] == ["stage 6 of 8: finetune"]
    kept = run / "stages" / "06-quantize" / "final" / "meta.json"
    assert kept.stat().st_mtime_ns == later
    assert_same(run, whole)


@contextlib.contextmanager
def waiting(real, *args, **kwargs):
    """Checkpoints of every epoch, however short it is."""
    with real(*args, **kwargs) as saving:

        def save(*args, **kwargs):
            saving.save(*args, **kwargs)
            saving.wait()

        yield saving._replace(save=save)


@pytest.mark.slow
def test_of_damaged_checkpoints_the_one_before_is_used(
    config, whole, tmp_path, monkeypatch
):
    run, said, real = tmp_path / "run", [], checkpoint.writer
    monkeypatch.setattr(checkpoint, "writer", functools.partial(waiting, real))
    with monkeypatch.context() as broken, pytest.raises(Stop):
        broken.setattr(measuring, "logits", stop)
        runs.start(config, run)
    folder = run / "stages" / "00-teach" / "checkpoints"
    newest, before = (folder / f"00000{e}" for e in (3, 2))
    data = max((newest / "data").rglob("d/*"), key=lambda p: p.stat().st_size)
    data.write_bytes(data.read_bytes()[:-3])
    assert checkpoint.damage(newest) and not checkpoint.damage(before)
    runs.resume(run, say=said.append)
    assert any("000003 is damaged" in s and "an earlier one is used" in s for s in said)
    assert_same(run, whole)


@pytest.mark.slow
def test_a_changed_stage_and_those_after_it_are_done_anew(whole, tmp_path):
    """What did not begin with what there is now is not taken over."""
    run, said = copied(whole, tmp_path), []
    text = (run / "config.toml").read_text()
    (run / "config.toml").write_text(text.replace("rate = 0.01\n", "rate = 0.02\n", 1))
    runs.resume(run, say=said.append)
    done = [s.split()[-1] for s in said if s.startswith("stage ")]
    assert done == ["finetune", "quantize", "export"]
    assert sum("another beginning; the stage is done again" in s for s in said) == 3
    assert read(run)["rows"][-1]["digest"] != read(whole)["rows"][-1]["digest"]
    kept = read(run)["rows"][4]
    assert kept == read(whole)["rows"][4]


slow = pytest.mark.slow


@pytest.mark.parametrize(
    "row",
    [
        7,
        pytest.param(2, marks=slow),
        pytest.param(11, marks=slow),
        pytest.param(13, marks=slow),
    ],
)
def test_a_run_that_breaks_off_after_any_row_ends_the_same(
    config, whole, tmp_path, monkeypatch, row
):
    real, count = directory.metrics, [0]

    def breaking(run):
        metrics = real(run)

        def add(line):
            count[0] += 1
            if count[0] == row:
                raise Stop
            metrics.add(line)

        return metrics._replace(add=add)

    monkeypatch.setattr(directory, "metrics", breaking)
    with pytest.raises(Stop):
        runs.start(config, tmp_path / "run")
    monkeypatch.setattr(directory, "metrics", real)
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "torn')
    runs.resume(tmp_path / "run")
    assert_same(tmp_path / "run", whole)


def test_ctrl_c_saves_the_epoch_and_says_where(config, whole, tmp_path, monkeypatch):
    real, count = directory.metrics, [0]

    def interrupting(run):
        metrics = real(run)

        def add(line):
            metrics.add(line)
            count[0] += 1
            if count[0] == 2:
                os.kill(os.getpid(), signal.SIGINT)

        return metrics._replace(add=add)

    monkeypatch.setattr(directory, "metrics", interrupting)
    with pytest.raises(KeyboardInterrupt, match="in stage teach, after epoch 2"):
        runs.start(config, tmp_path / "run")
    assert len(rows(tmp_path / "run")) == 2
    saved = tmp_path / "run" / "stages" / "00-teach" / "checkpoints" / "000002"
    assert checkpoint.damage(saved) is None


@pytest.mark.slow
def test_a_full_disk_stops_the_run_and_loses_nothing(
    config, whole, tmp_path, monkeypatch
):
    real = checkpoint.save

    def full(path, tree):
        if "05-finetune" in str(path):
            raise OSError(28, "No space left on device")
        real(path, tree)

    monkeypatch.setattr(checkpoint.trees, "save", full)
    with pytest.raises(OSError, match="No space left"):
        runs.start(config, tmp_path / "run")
    assert [r["stage"] for r in read(tmp_path / "run")["rows"]] == STAGES[:5]
    monkeypatch.setattr(checkpoint.trees, "save", real)
    runs.resume(tmp_path / "run")
    assert_same(tmp_path / "run", whole)


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
    held = runs.Held(None, {"a": np.zeros(3)}, {}, ())
    other = held._replace(params={"a": np.array([0.0, 0.0, -0.0])})
    digests = [state.digest(h) for h in (held, other, held._replace(recipe=({},)))]
    assert len(set(digests)) == 3
    assert state.digest(held._replace(params={"a": np.zeros(3)})) == digests[0]


SEARCH = """
name = "search"
[data]
name = "digits"
train_images = 100
[models.student]
kind = "space"
widths = [4, 4, 4, 4]
[[stages]]
kind = "search"
candidates = 3
epochs = 1
batch_size = 50
most = 100000
[[stages]]
kind = "train"
epochs = 1
batch_size = 50
"""


@pytest.mark.slow
def test_a_search_that_breaks_off_goes_on_with_its_journal(tmp_path, monkeypatch):
    (tmp_path / "search.toml").write_text(SEARCH)
    config = runs.reading.load(tmp_path / "search.toml")
    whole = runs.start(config, tmp_path / "whole")
    real, calls = search.short_training, []

    def breaking(*args, **kwargs):
        evaluate = real(*args, **kwargs)

        def evaluation(tokens):
            calls.append(tokens)
            if len(calls) == 3:
                raise Stop
            return evaluate(tokens)

        return evaluation

    monkeypatch.setattr(search, "short_training", breaking)
    with pytest.raises(Stop):
        runs.start(config, tmp_path / "run")
    runs.resume(tmp_path / "run")
    assert len(calls) == 4 and calls[2] == calls[3]  # two are known from the journal
    assert rows(tmp_path / "run") == rows(whole)
    one, other = (read(r)["rows"][0]["digest"] for r in (tmp_path / "run", whole))
    assert one == other
    trials = [r for r in rows(whole) if r["kind"] == "search"]
    assert all(r["macs"] <= 100000 for r in trials) and len(trials) == 3
    best = max(trials, key=lambda r: r["reward"])
    net, *_ = [r for r in read(whole)["rows"] if r["kind"] == "train"]
    assert net["macs"] == best["macs"] and net["parameters"] == best["parameters"]


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
