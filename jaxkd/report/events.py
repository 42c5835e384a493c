"""The rows of runs as TensorBoard's event files."""

import importlib.util
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from jaxkd import store
from jaxkd.report import reading

FOLDER = "tensorboard"


def write(runs: Sequence[str | os.PathLike]) -> list[pathlib.Path]:
    """Writes the metrics of runs for `tensorboard --logdir`; those of before go.

    Each stage is a run of TensorBoard's, in RUN/tensorboard/STAGE, with one point for
    each number of each epoch. Made from metrics.jsonl, so that it can be asked for at
    any time, also while a run goes on, and a resumed run has no point twice.

    Args:
      runs: directories of runs.

    Returns:
      The folder of each run.

    Raises:
      ImportError: if tensorboardX is not installed.
    """
    if importlib.util.find_spec("tensorboardX") is None:
        raise ImportError(
            "TensorBoard's files need tensorboardX: pip install "
            "'jaxkd-distill[tensorboard]'"
        )
    return [_write(reading.read(run)) for run in runs]


def _write(run: reading.Run) -> pathlib.Path:
    from tensorboardX import SummaryWriter

    stages: dict[str, list[reading.Row]] = {}
    for row in run.metrics:
        name = str(row.get("stage"))  # of a folder, which must lie in the run's
        if "epoch" in row and pathlib.PurePath(name).name == name != "..":
            stages.setdefault(name, []).append(row)

    def fill(folder: pathlib.Path) -> None:
        for stage, rows in stages.items():
            with SummaryWriter(str(folder / stage), write_to_disk=True) as writer:
                for row in rows:
                    for name, value in _numbers(row).items():
                        writer.add_scalar(name, value, row["epoch"])

    store.write_dir(run.path / FOLDER, fill)
    return run.path / FOLDER


def _numbers(row: dict[str, Any]) -> dict[str, float]:
    """What can be drawn over the epochs."""
    found = {name: reading.number(value) for name, value in row.items()}
    return {n: v for n, v in found.items() if v is not None and n != "epoch"}
