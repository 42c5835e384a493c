"""A run: stage after stage, each from where it was if it had begun."""

import hashlib
import json
import os
import pathlib
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec
import numpy as np

from jaxkd import checkpoint
from jaxkd.pipeline import (
    directory,
    loading,
    networks,
    order,
    outcomes,
    reading,
    state,
    world as worlds,
)
from jaxkd.pipeline.config import AnyStage, Config
from jaxkd.pipeline.networks import Held
from jaxkd.pipeline.stages import kinds
from jaxkd.pipeline.stages.job import Job
from jaxkd.pipeline.world import World

Say = Callable[[str], None]
Row = dict[str, Any]


def silent(text: str) -> None:
    """Says nothing."""


def rehearse(config: Config, world: World) -> None:
    """Goes through all stages in shapes: nothing is trained, written or kept.

    Raises:
      ValueError: naming the stage that cannot work.
    """
    models = loading.models(config, world)
    with tempfile.TemporaryDirectory() as nowhere:
        for place, stage in enumerate(config.stages):
            job = _job(config, place, world, models, pathlib.Path(nowhere), "", silent)
            try:
                held = kinds.rehearse(stage, job)
            except (ValueError, KeyError) as error:
                text = error.args[0] if error.args else error
                here = f"stages.{place} ({order.kind_of(stage)})"
                raise ValueError(f"{here}: {text}") from error
            models = {**models, stage.model: held}


def start(
    config: Config,
    path: str | os.PathLike | None = None,
    *,
    say: Say = silent,
    created: Say = silent,
) -> pathlib.Path:
    """Runs a configuration in a new directory.

    Args:
      config: from `reading.load`.
      path: of the directory; by default `out/name/TIME`.
      say: told what is being done.
      created: told the directory as soon as there is one.

    Returns:
      The directory.

    Raises:
      ValueError: before any work, if something does not fit together.
      FloatingPointError: if a training diverges.
      OSError: if something cannot be written.
      KeyboardInterrupt: after Ctrl-C, when what there is has been saved.
    """
    world = worlds.make(config.data)
    rehearse(config, world)
    run = directory.create(config, path)
    created(str(run))
    with directory.locked(run):
        go(run, config, world, say)
    return run


def resume(
    path: str | os.PathLike, *, say: Say = silent, opened: Say = silent
) -> pathlib.Path:
    """Goes on with a run that was killed, interrupted or stopped by an error.

    Args:
      path: its directory.
      say: told what is being done.
      opened: told the directory when it turns out to be a run.

    Raises:
      ValueError: if there is no run, or its data are no longer the same; and what
        `start` raises.
    """
    run = pathlib.Path(path).absolute()
    if not (run / directory.CONFIG).exists():
        raise ValueError(f"{path} holds no run: there is no {directory.CONFIG}")
    config = reading.load(run / directory.CONFIG)
    with directory.locked(run):
        world = worlds.make(config.data)
        opened(str(run))
        go(run, config, world, say)
    return run


class Course(NamedTuple):
    """A run as far as it has come.

    Attributes:
      models: as they are.
      rows: of metrics.jsonl.
      results: of results.json.
      teacher: the logits of the model that others are compared with, if there are any.
    """

    models: dict[str, Held]
    rows: list[Row]
    results: list[Row]
    teacher: np.ndarray | None


def go(run: pathlib.Path, config: Config, world: World, say: Say) -> None:
    """Does the stages that are not done."""
    directory.describe(run, config, world)
    models = loading.models(config, world)
    course = Course(models, [], *outcomes.of_weights(run, config, world, models))
    for place, stage in enumerate(config.stages):
        begins = _begins(config, place, course.models)
        job = _job(config, place, world, course.models, run, begins, say, course.rows)
        final = _final(stage, job)
        if final is not None:
            course = _after(stage, job, course, final)
            continue
        say(f"stage {place + 1} of {len(config.stages)}: {stage.name}")
        course = _stage(stage, job, course)
        outcomes.write(run, config, course.results, finished=False)
    directory.metrics(run).reset(course.rows)
    for name, held in course.models.items():
        outcomes.write_model(run, name, held)
    outcomes.write(run, config, course.results, finished=True)


def _job(
    config: Config,
    place: int,
    world: World,
    models: dict[str, Held],
    run: pathlib.Path,
    begins: str,
    say: Say,
    rows: list[Row] | None = None,
) -> Job:
    folder = run / "stages" / f"{place:02d}-{config.stages[place].name}"
    whole = directory.metrics(run)
    before = list(rows or [])
    metrics = whole._replace(reset=lambda rows: whole.reset([*before, *rows]))
    return Job(config, place, world, models, folder, begins, metrics, say)


def _begins(config: Config, place: int, models: dict[str, Held]) -> str:
    """A digest of all that decides what a stage makes."""
    stage = config.stages[place]
    names = [getattr(stage, field, "") for field in ("model", "teacher", "source")]
    told = msgspec.to_builtins((config.seed, place, config.data, stage))
    own = hashlib.sha256(json.dumps(told).encode()).hexdigest()
    return "+".join([own, *(state.digest(models[name]) for name in names if name)])


def _stage(stage: AnyStage, job: Job, course: Course) -> Course:
    """Does a stage, and keeps what it has made in its `final`."""
    begin = time.perf_counter()
    job.folder.mkdir(parents=True, exist_ok=True)
    made = kinds.run(stage, job)
    seconds = time.perf_counter() - begin
    result, logits = outcomes.of_stage(stage, job, made, course.teacher, seconds)
    if logits is not None:
        directory.write_array(job.folder / "logits.npy", logits)
    notes = {
        **state.meta(made.held),
        "begins": job.begins,
        "rows": made.rows,
        "result": result,
    }
    checkpoint.write(job.folder / "final", state.tree(made.held), notes)
    return _after(stage, job, course, Final(made.held, made.rows, result, logits))


class Final(NamedTuple):
    """What a stage has made: the model, its rows, its result, its logits."""

    held: Held
    rows: list[Row]
    result: Row | None
    logits: np.ndarray | None


def _after(stage: AnyStage, job: Job, course: Course, final: Final) -> Course:
    teaches = stage.model == outcomes.teacher_of(job.config)
    return Course(
        {**course.models, stage.model: final.held},
        [*course.rows, *final.rows],
        [*course.results, *([] if final.result is None else [final.result])],
        final.logits if teaches else course.teacher,
    )


def _final(stage: AnyStage, job: Job) -> Final | None:
    """What a stage has made, if it is done and began with what there is now."""
    path = job.folder / "final"
    if not path.is_dir():
        return None
    try:
        found = checkpoint.read(path)
        if found.meta["begins"] != job.begins:
            raise ValueError(f"{path} is of another beginning")
        result, logits = found.meta["result"], None
        if result is not None:
            logits = np.load(job.folder / "logits.npy")
    except (OSError, ValueError) as error:
        job.warn(f"{error}; the stage is done again")
        return None
    params, extra = state.variables(found.tree, found.meta)
    recipe = tuple(found.meta["recipe"])
    net = networks.build(
        job.config.models[stage.model],
        recipe,
        params,
        extra,
        classes=job.world.classes,
        image_shape=job.world.image_shape,
    )
    # Of a search: a network that has yet to be trained.
    held = Held(net, params, extra, recipe) if params else Held(net, recipe=recipe)
    return Final(held, found.meta["rows"], result, logits)
