"""The experiment runs small, on the digits in the package."""

import pytest

from experiments import cifar10


@pytest.mark.slow
def test_the_wide_pair_learns(tmp_path):
    config = cifar10.Config(
        pair="wide",
        dataset="digits",
        teacher_epochs=2,
        epochs=2,
        seeds=1,
        evaluate_on="validation",
        out=str(tmp_path),
    )
    results = cifar10.main(config)
    assert set(results) == {"teacher", "student alone", "student distilled"}
    assert min(results.values()) > 0.5  # chance is 0.1
    (directory,) = (tmp_path / "cifar10").iterdir()
    assert "| student distilled |" in (directory / "report.md").read_text()


@pytest.mark.bad_input
def test_what_cannot_work_is_refused_before_a_teacher_is_trained(tmp_path):
    config = cifar10.Config(
        dataset="digits", pair="wide", temperature=0.0, out=str(tmp_path)
    )
    with pytest.raises(SystemExit, match="temperature must be finite and > 0, got 0"):
        cifar10.main(config)
    assert not list(tmp_path.iterdir())
