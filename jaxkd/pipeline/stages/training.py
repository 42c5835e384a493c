"""What the stages that train have in common, and the loop of their epochs."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, NamedTuple

import jax
from msgspec import Meta, field

from jaxkd import distill, evaluate, losses, store, train
from jaxkd.distill import TrainState
from jaxkd.models.net import Net
from jaxkd.pipeline import memory, networks, objective, optimizing
from jaxkd.pipeline.networks import Held
from jaxkd.pipeline.parts import Losses, Optimizer, Patterns, Schedule, about, whole
from jaxkd.pipeline.stages.job import Job, Made, row_of
from jaxkd.pipeline.stages.stage import Known, Stage
from jaxkd.train import saving as saved
from jaxkd.types import Batch

Variables = tuple[Any, Any]
Rows = list[dict[str, Any]]


class Course(NamedTuple):
    """A training that has been set up.

    Attributes:
      init: `(key, teacher_variables, start, batch) -> TrainState`; `start` are the
        variables to go on from, or None for fresh ones.
      epoch: to be compiled.
      teacher_variables: of the teacher.
      steps: of an epoch.
    """

    init: Callable[..., TrainState]
    epoch: train.Epoch
    teacher_variables: Any
    steps: int


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

    def network(self, held: Held) -> Net:
        """Return the network that is trained."""
        return held.net

    def objective(self, job: Job, steps: int) -> distill.Spec:
        """Return the losses; `steps` are those of an epoch."""
        return {"ce": (1.0, distill.on_labels(losses.cross_entropy))}

    def rehearse(self, job: Job) -> Held:
        """Trace an epoch."""
        held = job.models[self.model]
        params, state = traced(self.network(held), self, job, start_of(held))
        return held._replace(params=params, state=state)

    def run(self, job: Job) -> Made:
        """Train the model for its epochs."""
        held = job.models[self.model]
        net = self.network(held)
        (params, state), rows = fit(net, self, job, start_of(held))
        return Made(held._replace(params=params, state=state), rows, self.epochs)


class Taught(Training, frozen=True, kw_only=True):
    """What every stage has that may be taught."""

    teacher: Annotated[
        str, about("the model that teaches; empty: the labels alone")
    ] = ""
    temperature: Annotated[
        float, Meta(description="of each loss that has one", ge=1e-3, le=1e4)
    ] = 4.0
    losses: Annotated[
        Losses,
        about("by name: `loss` (the name if left out), `weight`, and its own knobs"),
    ] = field(default_factory=lambda: {"ce": {"weight": 1.0}})

    def check(self, models: Mapping[str, Known]) -> Known:
        """Check the losses, too."""
        after = super().check(models)
        objective.check(self.losses, self.temperature, teacher=self.teacher)
        return after

    def objective(self, job: Job, steps: int) -> distill.Spec:
        """Return the losses of the table."""
        examples = {"index": job.world.train.index, "label": job.world.train.labels}
        return objective.spec(
            self.losses, self.temperature, steps=steps, examples=examples
        )


def start_of(held: Held) -> Variables | None:
    """The variables to go on from, if there are any."""
    return None if held.params is None else (held.params, held.state)


def course(net: Net, stage: Training, job: Job) -> Course:
    """Sets a training up."""
    steps = len(job.world.train.labels) // stage.batch_size
    teacher, teacher_variables = _teacher(stage, job)
    spec, tx = stage.objective(job, steps), optimizing.of(stage, steps)

    def init(key: Any, teacher_variables: Any, start: Any, batch: Batch) -> TrainState:
        # A network's own init knows nothing of pruned widths or trained weights.
        student = net if start is None else networks.started(net, start)
        d = distill.distiller(student, teacher, spec, tx)
        return d.init(key, teacher_variables, batch)

    d = distill.distiller(net, teacher, spec, tx)
    epoch = train.make_epoch(d, view=job.world.view, batch_size=stage.batch_size)
    return Course(init, epoch, teacher_variables, steps)


def _teacher(stage: Training, job: Job) -> tuple[distill.Teacher, Any]:
    name = getattr(stage, "teacher", "")
    if not name:
        return distill.no_teacher, None
    held = job.models[name]
    return distill.frozen(held.net), (held.params, held.state)


def traced(
    net: Net, stage: Training, job: Job, start: Variables | None
) -> tuple[Any, Any]:
    """Traces init and an epoch; gives the student's shapes.

    Raises:
      ValueError: if networks, losses, patterns or data do not fit together, or not
        into memory.
    """
    work, world = course(net, stage, job), job.world
    batch = jax.eval_shape(lambda r: train.example(r, world.plain), world.resident)
    state = memory.traced(work.init, job.key, work.teacher_variables, start, batch)
    state, _ = memory.traced(
        work.epoch, state, work.teacher_variables, world.resident, job.key
    )
    return state.student


def fit(
    net: Net, stage: Training, job: Job, start: Variables | None
) -> tuple[Variables, Rows]:
    """Trains a network for the stage's epochs, from its newest checkpoint if there is.

    Returns:
      The variables of the last or the best epoch, and the rows of all epochs.

    Raises:
      KeyboardInterrupt: after Ctrl-C, when the epoch is saved.
    """
    work, world, keeps = course(net, stage, job), job.world, job.config.checkpoints
    example = train.example(world.resident, world.plain)
    first = lambda: jax.jit(work.init)(job.key, work.teacher_variables, start, example)
    best = keeps.best or stage.take == "best"
    saving = saved.Saving(
        job.folder / "checkpoints",
        store.identity(begins=job.begins),
        job.warn,
        epochs=keeps.every,
        keep=keeps.keep,
        best="accuracy" if best else None,
        take_best=stage.take == "best",
    )
    begun = saved.begin(saving, first, epochs=stage.epochs, steps=work.steps)
    job.metrics.reset([_row(stage, row) for row in begun.rows])
    run = saved.run(
        work.epoch,
        begun,
        work.teacher_variables,
        world.resident,
        saving,
        key=job.stage_key,
        epochs=stage.epochs,
        evaluate=evaluate.scorer(net, world.held_out, view=world.plain),
        log=lambda row: job.metrics.add(_row(stage, row)),
        name=stage.name,
    )
    rows = [_row(stage, row) for row in run.history]
    if run.interrupted:
        raise KeyboardInterrupt(f"in stage {stage.name}, after epoch {len(rows)}")
    return run.variables, rows


def _row(stage: Training, row: dict[str, Any]) -> dict[str, Any]:
    """A row of the metrics; rates are of images, and no other timing is kept."""
    others = ("run", "waited", "examples/s")
    kept = {key: value for key, value in row.items() if key not in others}
    return {**row_of(stage), **kept, "images/s": round(row["examples/s"], 1)}
