"""The experiment runs small, on the digits in the package."""

import pytest

from experiments import mnist


def test_it_leaves_its_report(tmp_path):
    config = mnist.Config(
        dataset="digits",
        train_images=400,
        teacher="live",
        teacher_epochs=2,
        epochs=2,
        seeds=2,
        out=str(tmp_path),
    )
    results = mnist.main(config)
    assert set(results) == {"teacher", "student alone", "student distilled"}
    assert min(results.values()) > 0.5  # chance is 0.1
    (directory,) = (tmp_path / "mnist").iterdir()
    names = {path.name for path in directory.iterdir()}
    assert names > {"config.json", "versions.json", "metrics.jsonl", "curves.svg"}
    report = (directory / "report.md").read_text()
    assert "| student distilled |" in report and "points (paired seeds" in report


@pytest.mark.bad_input
def test_missing_archives_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXKD_DATA", str(tmp_path))
    config = mnist.Config(archives=str(tmp_path), out=str(tmp_path))
    with pytest.raises(SystemExit, match="train-images-idx3-ubyte.gz"):
        mnist.main(config)
