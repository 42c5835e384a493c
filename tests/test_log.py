"""The run directory, and checkpoints in it."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import checkpoint, log


@dataclasses.dataclass(frozen=True)
class Config:
    width: int = 3


def test_rows_are_lines_on_disk_as_soon_as_they_are_written(tmp_path):
    write = log.start(tmp_path / "run", Config())
    write({"epoch": 1, "loss": 0.5})
    write({"epoch": 2, "loss": [0.25, 0.5]})
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    rows = [{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": [0.25, 0.5]}]
    assert [json.loads(line) for line in lines] == rows
    assert json.loads((tmp_path / "run" / "config.json").read_text()) == {"width": 3}
    versions = json.loads((tmp_path / "run" / "versions.json").read_text())
    assert {"jax", "python", "device"} <= set(versions)


def test_a_run_never_writes_over_another(tmp_path):
    log.start(tmp_path / "run")
    with pytest.raises(ValueError, match="holds a run already"):
        log.start(tmp_path / "run")


def test_the_bar_is_silent_in_a_pipe(capsys):
    with log.bar("train", 3) as tick:
        tick({"loss": 0.5, "accuracy": [0.5, 0.7]})
        tick()
    assert capsys.readouterr() == ("", "")


def test_a_tree_comes_back_from_disk(tmp_path):
    tree = {
        "params": {"w": jnp.arange(6.0).reshape(2, 3)},
        "state": {"n": jnp.ones(2, int)},
    }
    checkpoint.save(tmp_path / "net", tree)
    for back in (
        checkpoint.load(tmp_path / "net"),
        checkpoint.load(tmp_path / "net", like=tree),
    ):
        np.testing.assert_array_equal(back["params"]["w"], tree["params"]["w"])
        np.testing.assert_array_equal(back["state"]["n"], tree["state"]["n"])


@pytest.mark.bad_input
def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint at .*nowhere"):
        checkpoint.load(tmp_path / "nowhere")
