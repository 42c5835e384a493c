"""The presets of the studies, and what they refuse."""

import pathlib
import subprocess
import sys
import typing

import pytest

from experiments.studies import __main__ as studies, _config, _lab

ROOT = pathlib.Path(__file__).parents[3]


@pytest.mark.parametrize("study", typing.get_args(_config.Study))
def test_short_needs_no_archives_and_full_has_five_seeds(study):
    assert _config.resolve(_config.Config(study, "short")).dataset == "digits"
    full = _config.resolve(_config.Config(study))
    assert full.seeds >= 5
    assert full.dataset == ("cifar10" if study == "crossdata" else "fashion_mnist")


def test_options_go_before_the_preset_and_before_its_data_set():
    scale = _config.resolve(_config.Config("cost", dataset="digits", epochs=3))
    assert (scale.dataset, scale.epochs) == ("digits", 3)
    assert scale.student_images == 200  # not the 6,000 of Fashion-MNIST


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"seeds": 1}, "seeds must be >= 2, got 1"),
        ({"epochs": 0}, "epochs must be finite and > 0, got 0"),
        ({"temperatures": (1.0, -2.0)}, "temperatures must be finite and > 0, got -2"),
        ({"temperature": float("nan")}, "temperature must be finite and > 0, got nan"),
        ({"soft_weight": -0.5, "hard_weight": 1.0}, "weight must be >= 0"),
        ({"label_weights": (0.5, 1.5)}, r"label_weights must be in \[0, 1\]"),
        ({"teachers_tried": ()}, "teachers_tried must be finite and > 0"),
        ({"student_images": 10**6}, "n must be at most the 1297 examples"),
        ({"batch_size": 500}, "batch_size must be at most n = 200 examples, got 500"),
    ],
)
def test_what_cannot_work_is_refused_before_a_teacher_is_trained(
    tmp_path, monkeypatch, wrong, message
):
    monkeypatch.setattr(_lab, "_trained", lambda *_: pytest.fail("it was trained"))
    config = _config.Config("temperature", "short", out=str(tmp_path), **wrong)
    with pytest.raises(SystemExit, match=message):
        studies.main(config)


def test_help_shows_options_and_presets():
    shown = subprocess.run(
        [sys.executable, "-m", "experiments.studies", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert shown.returncode == 0, shown.stderr
    for wanted in (
        "crossdata",
        "--label-weights",
        "0.1 0.3 0.5 0.7 0.9",
        "student_images 6000",
    ):
        assert wanted in " ".join(shown.stdout.replace("│", " ").split()), wanted
