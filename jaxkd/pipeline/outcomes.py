"""Rows of results.json, and the models that a run leaves."""

import pathlib
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxkd import checkpoint, store
from jaxkd.data import Preprocessing
from jaxkd.pipeline import directory, measuring, networks, state
from jaxkd.pipeline.config import AnyStage, Config
from jaxkd.pipeline.networks import Model
from jaxkd.pipeline.parts import ModelTable
from jaxkd.pipeline.run_data import RunData
from jaxkd.pipeline.stages.context import StageContext, StageResult

Row = dict[str, Any]


def teacher_of(config: Config) -> str | None:
    """Return the model that others are compared with: the first that teaches."""
    named = [name for stage in config.stages for name in stage.names("teacher")]
    fallback = "teacher" if "teacher" in config.models else None
    return next(iter(named), fallback)


def of_stage(
    stage: AnyStage,
    context: StageContext,
    made: StageResult,
    teacher: np.ndarray | None,
    seconds: float,
) -> tuple[Row | None, np.ndarray | None]:
    """The row of a stage and its logits; of a search none: nothing is trained yet.

    Args:
      stage: as configured.
      context: what it was given.
      made: what it has made.
      teacher: logits of the model that others are compared with, if there are any.
      seconds: that it took.
    """
    if made.held.params is None:
        return None, None
    logits = measuring.logits(made.held, context.splits)
    if stage.model == teacher_of(context.config):
        teacher = logits
    speeds = [row["images/s"] for row in made.rows if "images/s" in row]
    about = {
        "index": context.place,
        "stage": stage.name,
        "kind": stage.kind,
        "model": stage.model,
        "directory": f"stages/{context.folder.name}",
    }
    row = {
        **about,
        **_measured(made.held, logits, context.splits, teacher),
        "epochs": made.epochs,
        "seconds": round(seconds, 3),
        "images/s": statistics.median(speeds) if speeds else None,
        "digest": state.digest(made.held),
        "files": list(made.files),
    }
    return row, logits


def of_weights(
    run: pathlib.Path, config: Config, splits: RunData, models: dict[str, Model]
) -> tuple[list[Row], np.ndarray | None]:
    """Rows of the models that came with weights, and the teacher's logits if it did.

    Their logits are written.
    """
    results, teacher = [], None
    brought = [name for name, held in models.items() if held.params is not None]
    for name in sorted(brought, key=lambda n: n != teacher_of(config)):
        folder = f"stages/weights-{name}"
        logits = measuring.logits(models[name], splits)
        sha256 = directory.write_array(run / folder / "logits.npy", logits)
        if name == teacher_of(config):
            teacher = logits
        about = {
            "index": -1,
            "stage": f"weights-{name}",
            "kind": "weights",
            "model": name,
            "directory": folder,
        }
        after: Row = {
            "epochs": 0,
            "seconds": 0.0,
            "images/s": None,
            "digest": state.digest(models[name]),
            "files": [],
            "logits_sha256": sha256,
        }
        measured = _measured(models[name], logits, splits, teacher)
        results.append({**about, **measured, **after})
    return results, teacher


def _measured(
    held: Model, logits: np.ndarray, splits: RunData, teacher: np.ndarray | None
) -> Row:
    return {
        **measuring.quality(logits, splits.test.labels, teacher),
        "accuracy_by_class": measuring.by_class(
            logits, splits.test.labels, splits.classes
        ),
        **measuring.size(held, splits.image_shape),
    }


def write(
    run: pathlib.Path, config: Config, results: list[Row], *, finished: bool
) -> None:
    """Write results.json."""
    content = {
        "format": directory.FORMAT,
        "name": config.name,
        "seed": config.seed,
        "teacher": teacher_of(config),
        "finished": finished,
        "rows": results,
    }
    directory.write_json(run / directory.RESULTS, content)


def write_model(
    run: pathlib.Path,
    name: str,
    held: Model,
    model: ModelTable,
    preprocessing: Preprocessing,
    warn: Callable[[str], None],
) -> None:
    """Leave a model where `checkpoint.load` and `weights =` find it."""
    if held.params is None:
        return
    folder = run / "models" / name
    about = networks.description(model)
    notes = store.identity(
        digest=state.digest(held),
        model=about,
        preprocessing=preprocessing.to_json(),
        **state.meta(held),
    )
    try:
        if store.is_ours(folder) and checkpoint.read(folder).meta == notes:
            return
    except ValueError as error:
        warn(f"{error}; it is written again")
    store.make_way(folder, warn)
    checkpoint.write(folder, state.tree(held), notes)
