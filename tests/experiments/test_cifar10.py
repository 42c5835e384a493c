"""The experiment runs small, on the digits in the package."""

from experiments import cifar10


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
