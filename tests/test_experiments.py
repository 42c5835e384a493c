"""Every experiment runs, with few images and few steps, and leaves its report."""

import os
import pathlib

import pytest

from experiments import cifar10_cnn, mnist_mlp

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


@pytest.mark.bad_input
def test_missing_archives_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXKD_DATA", str(tmp_path))
    config = mnist_mlp.Config(archives=str(tmp_path), out=str(tmp_path))
    with pytest.raises(SystemExit, match="train-images-idx3-ubyte.gz"):
        mnist_mlp.main(config)
