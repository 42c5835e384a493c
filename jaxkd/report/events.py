"""The rows of runs as TensorBoard's event files."""

import importlib.util
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from jaxkd import store
from jaxkd.report.reading import RunRecord, read

FOLDER = "tensorboard"


def write(runs: Sequence[str | os.PathLike]) -> list[pathlib.Path]:
    """Write the metrics of runs for `tensorboard --logdir`, replacing earlier ones.

    Each stage is a run of TensorBoard's, in RUN/tensorboard/STAGE, with one point for
    each number of each epoch. They are made from metrics.jsonl, at any time, also while
    a run goes on; a resumed run has no point twice.

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
    return [_write(read(run)) for run in runs]


def _write(run: RunRecord) -> pathlib.Path:
    from tensorboardX import SummaryWriter

    stages: dict[str, list[dict[str, Any]]] = {}
    for row in run.metrics:
        if "epoch" in row:
            stages.setdefault(row["stage"], []).append(row)

    def fill(folder: pathlib.Path) -> None:
        for stage, rows in stages.items():
            with SummaryWriter(str(folder / stage), write_to_disk=True) as writer:
                for row in rows:
                    for name, value in row.items():
                        if isinstance(value, int | float) and name != "epoch":
                            writer.add_scalar(name, value, row["epoch"])

    store.write_dir(run.path / FOLDER, fill)
    return run.path / FOLDER
