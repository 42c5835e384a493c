"""What the stages that train have in common, and the loop of their epochs."""

import functools
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import jax
from msgspec import Meta, field

from jaxkd import distill, evaluate, losses, recipes, store, train
from jaxkd.models.net import Net
from jaxkd.pipeline import lessons, objective, optimizing
from jaxkd.pipeline.networks import Model
from jaxkd.pipeline.parts import Losses, Optimizer, Patterns, Schedule, about, whole
from jaxkd.pipeline.stages.context import StageContext, StageResult, row_of
from jaxkd.pipeline.stages.stage import ModelStatus, Stage
from jaxkd.schemes import staged
from jaxkd.train import saving as saves
from jaxkd.train.saving import Saving

Variables = tuple[Any, Any]
Rows = list[dict[str, Any]]


class Training(Stage, frozen=True, kw_only=True):
    """What every stage has that trains."""

    epochs: Annotated[int, whole("its budget", 1, 10**6)] = 20
    batch_size: Annotated[int, whole("images in a step", 1, 10**6)] = 128
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    trains: Annotated[
        Patterns, about('patterns of what moves, e.g. "head/*"; empty: all')
    ] = ()
    take: Annotated[
        Literal["last", "best"], about("which epoch's variables, by validation")
    ] = "last"

    def network(self, held: Model) -> Net:
        """Return the network that is trained."""
        return held.net

    def objective(self, context: StageContext, steps: int) -> distill.Spec:
        """Return the losses; `steps` are those of an epoch."""
        return {"ce": (1.0, distill.on_labels(losses.cross_entropy))}

    def training(self, context: StageContext, net: Net) -> recipes.Recipe:
        """Return what is trained, here the objective and the optimiser of the stage."""
        steps = steps_of(self, context)
        task = staged.Stage(
            "", self.objective(context, steps), self.epochs, optimizing.of(self, steps)
        )
        return recipes.Recipe(net, (task,), *teacher_of(self, context))

    def rehearse(self, context: StageContext) -> Model:
        """Trace an epoch."""
        held = context.models[self.model]
        params, state = traced(self.network(held), self, context, start_of(held))
        return held._replace(params=params, state=state)

    def run(self, context: StageContext) -> StageResult:
        """Train the model for its epochs."""
        held = context.models[self.model]
        net = self.network(held)
        (params, state), rows = fit(net, self, context, start_of(held))
        return StageResult(held._replace(params=params, state=state), rows, len(rows))


class Taught(Training, frozen=True, kw_only=True):
    """What every stage has that may be taught."""

    teacher: Annotated[
        str | tuple[str, ...],
        about("the model that teaches; empty: the labels alone"),
    ] = ""
    temperature: Annotated[
        float, Meta(description="of each loss that has one", ge=1e-3, le=1e4)
    ] = 4.0
    losses: Annotated[
        Losses,
        about("by name: `loss` (the name if left out), `weight`, and its own knobs"),
    ] = field(default_factory=lambda: {"ce": {"weight": 1.0}})

    def check(self, models: Mapping[str, ModelStatus]) -> ModelStatus:
        """Check the losses, too."""
        after = super().check(models)
        names = self.names("teacher")
        if len(names) > 1:
            raise ValueError(
                f"teacher: names {len(names)} models; several are for a distill stage "
                'with recipe = "ensemble"'
            )
        objective.check(self.losses, self.temperature, teacher="".join(names))
        return after

    def objective(self, context: StageContext, steps: int) -> distill.Spec:
        """Return the losses of the table."""
        examples = {
            "index": context.splits.train.index,
            "label": context.splits.train.labels,
        }
        return objective.spec(
            self.losses, self.temperature, steps=steps, examples=examples
        )


def start_of(held: Model) -> Variables | None:
    """Return the variables to go on from, if there are any."""
    return None if held.params is None else (held.params, held.state)


def steps_of(stage: Training, context: StageContext) -> int:
    """Return the steps of an epoch."""
    return len(context.splits.train.labels) // stage.batch_size


def teacher_of(stage: Training, context: StageContext) -> tuple[distill.Teacher, Any]:
    """Return the teacher and its variables."""
    if not stage.names("teacher"):
        return distill.no_teacher, None
    (name,) = stage.names("teacher")
    held = context.models[name]
    return distill.frozen(held.net), (held.params, held.state)


def traced(
    net: Net, stage: Training, context: StageContext, start: Variables | None
) -> tuple[Any, Any]:
    """Trace all epochs of a stage; return the shapes of the student's variables."""
    return trace_recipe(stage.training(context, net), stage, context, start)


def trace_recipe(
    recipe: recipes.Recipe,
    stage: Training,
    context: StageContext,
    start: Variables | None,
    teacher: Any = None,
) -> tuple[Any, Any]:
    """Trace what `fit_recipe` trains; return the shapes of the student's variables.

    Raises:
      ValueError: if networks, losses, patterns or data do not fit together, or not
        into memory.
    """
    trainings = lessons.lessons(recipe, context.splits, teacher)
    return lessons.trace(trainings, context.splits, start, batch_size=stage.batch_size)


def fit(
    net: Net, stage: Training, context: StageContext, start: Variables | None
) -> tuple[Variables, Rows]:
    """Train a network on the objective of a stage; see `fit_recipe`."""
    return fit_recipe(stage.training(context, net), stage, context, start)


def fit_recipe(
    recipe: recipes.Recipe,
    stage: Training,
    context: StageContext,
    start: Variables | None,
    teacher: Any = None,
) -> tuple[Variables, Rows]:
    """Train through all lessons of a recipe, from the newest checkpoints if there are.

    Returns:
      The variables of the last or the best epoch of the last lesson, and the rows of
      all epochs.

    Raises:
      KeyboardInterrupt: after Ctrl-C, when the epoch is saved.
    """
    trainings = lessons.lessons(recipe, context.splits, teacher)
    rows: Rows = []
    before: Any = None
    for number, lesson in enumerate(trainings):
        last = lesson is trainings[-1]
        saving = _saving(stage, context, take_best=last and stage.take == "best")
        about = {}
        if len(trainings) > 1:
            saving = saving._replace(folder=saving.folder / f"part-{number}")
            about = {"part": lesson.name}
        run = _fit_lesson(
            lesson, number, stage, context, start, before, saving, about, rows
        )
        if run.interrupted:
            raise KeyboardInterrupt(f"in stage {stage.name}, after epoch {len(rows)}")
        before = run.state
    return trainings[-1].deployed(before).student, rows


def _saving(stage: Training, context: StageContext, *, take_best: bool) -> Saving:
    """Return where and when a stage is saved."""
    keeps = context.config.checkpoints
    return Saving(
        context.folder / "checkpoints",
        store.identity(begins=context.begins),
        context.warn,
        epochs=keeps.every,
        keep=keeps.keep,
        best="accuracy" if keeps.best or take_best else None,
        take_best=take_best,
    )


def _fit_lesson(
    lesson: lessons.RecipePart,
    number: int,
    stage: Training,
    context: StageContext,
    start: Variables | None,
    before: Any,
    saving: Saving,
    about: dict[str, Any],
    rows: Rows,
) -> train.Run:
    """Train one lesson, and add its rows to those of the lessons before."""
    splits, examples = context.splits, lesson.examples
    # The first has the keys of the run and of the stage themselves.
    fold = lambda key: jax.random.fold_in(key, number) if number else key
    teaches = lesson.teacher_variables(before)
    batch = jax.jit(lambda r: train.example(r, splits.plain))(examples)

    @jax.jit
    def init(key: Any, teaches: Any, start: Any, before: Any, batch: Any) -> Any:
        return lesson.distiller(start, before).init(key, teaches, batch)

    first = functools.partial(init, fold(context.key), teaches, start, before, batch)
    steps = steps_of(stage, context)
    begun = saves.begin(saving, first, epochs=lesson.epochs, steps=steps)
    row = functools.partial(_row, stage, about, len(rows))
    context.metrics.reset([*rows, *map(row, begun.rows)])
    score = evaluate.scorer(lesson.net, splits.held_out, view=splits.plain)
    d = lesson.distiller(start, before)
    run = saves.run(
        train.make_epoch(d, view=splits.view, batch_size=stage.batch_size),
        begun,
        teaches,
        examples,
        saving,
        key=fold(context.stage_key),
        epochs=lesson.epochs,
        evaluate=lambda state: score(lesson.deployed(state)),
        log=lambda found: context.metrics.add(row(found)),
        name=": ".join([stage.name, *about.values()]),
    )
    rows += map(row, run.history)
    return run


def _row(
    stage: Training, about: dict[str, Any], done: int, row: dict[str, Any]
) -> dict[str, Any]:
    """Return a row of the metrics; rates are of images, and no other timing is kept."""
    others = ("run", "waited", "examples/s")
    kept = {key: value for key, value in row.items() if key not in others}
    kept["epoch"] += done
    return {
        **row_of(stage),
        **about,
        **kept,
        "images/s": round(row["examples/s"], 1),
    }
