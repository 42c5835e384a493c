"""Every experiment runs, with few images and few steps, and leaves its report."""

import os
import pathlib
import subprocess
import sys

import pytest

from experiments import cifar10_cnn, mnist_mlp, quickstart

ROOT = pathlib.Path(__file__).parents[1]
ARCHIVES = os.environ.get("JAXKD_ARCHIVES")
needs_archives = pytest.mark.skipif(
    not ARCHIVES, reason="JAXKD_ARCHIVES names no folder of the official archives"
)


def whole(directory: pathlib.Path) -> None:
    """The run directory holds what the documentation promises."""
    names = {path.name for path in directory.iterdir()}
    wanted = {
        "config.json",
        "versions.json",
        "metrics.jsonl",
        "report.md",
        "curves.png",
    }
    assert wanted <= names
    assert (directory / "curves.png").read_bytes().startswith(b"\x89PNG")


def only(directory: pathlib.Path) -> pathlib.Path:
    (found,) = directory.iterdir()
    return found


def test_quickstart_in_short_leaves_its_report(tmp_path, capsys):
    config = quickstart.Config(
        seeds=2, teacher_epochs=4, student_steps=30, out=str(tmp_path)
    )
    results = quickstart.main(config)
    chance = 0.1
    assert results["teacher"] > 3 * chance
    assert results["distilled, 100 images"] > chance < results["alone, 100 images"]
    whole(only(tmp_path / "quickstart"))
    printed = capsys.readouterr().out
    assert "student distilled, 1,297 images" in printed
    assert "not a gain at equal data" in printed


@pytest.mark.slow
def test_quickstart_at_full_size_gains_three_standard_errors(tmp_path, capsys):
    results = quickstart.main(quickstart.Config(out=str(tmp_path)))
    assert results["teacher"] > 0.95
    assert results["distilled, 100 images"] > results["alone, 100 images"]
    sentence = next(
        line for line in capsys.readouterr().out.splitlines() if "100 images: " in line
    )
    gain, error = sentence.split("by ")[1].split(" points")[0].split(" ± ")
    assert float(gain) > 3 * float(error)


@needs_archives
@pytest.mark.slow
@pytest.mark.parametrize("teacher", ["cached", "live"])
def test_mnist_mlp(tmp_path, teacher):
    results = mnist_mlp.main(
        mnist_mlp.Config(
            train_images=2000,
            teacher_epochs=2,
            epochs=2,
            seeds=2,
            teacher=teacher,
            out=str(tmp_path),
        )
    )
    assert min(results.values()) > 0.8
    whole(only(tmp_path / "mnist_mlp"))


@needs_archives
@pytest.mark.slow
def test_cifar10_cnn(tmp_path):
    results = cifar10_cnn.main(
        cifar10_cnn.Config(
            pair="wide",
            train_images=512,
            teacher_epochs=1,
            epochs=1,
            seeds=2,
            evaluate_on="validation",
            out=str(tmp_path),
        )
    )
    assert min(results.values()) > 0.1
    whole(only(tmp_path / "cifar10_cnn"))


def command(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True
    )


def test_help_shows_the_defaults():
    shown = command("experiments.quickstart", "--help")
    assert shown.returncode == 0
    assert "--few-images" in shown.stdout and "100" in shown.stdout


@pytest.mark.bad_input
def test_a_misspelt_field_is_told_its_neighbour():
    shown = command("experiments.quickstart", "--temprature", "2")
    assert shown.returncode == 2
    assert "--temperature" in shown.stdout + shown.stderr


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"temperature": 0.0}, "temperature must be finite and > 0, got 0.0"),
        ({"few_images": 20}, "batch_size must be at most n = 20 examples, got 50"),
        ({"few_images": 9999}, "n must be at most the 1297 examples"),
    ],
)
def test_what_cannot_work_is_refused_before_a_teacher_is_trained(
    tmp_path, wrong, message
):
    config = quickstart.Config(**wrong, teacher_epochs=10**9, out=str(tmp_path))
    with pytest.raises(SystemExit, match=message):
        quickstart.main(config)


@pytest.mark.bad_input
def test_missing_archives_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXKD_DATA", str(tmp_path))
    config = mnist_mlp.Config(archives=str(tmp_path), out=str(tmp_path))
    with pytest.raises(SystemExit, match="train-images-idx3-ubyte.gz"):
        mnist_mlp.main(config)
