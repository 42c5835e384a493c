"""The rows of runs as TensorBoard's event files."""

import importlib.util
import os
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

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

    folder = run.path / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    stages: dict[str, list[reading.Row]] = {}
    for row in run.metrics:
        if "epoch" in row:
            stages.setdefault(row["stage"], []).append(row)
    for stage, rows in stages.items():
        with SummaryWriter(str(folder / stage), write_to_disk=True) as writer:
            for row in rows:
                for name, value in _numbers(row).items():
                    writer.add_scalar(name, value, row["epoch"])
    return folder


def _numbers(row: dict[str, Any]) -> dict[str, float]:
    """What can be drawn over the epochs."""
    found = {name: reading.number(value) for name, value in row.items()}
    return {n: v for n, v in found.items() if v is not None and n != "epoch"}
