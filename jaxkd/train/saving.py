"""A training that is saved in a folder, and resumed from it."""

import pathlib
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxkd import checkpoint, log as logs, store
from jaxkd.data import Stream, count
from jaxkd.distill import TrainState
from jaxkd.train.loop import Place, Run, fit
from jaxkd.train.programs import Epoch, Step
from jaxkd.types import Batch


class Saving(NamedTuple):
    """Where, when and under which identity a training is saved.

    Attributes:
      folder: of the checkpoints, each named after its number of steps, "000048".
      facts: what the training depends on, from `store.identity`; a folder with other
        facts is refused.
      warn: told of damaged checkpoints.
      epochs: save after this number of epochs, and after the last.
      steps: save after this number of steps within an epoch; None: between epochs only.
      keep: how many of the latest checkpoints stay.
      best: the metric whose best epoch's checkpoint stays as well; None is none.
      take_best: whether `run` returns that epoch's state in place of the last.
    """

    folder: pathlib.Path
    facts: dict[str, Any]
    warn: Callable[[str], None] = warnings.warn
    epochs: int = 1
    steps: int | None = None
    keep: int = 2
    best: str | None = None
    take_best: bool = False


class Begun(NamedTuple):
    """What a training starts from: its first state, or what a checkpoint holds."""

    state: TrainState
    place: Place
    rows: list[logs.Row]


def begin(
    saving: Saving | None, init: Callable[[], TrainState], *, epochs: int, steps: int
) -> Begun:
    """Read the newest whole checkpoint, or make the first state where there is none.

    Later checkpoints, which are damaged, are removed. Anything else under the name of a
    later checkpoint is renamed.

    Args:
      saving: None if the training is not saved.
      init: makes the first state.
      epochs: where the training ends.
      steps: of an epoch.

    Raises:
      ValueError: if the folder holds checkpoints of another training.
    """
    if saving is None:
        return Begun(init(), Place(), [])
    folder = saving.folder

    def has_best(meta: dict[str, Any]) -> bool:
        if not saving.take_best or not meta.get("rows"):
            return True
        return checkpoint.damage(_best_path(saving, meta["rows"], steps)) is None

    found = checkpoint.newest(folder, saving.warn, wanted=has_best)
    step = 0 if found is None else found.meta["step"]
    checkpoint.clear_after(folder, step, epochs * steps, saving.warn)
    if found is None:
        return Begun(init(), Place(), [])
    _require_same(saving, found.meta)
    state = checkpoint.like(found.tree, jax.eval_shape(init))
    return Begun(state, Place(*found.meta["place"]), list(found.meta["rows"]))


def _require_same(saving: Saving, meta: dict[str, Any]) -> None:
    theirs = dict(meta.get("training", {}))
    step = theirs.get("step", {})
    if "step" in saving.facts and step.get("jax") != jax.__version__:
        saving.warn(
            f"{saving.folder} was written under jax "
            f"{step.get('jax', 'of unknown version')}: "
            "whether network, optimiser and view are the same is not checked"
        )
        digests = ("step", "view")
        theirs |= {name: saving.facts[name] for name in digests if name in saving.facts}
    store.require_same(saving.folder, theirs, saving.facts)


def run(
    program: Epoch | Step,
    begun: Begun,
    teacher_variables: Any,
    examples: Batch | Stream,
    saving: Saving | None,
    *,
    epochs: int,
    **options: Any,
) -> Run:
    """Run `fit` from where a training has begun, and save it.

    Args:
      program: as in `fit`.
      begun: from `begin`; its state is donated.
      teacher_variables: as in `fit`.
      examples: as in `fit`.
      saving: None if the training is not saved.
      epochs: where to end.
      **options: further arguments of `fit`: key, evaluate, log, name, progress.

    Returns:
      The run, with the rows of all epochs. One that was interrupted has been saved.
    """
    rows = list(begun.rows)

    def after(state: TrainState, row: logs.Row) -> logs.Row:
        rows.append(row)
        return {}

    options = {**options, "epochs": epochs, "start": begun.place, "after": after}
    if saving is None:
        ended = fit(program, begun.state, teacher_variables, examples, **options)
        return ended._replace(history=rows)
    steps = steps_of(program, examples)
    shapes = jax.eval_shape(lambda: begun.state)
    skipped = None  # the place after an epoch that was not written
    with checkpoint.writer(
        saving.folder, keep=saving.keep, best=saving.best is not None
    ) as writer:

        def write(state: TrainState, place: Place, score: float | None = None) -> None:
            meta = {"training": saving.facts, "place": [*place], "rows": rows}
            number = place.epoch * steps + place.step
            writer.save(number, state, meta, score=score)

        def save(state: TrainState, place: Place) -> None:
            nonlocal skipped
            score, improves = None, False
            if saving.best is not None and not place.step:
                score = rows[-1][saving.best]
                before = [row[saving.best] for row in rows[:-1]]
                improves = score > max(before, default=-np.inf)
            last = place.epoch == epochs or not place.epoch % saving.epochs
            due = bool(place.step or last or improves)
            skipped = None if due else place
            if due:
                write(state, place, score)

        ended = fit(
            program, begun.state, teacher_variables, examples,
            save=save, save_every=saving.steps, **options,
        )  # fmt: skip
        if ended.interrupted and skipped is not None:
            write(ended.state, skipped)
    state = ended.state
    if saving.take_best and not ended.interrupted and rows:
        saved = checkpoint.read(_best_path(saving, rows, steps))
        state = checkpoint.like(saved.tree, shapes)
    return ended._replace(state=state, history=rows)


def _best_path(saving: Saving, rows: list[logs.Row], steps: int) -> pathlib.Path:
    """Return where the first checkpoint of the highest score is."""
    metric = saving.best or ""
    epoch = int(np.argmax([row[metric] for row in rows])) + 1
    return checkpoint.at(saving.folder, epoch * steps)


def steps_of(program: Epoch | Step, examples: Batch | Stream) -> int:
    """Return the number of steps in an epoch."""
    if isinstance(examples, Stream):
        return examples.steps
    assert isinstance(program, Epoch)
    return count(examples) // program.batch_size
