"""Run the stages in order, each resumed from its checkpoints."""

import hashlib
import json
import os
import pathlib
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import msgspec
import numpy as np

from jaxkd import checkpoint, store
from jaxkd.pipeline import (
    directory,
    limits,
    loading,
    measuring,
    networks,
    outcomes,
    reading,
    run_data,
    state,
)
from jaxkd.pipeline.config import AnyStage, Config
from jaxkd.pipeline.networks import Model
from jaxkd.pipeline.run_data import RunData
from jaxkd.pipeline.stages import exporting, pruning, searching
from jaxkd.pipeline.stages.context import StageContext

Say = Callable[[str], None]
Row = dict[str, Any]
FINAL, LOGITS = "final", "logits.npy"
# What lies in the folder of a stage beside its checkpoints and exported files.
WRITTEN = (
    *(store.MANIFEST, FINAL, LOGITS, searching.JOURNAL),
    *(pruning.GROUPS, pruning.SENSITIVITIES, pruning.SEARCH),
)


def silent(text: str) -> None:
    """Report nothing."""


def rehearse(config: Config, splits: RunData) -> None:
    """Trace all stages in shapes: nothing is trained, written or kept.

    Raises:
      ValueError: naming the stage that cannot work.
    """
    limits.check(config, splits)
    models = loading.models(config, splits)
    with tempfile.TemporaryDirectory() as nowhere:
        for place, stage in enumerate(config.stages):
            context = _context(
                config, place, splits, models, pathlib.Path(nowhere), "", silent
            )
            try:
                held = stage.rehearse(context)
            except (ValueError, KeyError) as error:
                text = error.args[0] if error.args else error
                here = f"stages.{place} ({stage.kind})"
                raise ValueError(f"{here}: {text}") from error
            models = {**models, stage.model: held}


def start(
    config: Config,
    path: str | os.PathLike | None = None,
    *,
    say: Say = silent,
    created: Say = silent,
) -> pathlib.Path:
    """Run a configuration in a new directory.

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
    _one_process()
    directory.require_free(path)
    splits = run_data.make(config.data)
    rehearse(config, splits)
    with directory.create(config, path) as run:
        created(str(run))
        go(run, config, splits, say)
    return run


def resume(
    path: str | os.PathLike, *, say: Say = silent, opened: Say = silent
) -> pathlib.Path:
    """Resume a run that was killed, interrupted or stopped by an error.

    Args:
      path: its directory.
      say: told what is being done.
      opened: told the directory when it turns out to be a run.

    Raises:
      ValueError: if there is no run, or its data are no longer the same; and what
        `start` raises.
    """
    _one_process()
    run = pathlib.Path(path).absolute()
    for name in (directory.CONFIG, directory.LOCK):
        if not (run / name).exists():
            raise ValueError(f"{path} holds no run: there is no {name}")
    config = reading.load(run / directory.CONFIG)
    with directory.locked(run):
        splits = run_data.make(config.data)
        opened(str(run))
        directory.clean(run)
        go(run, config, splits, say)
    return run


def _one_process() -> None:
    if jax.process_count() > 1:
        raise ValueError(
            f"a run is made by one process, and this is one of {jax.process_count()}: "
            "start it without jax.distributed"
        )


class Progress(NamedTuple):
    """What the stages so far have left.

    Attributes:
      models: as they are.
      rows: of metrics.jsonl.
      results: of results.json.
      teacher: the logits of the model that others are compared with, if there are any.
    """

    models: dict[str, Model]
    rows: list[Row]
    results: list[Row]
    teacher: np.ndarray | None


def go(run: pathlib.Path, config: Config, splits: RunData, say: Say) -> None:
    """Run the stages that are not done."""
    directory.describe(run, config, splits, say)
    data = directory.fingerprint(splits)
    models = loading.models(config, splits)
    done = Progress(models, [], *outcomes.of_weights(run, config, splits, models))
    for place, stage in enumerate(config.stages):
        begins = _begins(config, place, done.models, data)
        context = _context(
            config, place, splits, done.models, run, begins, say, done.rows
        )
        final = _final(stage, context)
        if final is not None:
            done = _after(stage, context, done, final)
            continue
        say(f"stage {place + 1} of {len(config.stages)}: {stage.name}")
        done = _stage(stage, context, done)
        outcomes.write(run, config, done.results, finished=False)
    directory.metrics(run).reset(done.rows)
    for name, held in done.models.items():
        outcomes.write_model(
            run, name, held, config.models[name], splits.preprocessing, say
        )
    outcomes.write(run, config, done.results, finished=True)


def _context(
    config: Config,
    place: int,
    splits: RunData,
    models: dict[str, Model],
    run: pathlib.Path,
    begins: str,
    say: Say,
    rows: list[Row] | None = None,
) -> StageContext:
    folder = run / "stages" / f"{place:02d}-{config.stages[place].name}"
    whole = directory.metrics(run)
    before = list(rows or [])
    metrics = whole._replace(reset=lambda rows: whole.reset([*before, *rows]))
    return StageContext(config, place, splits, models, folder, begins, metrics, say)


def _begins(config: Config, place: int, models: dict[str, Model], data: str) -> str:
    """Return a digest of all that decides what a stage makes."""
    stage = config.stages[place]
    fields = ("model", "teacher", "source")
    names = [name for field in fields for name in stage.names(field)]
    tables = [msgspec.to_builtins(config.models[name]) for name in names]
    for table in tables:
        table.pop("weights", None)  # a path; what it holds is in the models' digests
    told = msgspec.to_builtins((config.seed, place, config.data, stage, data, tables))
    own = hashlib.sha256(json.dumps(told).encode()).hexdigest()
    return "+".join([own, *(state.digest(models[name]) for name in names)])


def _stage(stage: AnyStage, context: StageContext, done: Progress) -> Progress:
    """Run a stage, and keep what it has made in its `final`."""
    begin = time.perf_counter()
    _open_folder(context)
    made = stage.run(context)
    seconds = time.perf_counter() - begin
    result, logits = outcomes.of_stage(stage, context, made, done.teacher, seconds)
    if result is not None and logits is not None:
        sha256 = directory.write_array(context.folder / LOGITS, logits)
        result["logits_sha256"] = sha256
    notes = {
        **state.meta(made.held),
        "begins": context.begins,
        "rows": made.rows,
        "result": result,
    }
    checkpoint.write(context.folder / FINAL, state.tree(made.held), notes)
    return _after(
        stage, context, done, FinishedStage(made.held, made.rows, result, logits)
    )


def _open_folder(context: StageContext) -> None:
    """Make the stage's folder, without what was made from other inputs."""
    wanted = store.identity(begins=context.begins)
    store.make_way(context.folder, context.warn)
    if differ := store.open_dir(context.folder, wanted):
        why = f"{context.folder} was made from other inputs ({differ})"
        if others := _others(context.folder):
            aside = store.set_aside(context.folder).name
            context.warn(f"{why} and holds {others[0]}, of others; it is now {aside}")
        else:
            context.warn(f"{why}; it is emptied")
            store.remove_dir(context.folder)
        store.open_dir(context.folder, wanted)
    store.make_way(context.folder / FINAL, context.warn)


def _others(folder: pathlib.Path) -> list[pathlib.Path]:
    """Return what lies in the folder of a stage and was not written by one."""
    steps, files = folder / "checkpoints", folder / "files"
    known = {folder / name for name in WRITTEN} | {steps, files}
    parts = [p for p in steps.glob("part-*") if p.name[5:].isdecimal()]
    written = [path for each in (steps, *parts) for path in checkpoint.steps(each)]
    known |= {*parts, *written, *exporting.recorded(files)}
    inside = [p for each in (folder, steps, *parts, files) for p in _inside(each)]
    return [p for p in inside if p not in known and not p.name.startswith(store.PREFIX)]


def _inside(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


class FinishedStage(NamedTuple):
    """What a stage has made: the model, its rows, its result, its logits."""

    held: Model
    rows: list[Row]
    result: Row | None
    logits: np.ndarray | None


def _after(
    stage: AnyStage, context: StageContext, done: Progress, final: FinishedStage
) -> Progress:
    teaches = stage.model == outcomes.teacher_of(context.config)
    return Progress(
        {**done.models, stage.model: final.held},
        [*done.rows, *final.rows],
        [*done.results, *([] if final.result is None else [final.result])],
        final.logits if teaches else done.teacher,
    )


def _final(stage: AnyStage, context: StageContext) -> FinishedStage | None:
    """Return what a stage has made, if it is done and began with what there is now."""
    path = context.folder / FINAL
    store.recover(path)
    if not path.is_dir():
        return None
    try:
        found = checkpoint.read(path)
        if found.meta["begins"] != context.begins:
            raise ValueError(f"{path} was made from other inputs")
        params, extra = state.variables(found.tree, found.meta)
        recipe = tuple(found.meta["recipe"])
        net = networks.build(
            context.config.models[stage.model],
            recipe,
            params,
            extra,
            classes=context.splits.classes,
            image_shape=context.splits.image_shape,
        )
        # Of a search: a network that has yet to be trained.
        held = (
            Model(net, params, extra, recipe) if params else Model(net, recipe=recipe)
        )
        result = found.meta["result"]
        logits = None if result is None else _logits(held, context, result)
    except (OSError, ValueError) as error:
        context.warn(f"{error}; the stage is done again")
        return None
    return FinishedStage(held, found.meta["rows"], result, logits)


def _logits(held: Model, context: StageContext, result: Row) -> np.ndarray:
    """Return the logits that a stage has left, computed again if they are damaged.

    Raises:
      ValueError: if they then differ, as on another device.
    """
    file, sha256 = context.folder / LOGITS, result["logits_sha256"]
    try:
        return directory.read_array(file, sha256)
    except (OSError, ValueError) as error:
        context.warn(f"{error}; it is computed again")
    logits = measuring.logits(held, context.splits)
    if directory.write_array(file, logits) != sha256:
        raise ValueError(f"{file} is not what the stage had computed")
    return logits
