"""The command line: exit codes, and words instead of tracebacks."""

import hashlib
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

from jaxkd import checkpoint
from jaxkd.__main__ import main
from jaxkd.pipeline import reading, toml
from tests.pipeline import small

ROOT = pathlib.Path(__file__).parents[2]
COMMANDS = ["run", "resume", "report", "eval", "features", "export", "data", "config"]

TINY = """
name = "tiny"
[data]
name = "digits"
train_images = 100
[models.student]
kind = "mlp"
widths = [8]
[[stages]]
kind = "train"
epochs = 1
batch_size = 50
[[stages]]
kind = "export"
latency = false
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "tiny.toml").write_text(TINY)
    assert main(["run", str(folder / "tiny.toml"), "--to", str(folder / "run")]) == 0
    return folder / "run"


def said(capsys, *arguments):
    code = main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return code, out, err


@pytest.mark.parametrize("words", [[], *[[c] for c in COMMANDS], ["data", "prepare"]])
def test_every_command_has_help(capsys, words):
    with pytest.raises(SystemExit) as left:
        main([*words, "--help"])
    assert left.value.code == 0
    out = capsys.readouterr().out
    assert "usage: jaxkd" in out and len(out) > 100


@pytest.mark.bad_input
@pytest.mark.parametrize("words", [[], ["rnu"], ["run"], ["run", "a", "--st", "b"]])
def test_wrong_words_are_explained_with_code_2(capsys, words):
    with pytest.raises(SystemExit) as left:
        main(words)
    assert left.value.code == 2
    assert "usage: jaxkd" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--help"], ["config", "--list"], ["run", "digitz"]])
def test_what_needs_no_jax_does_not_wait_for_it(words):
    code = (
        "import sys\nfrom jaxkd.__main__ import main\n"
        f"try: main({words})\nexcept SystemExit: pass\n"
        "print('jax' in sys.modules)"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert out.stdout.endswith("False\n"), out.stdout + out.stderr


def test_config_prints_defaults_names_and_a_file_resolved(capsys, tmp_path):
    code, out, _ = said(capsys, "config", "--defaults")
    assert code == 0 and out == toml.dumps(toml.defaults(), comments=True)
    code, out, _ = said(capsys, "config", "--list")
    assert out.split() == reading.shipped()
    change = "stages.distill.temperature=2.5"
    code, out, _ = said(capsys, "config", "digits", "--set", change)
    (tmp_path / "again.toml").write_text(out)
    again = reading.load(tmp_path / "again.toml")
    assert again.stages[2].temperature == 2.5 and again.name == "digits"
    code, out, err = said(capsys, "config")
    assert code == 2 and "--defaults" in err


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "digitz"], "did you mean digits"),
        (["run", "digits", "--set", "stages.distill.epoch=2"], "epoch: no such key"),
        (["run", "digits", "--set", "data.name=digist"], "digist"),
        (["resume", "/nowhere"], "holds no run"),
        (["report", "/nowhere"], "holds no results"),
        (["eval", "/nowhere/x.tflite"], "/nowhere/x.tflite: No such file"),
        (["features", "resnet8x5"], "did you mean resnet8x4"),
        (["features", "resnet8x4", "--image", "32"], "must be H,W,C"),
        (["features", "resnet8x4", "--classes", "0"], "classes must be >= 1"),
        (["export", "/nowhere"], "holds no results"),
        (["config", "nothing"], "no configuration nothing"),
    ],
)
def test_a_mistake_is_one_sentence_and_code_2(capsys, monkeypatch, words, message):
    monkeypatch.setattr("jaxkd.data.catalogue.listing", lambda: [])
    code, _, err = said(capsys, *words)
    assert code == 2
    assert err.startswith("error: ") and message in err


def test_check_stops_before_any_work(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.toml").write_text(TINY)
    code, out, _ = said(capsys, "run", "tiny.toml", "--check")
    assert code == 0 and "nothing was run" in out
    assert [p.name for p in tmp_path.iterdir()] == ["tiny.toml"]
    change = "stages.0.batch_size=101"
    code, _, err = said(capsys, "run", "tiny.toml", "--check", "--set", change)
    assert code == 2 and "101 is more than the 100 training images" in err


def test_features_names_taps_in_the_order_of_the_network(capsys):
    code, out, _ = said(capsys, "features", "resnet8x4", "--classes", "100")
    assert code == 0
    names = re.findall(r"^  (\w+) ", out, re.M)
    assert [n for n in names if "_" not in n and n != "unpooled"] == [
        *("stem", "stage1", "stage2", "stage3", "pooled")
    ]
    assert "8 x 8 x 256" in out
    code, out, _ = said(capsys, "features", "digits")
    assert code == 0 and "teacher:" in out and "student:" in out


def test_a_run_is_evaluated_exported_and_resumed(capsys, run, tmp_path):
    (row,) = [
        r for r in json.loads((run / "results.json").read_text())["rows"] if r["files"]
    ]
    (file,) = row["files"]
    code, out, _ = said(capsys, "eval", run / file["path"])
    assert code == 0
    found = dict(line.split() for line in out.splitlines())
    assert float(found["accuracy"]) == pytest.approx(file["accuracy"])
    code, out, _ = said(capsys, "export", run, "--to", tmp_path / "files")
    assert code == 0 and (tmp_path / "files" / "student.stablehlo").is_file()
    moved = tmp_path / "files" / "student.stablehlo"
    code, _, err = said(capsys, "eval", moved)
    assert code == 2 and "--data" in err
    code, out, _ = said(capsys, "eval", moved, "--data", "digits")
    assert code == 0 and f"accuracy {found['accuracy']}" in out
    content = moved.read_bytes()
    assert (
        json.loads((moved.parent / "student.files.json").read_text())["files"][0][
            "sha256"
        ]
        == hashlib.sha256(content).hexdigest()
    )
    moved.write_bytes(content[:-1] + b"X")
    code, _, err = said(capsys, "eval", moved, "--data", "digits")
    assert code == 2 and f"{moved} is damaged: its checksum is not" in err
    assert "jaxkd export RUN" in err
    code, _, err = said(capsys, "export", run, "--model", "studnet")
    assert code == 2 and "there are student" in err
    code, out, _ = said(capsys, "resume", run)
    assert code == 0 and "student" in out


def test_the_weights_of_a_run_load_without_it(run):
    tree = checkpoint.load(run / "models" / "student")
    assert tree["params"]["hidden1"]["kernel"].shape == (64, 8)


@pytest.mark.bad_input
def test_what_stops_a_run_has_code_1_and_says_how_to_go_on(
    capsys, tmp_path, monkeypatch
):
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    # The decay alone multiplies each weight by -9,999 a step: an overflow in ten.
    change = "stages.0.optimizer={kind='sgd', rate=1000.0, weight_decay=10.0}"
    more = ["--set", change, "--set", "stages.0.epochs=20"]
    code, _, err = said(capsys, "run", path, "--to", tmp_path / "nan", *more)
    assert code == 1 and "lower the learning rate" in err
    assert f"resume {tmp_path / 'nan'}" in err

    def full(path, tree):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.trees, "save_data", full)
    code, _, err = said(capsys, "run", path, "--to", tmp_path / "full")
    assert code == 1 and "No space left" in err


@pytest.mark.bad_input
def test_a_directory_that_cannot_be_written_is_refused_without_traceback(capsys):
    path = "/proc/nowhere/run"
    if not os.path.isdir("/proc"):
        pytest.skip("needs /proc")
    code, _, err = said(capsys, "run", "digits-prune", "--to", path)
    assert code in (1, 2) and "/proc/nowhere" in err


def test_ctrl_c_has_code_130(capsys, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt("in stage x, after epoch 3")

    monkeypatch.setattr("jaxkd.pipeline.run.resume", interrupted)
    code, _, err = said(capsys, "resume", "somewhere")
    assert code == 130 and "after epoch 3" in err


def test_data_prepare_says_where(capsys, tmp_path):
    code, out, _ = said(capsys, "data", "prepare", "digits", "--data-dir", tmp_path)
    assert code == 0 and str(tmp_path) in out


def test_small_is_a_configuration(tmp_path):
    assert small.config(tmp_path).name == "small"
