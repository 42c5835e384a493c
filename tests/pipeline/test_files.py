"""What a run reads back is verified; what belongs to others is not touched."""

import json
import multiprocessing as mp
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from jaxkd import checkpoint, report, store
from jaxkd.__main__ import main
from jaxkd.pipeline import applying, commands, directory, reading, run as runs, summary
from tests.pipeline.small import read, without_timings

ROOT = pathlib.Path(__file__).parents[2]
TINY = """
name = "tiny"
[data]
name = "digits"
train_images = 100
[models.teacher]
kind = "mlp"
widths = [8]
[models.student]
kind = "mlp"
widths = [4]
[[stages]]
kind = "train"
model = "teacher"
epochs = 2
batch_size = 50
[[stages]]
kind = "distill"
epochs = 1
batch_size = 50
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "tiny.toml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="module")
def tiny(file, tmp_path_factory):
    """A finished run. Tests copy it."""
    return runs.start(reading.load(file), tmp_path_factory.mktemp("tiny") / "run")


@pytest.fixture
def run(tiny, tmp_path):
    shutil.copytree(tiny, tmp_path / "run")
    return tmp_path / "run"


def outcome(run):
    return without_timings(read(run))


def flip(path):
    """Changes one byte in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x55
    path.write_bytes(content)


def data_of(folder):
    """The file of a checkpoint that holds most of its arrays."""
    return max(folder.rglob("d/*"), key=lambda p: p.stat().st_size)


DAMAGES = {
    "flipped": flip,
    "empty": lambda path: path.write_bytes(b""),
    "missing": lambda path: path.unlink(),
}


FINALS = ("stages/00-train/final/meta.json", "stages/01-distill/final/jaxkd.json")
OTHERS = (
    *("stages/00-train/logits.npy", "stages/01-distill/logits.npy"),
    *("test/labels.npy", "test/index.npy", "test/images.npy"),
    *("models/student/meta.json", "models/teacher/jaxkd.json"),
    *("run.json", "results.json", "metrics.jsonl"),
)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("names", [FINALS, OTHERS], ids=["finals", "others"])
def test_what_is_damaged_is_made_again(tiny, run, names, damage):
    for name in names:
        DAMAGES[damage](run / name)
    runs.resume(run)
    assert outcome(run) == outcome(tiny)
    for path in ("stages/00-train/logits.npy", "test/labels.npy", "test/images.npy"):
        assert (run / path).read_bytes() == (tiny / path).read_bytes()
    for model in ("teacher", "student"):
        found, wanted = (checkpoint.read(r / "models" / model) for r in (run, tiny))
        assert found.meta == wanted.meta
        np.testing.assert_equal(found.tree, wanted.tree)
    assert read(run, "run.json")["sha256"] == read(tiny, "run.json")["sha256"]
    again = []
    runs.resume(run, say=again.append)
    assert not again, again  # nothing is left to be mended


def test_a_displaced_block_of_logits_is_noticed_and_computed_again(tiny, run):
    shutil.rmtree(run / "stages" / "01-distill" / "final")  # as if killed before
    logits, said = run / "stages" / "00-train" / "logits.npy", []
    raw = bytearray(logits.read_bytes())
    raw[4096:8192] = raw[128:4224]
    logits.write_bytes(raw)
    runs.resume(run, say=said.append)
    assert any(str(logits) in s and "computed again" in s for s in said)
    assert outcome(run) == outcome(tiny)


def test_weights_that_were_changed_are_refused_with_their_name(run, file, tmp_path):
    folder = run / "models" / "student"
    changed = data_of(folder)
    flip(changed)
    again = f"resume {run}, which writes it again"
    change = f"models.student.weights={str(folder)!r}"
    with pytest.raises(ValueError, match=f"{changed.name} has changed; .*{again}"):
        runs.rehearse(
            reading.load(file, [change]),
            runs.run_data.make(reading.load(file).data),
        )
    runs.resume(run)
    assert store.damage(folder) is None


@pytest.mark.bad_input
def test_weights_of_a_whole_run_name_its_models(run, file, capsys):
    change = f"models.student.weights={str(run)!r}"
    assert main(["run", str(file), "--check", "--set", change]) == 2
    err = capsys.readouterr().err
    assert f"is a run; give the folder of one of its models, {run}/models/" in err


def test_models_may_have_any_names_beside_each_other(tmp_path):
    text = TINY.replace("models.teacher", 'models."student.json"')
    text = text.replace('"teacher"', '"student.json"').replace("distill", "train")
    (tmp_path / "c.toml").write_text(text)
    run = runs.start(reading.load(tmp_path / "c.toml"), tmp_path / "run")
    for name, width in (("student.json", 8), ("student", 4)):
        found = checkpoint.read(run / "models" / name)
        assert found.tree["params"]["hidden1"]["kernel"].shape == (64, width)
        assert found.meta["recipe"] == []


@pytest.mark.bad_input
def test_a_folder_of_others_is_refused_before_any_work(file, tmp_path, monkeypatch):
    monkeypatch.setattr(runs.run_data, "make", lambda data: pytest.fail("work began"))
    project = tmp_path / "project"
    precious = project / "models" / "student" / "precious.py"
    precious.parent.mkdir(parents=True)
    precious.write_text("years of work")
    (project / "report.md").write_text("my own report")
    with pytest.raises(ValueError, match="project is not empty, and no run"):
        runs.start(reading.load(file), project)
    with pytest.raises(ValueError, match=r"report\.md is not a directory"):
        runs.start(reading.load(file), project / "report.md")
    (project / "config.toml").write_text(TINY)
    with pytest.raises(ValueError, match="project holds no run: there is no lock"):
        runs.resume(project)
    assert precious.read_text() == "years of work"
    assert sorted(p.name for p in project.iterdir()) == [
        *("config.toml", "models", "report.md")
    ]


@pytest.mark.bad_input
def test_a_report_does_not_replace_other_files(run, tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "report.html").write_text("mine")
    with pytest.raises(ValueError, match=r"report\.html was not written by jaxkd"):
        summary.write_report([run], tmp_path / "docs")
    assert (tmp_path / "docs" / "report.html").read_text() == "mine"
    for _ in range(2):
        summary.write_report([run], tmp_path / "report")
    for _ in range(2):
        summary.write_report([run])
    (run / "results.md").write_text("mine")
    with pytest.raises(ValueError, match=r"results\.md was not written by jaxkd"):
        summary.write_report([run])
    assert (run / "results.md").read_text() == "mine"


@pytest.mark.bad_input
def test_an_export_replaces_only_files_of_an_earlier_one(run, tmp_path):
    export = lambda: commands.export(run, "student", ["stablehlo"], tmp_path)
    for name in ("student.stablehlo", "student.files.json"):
        (tmp_path / name).write_text('{"files": 1}')
        with pytest.raises(ValueError, match=f"{name} was not written by jaxkd export"):
            export()
        assert (tmp_path / name).read_text() == '{"files": 1}'
        (tmp_path / name).unlink()
    for _ in range(2):
        export()
    for number, text in enumerate(("null", '{"files": null}', "[1]", "\xff{", "[]")):
        (tmp_path / f"other{number}.files.json").write_text(text)
    (tmp_path / "other.files.json").mkdir()
    applying.measure(str(tmp_path / "student.stablehlo"), "digits", "test")
    (tmp_path / "student.stablehlo").write_bytes(b"mine")
    with pytest.raises(ValueError, match="was changed since"):
        export()
    assert (tmp_path / "student.stablehlo").read_bytes() == b"mine"


def work(seed, file, to, barrier, answers):
    config = reading.load(file, [f"seed={seed}"])
    barrier.wait()
    try:
        with directory.create(config, to) as run:
            answers.put(("works", seed, str(run)))
            barrier.wait()
    except ValueError as error:
        answers.put(("refused", seed, str(error)))
        barrier.wait()


@pytest.mark.slow
def test_of_two_that_begin_at_once_one_has_the_directory(file, tmp_path):
    processes = mp.get_context("spawn")
    barrier, answers = processes.Barrier(2), processes.Queue()
    to = tmp_path / "run"
    both = [
        processes.Process(target=work, args=(seed, file, to, barrier, answers))
        for seed in (1, 2)
    ]
    for process in both:
        process.start()
    found = dict((answers.get()[:2]) for _ in both)
    for process in both:
        process.join()
    assert set(found) == {"works", "refused"}
    assert reading.load(to / "config.toml").seed == found["works"]


def test_runs_of_one_second_have_directories_of_their_own(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = reading.load(file)
    with directory.create(config) as one, directory.create(config) as other:
        assert one != other


@pytest.mark.bad_input
def test_json_of_the_wrong_type_is_named_and_never_blocks_a_resume(tiny, run, capsys):
    for text in ("", "[]", "3", "{}", '{"format": 1, "rows": [1]}'):
        (run / "run.json").write_text(text)
        (run / "results.json").write_text(text)
        for words in (["report", str(run)], ["export", str(run)]):
            assert main(words) == 2
            err = capsys.readouterr().err
            assert "results.json is damaged" in err and f"resume {run}" in err
        warned = []
        assert directory._fingerprint_in(run / "run.json", warned.append) is None
        assert "run.json is damaged" in warned[0] and "written again" in warned[0]
    runs.resume(run)
    assert outcome(run) == outcome(tiny)


def test_metrics_that_are_not_utf8_are_written_again(tiny, run):
    (run / "metrics.jsonl").write_bytes(b"\xff\xfe\n{")
    runs.resume(run)
    lines = [json.loads(r) for r in (run / "metrics.jsonl").read_text().splitlines()]
    wanted = [json.loads(r) for r in (tiny / "metrics.jsonl").read_text().splitlines()]
    assert lines == wanted  # from the stages' own records, timings and all


def test_a_changed_seed_empties_the_stages_and_blocks_nothing(tiny, run):
    text = (run / "config.toml").read_text()
    (run / "config.toml").write_text(text.replace("seed = 0", "seed = 1", 1))
    journal = run / "stages" / "00-train" / "journal.jsonl"
    journal.write_text("of the seed before")
    said = []
    runs.resume(run, say=said.append)
    assert sum("was made from other inputs" in s and "emptied" in s for s in said) == 2
    assert not journal.exists()
    assert outcome(run)["rows"][0]["digest"] != outcome(tiny)["rows"][0]["digest"]


def test_a_resume_keeps_what_others_put_beside_the_checkpoints(tiny, run):
    stage, said = run / "stages" / "00-train", []
    shutil.rmtree(stage / "final")
    before = read(stage / "checkpoints" / "000002", "meta.json")
    mine = ("analysis", "000002.bak", "000099", "000001")
    shutil.rmtree(stage / "checkpoints")
    for name in mine:
        (stage / "checkpoints" / name).mkdir(parents=True)
        (stage / "checkpoints" / name / "notes.txt").write_text(name)
    runs.resume(run, say=said.append)
    assert outcome(run) == outcome(tiny)
    assert read(stage / "checkpoints" / "000002", "meta.json").keys() == before.keys()
    found = sorted((stage / "checkpoints").rglob("notes.txt"))
    assert sorted(path.read_text() for path in found) == sorted(mine)
    assert any("it is now 000001.aside-1" in s for s in said)


@pytest.mark.parametrize("place", ["notes", "checkpoints/000002.bak", "files"])
def test_a_stage_of_other_inputs_is_set_aside_if_others_put_something_in_it(run, place):
    text, said = (run / "config.toml").read_text(), []
    (run / "config.toml").write_text(text.replace("epochs = 1\n", "epochs = 2\n"))
    (run / "stages" / "01-distill" / place).mkdir()
    (run / "stages" / "01-distill" / place / "notes.txt").write_text("mine")
    runs.resume(run, say=said.append)
    aside = run / "stages" / "01-distill.aside-1" / place / "notes.txt"
    assert aside.read_text() == "mine"
    assert any("of others; it is now 01-distill.aside-1" in s for s in said)
    assert (run / "stages" / "01-distill" / "final").is_dir()


def test_a_changed_model_is_trained_anew(tiny, run):
    text, said = (run / "config.toml").read_text(), []
    (run / "config.toml").write_text(text.replace("dropout = 0.0", "dropout = 0.5", 1))
    runs.resume(run, say=said.append)
    assert sum("was made from other inputs" in s and "emptied" in s for s in said) == 2
    assert outcome(run)["rows"][0]["digest"] != outcome(tiny)["rows"][0]["digest"]


def test_stages_that_cannot_be_recognised_are_set_aside(tiny, run):
    folder, said = run / "stages" / "00-train", []
    shutil.rmtree(folder / "final")
    (folder / store.MANIFEST).unlink()
    (folder / "notes.txt").write_text("mine")
    runs.resume(run, say=said.append)
    assert (run / "stages" / "00-train.aside-1" / "notes.txt").read_text() == "mine"
    assert any("00-train was not written by jaxkd" in s for s in said)
    assert outcome(run) == outcome(tiny)


@pytest.mark.bad_input
def test_the_table_shows_escape_sequences_as_text(run, capsys):
    found = read(run)
    found["rows"][0]["stage"] = "\x1b]0;owned\x07\x1b[31m[bold]x"
    (run / "results.json").write_text(json.dumps(found))
    report.show(summary.rows(run), f"\x1b[2J{run}")
    out, err = capsys.readouterr()
    assert "\x1b" not in out + err and "\x07" not in out + err
    assert "[bold]x" in out


ENVIRONMENT = {"JAX_PLATFORMS": "cpu"}


def command(*words, **more):
    return subprocess.Popen(
        [sys.executable, "-m", "jaxkd", *map(str, words)],
        cwd=ROOT,
        env={**os.environ, **ENVIRONMENT, **more},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_sigterm_ends_a_process_with_its_epoch_saved(file, tmp_path):
    run, last = tmp_path / "run", 100_000
    process = command("run", file, "--to", run, "--set", f"stages.0.epochs={last}")
    metrics = run / "metrics.jsonl"
    until = time.monotonic() + 120
    while not (metrics.exists() and metrics.read_text().count("\n") >= 3):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "Traceback" not in err and f"resume {run}" in err
    done = metrics.read_text().count("\n")
    assert f"in stage train, after epoch {done}" in err
    found = checkpoint.newest(run / "stages" / "00-train" / "checkpoints", pytest.fail)
    assert found is not None and len(found.meta["rows"]) == done
    assert not list(run.rglob(f"{store.PREFIX}*"))


@pytest.mark.slow
def test_two_processes_of_one_job_make_one_run(file, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    both = [
        command(
            *("run", file, "--set", f"out={str(tmp_path)!r}"),
            JAX_COORDINATOR_ADDRESS=address,
            JAX_NUM_PROCESSES="2",
            JAX_PROCESS_ID=str(number),
        )
        for number in (0, 1)
    ]
    said = [process.communicate(timeout=300)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    (made,) = (tmp_path / "tiny").iterdir()
    assert read(made)["finished"]
    assert "this is process 1 of 2" in said[1] and "process 1" not in said[0]


@pytest.mark.bad_input
def test_incomplete_variables_of_a_job_are_refused(file, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    assert main(["run", str(file), "--to", str(tmp_path / "run")]) == 2
    assert "JAX_PROCESS_ID" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
