"""The first experiment runs small, is resumed, and refuses what cannot work."""

import json
import pathlib
import subprocess
import sys

import pytest

from experiments import quickstart

ROOT = pathlib.Path(__file__).parents[2]
TINY = {"seeds": 2, "teacher_epochs": 4, "student_steps": 30}


def test_it_leaves_its_report_and_is_resumed(tmp_path, capsys):
    results = quickstart.main(quickstart.Config(**TINY, out=str(tmp_path)))
    assert results["teacher"] > 0.3  # chance is 0.1
    assert min(results.values()) > 0.1
    assert "student distilled, 1,297 images" in capsys.readouterr().out
    (directory,) = (tmp_path / "quickstart").iterdir()
    assert "not a gain at equal data" in (directory / "report.md").read_text()
    assert (directory / "curves.svg").read_bytes().startswith(b"<svg ")

    log = directory / "metrics.jsonl"
    before = log.read_text().splitlines()
    (directory / "distilled_1297").rename(tmp_path / "away")  # as if it had been killed
    again = quickstart.Config(**TINY, resume=str(directory))
    assert quickstart.main(again) == results
    added = log.read_text().splitlines()[len(before) :]
    assert {json.loads(row)["run"] for row in added} == {"distilled_1297"}

    other = quickstart.Config(**{**TINY, "seeds": 3}, resume=str(directory))
    with pytest.raises(SystemExit, match="seeds was 2, is 3"):
        quickstart.main(other)


@pytest.mark.slow
def test_at_full_size_it_gains_three_standard_errors(tmp_path, capsys):
    results = quickstart.main(quickstart.Config(out=str(tmp_path)))
    assert results["teacher"] > 0.95
    assert (
        results["student distilled, 100 images"] > results["student alone, 100 images"]
    )
    sentence = next(
        line for line in capsys.readouterr().out.splitlines() if "100 images: " in line
    )
    gain, error = sentence.split("by ")[1].split(" points")[0].split(" ± ")
    assert float(gain) > 3 * float(error)


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
def test_no_students_are_refused():
    with pytest.raises(SystemExit, match="seeds must be >= 1, got 0"):
        quickstart.Config(seeds=0)


@pytest.mark.bad_input
def test_a_misspelt_option_is_told_its_neighbour():
    command = [sys.executable, "-m", "experiments.quickstart", "--temprature", "2"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert shown.returncode == 2
    assert "--temperature" in shown.stdout + shown.stderr
