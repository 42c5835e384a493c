"""A run that broke off is resumed, and ends as if it had not been."""

import contextlib
import functools
import os
import shutil
import signal

import pytest

from jaxkd import checkpoint
from jaxkd.compress import search
from jaxkd.pipeline import directory, measuring, run as runs
from tests.pipeline import small
from tests.pipeline.small import assert_same, read, rows


class Stop(BaseException):
    """As sudden as a kill, for those who cannot catch it."""


def stop(*args, **kwargs):
    raise Stop


def copied(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    return tmp_path / "run"


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
    newest, before = (folder / f"{4 * e:06d}" for e in (3, 2))
    data = max((newest / "data").rglob("d/*"), key=lambda p: p.stat().st_size)
    data.write_bytes(data.read_bytes()[:-3])
    assert checkpoint.damage(newest) and not checkpoint.damage(before)
    runs.resume(run, say=said.append)
    assert any("000012 is damaged" in s and "an earlier one is used" in s for s in said)
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
    assert (
        sum("made from other inputs; the stage is done again" in s for s in said) == 3
    )
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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_saves_the_epoch_and_says_where(
    config, tmp_path, monkeypatch, number
):
    real, count = directory.metrics, [0]

    def interrupting(run):
        metrics = real(run)

        def add(line):
            metrics.add(line)
            count[0] += 1
            if count[0] == 2:
                os.kill(os.getpid(), number)

        return metrics._replace(add=add)

    monkeypatch.setattr(directory, "metrics", interrupting)
    with pytest.raises(KeyboardInterrupt, match="in stage teach, after epoch 2"):
        runs.start(config, tmp_path / "run")
    assert len(rows(tmp_path / "run")) == 2
    saved = tmp_path / "run" / "stages" / "00-teach" / "checkpoints" / "000008"
    assert checkpoint.damage(saved) is None


@pytest.mark.slow
def test_a_full_disk_stops_the_run_and_loses_nothing(
    config, whole, tmp_path, monkeypatch
):
    real = checkpoint.trees.save_data

    def full(path, tree):
        if "05-finetune" in str(path):
            raise OSError(28, "No space left on device")
        real(path, tree)

    monkeypatch.setattr(checkpoint.trees, "save_data", full)
    with pytest.raises(OSError, match="No space left"):
        runs.start(config, tmp_path / "run")
    assert [r["stage"] for r in read(tmp_path / "run")["rows"]] == small.STAGES[:5]
    monkeypatch.setattr(checkpoint.trees, "save_data", real)
    runs.resume(tmp_path / "run")
    assert_same(tmp_path / "run", whole)


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
