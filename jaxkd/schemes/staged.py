"""Training in stages: each with its own objective, optimiser, length and what it moves.

FSP as published first matches the Gram matrices alone, then trains the task from
there::

    stages = [
        Stage("flow", {"fsp": (1.0, terms.fsp(layers))}, 30, optax.adam(1e-3)),
        Stage("task", distill.labels_only(), 210, optax.sgd(0.05)),
    ]

FitNets first trains the student up to the hint, and the regressor::

    guided = ("student/stem*", "student/stage1*", "student/stage2*", "terms/*")
    Stage("hint", {"hint": (1.0, terms.hint("stage2"))}, 30, tx, trains=guided)

A stage that needs what an earlier one has trained takes its objective from a function
of the state so far::

    Stage("paraphraser", {"paraphraser": (1.0, terms.paraphraser("stage3"))}, 5, tx,
          trains="terms/*")
    Stage("factors", lambda before: {
        "ce": (1.0, on_labels(cross_entropy)),
        "factors": (200.0, terms.factor_transfer(
            "stage3", paraphraser=before.params["terms"]["paraphraser"])),
    }, 240, tx)
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import optax
from jax.sharding import Mesh
from jaxtyping import Array

from jaxkd import log as logs, mesh as meshes, train, transfer
from jaxkd.data.augment import View
from jaxkd.distill import Distiller, Spec, Teacher, TrainState, distiller
from jaxkd.models.net import Net
from jaxkd.types import Batch, Metrics


class Stage(NamedTuple):
    """One stage of a run.

    Attributes:
      name: in the log, after the run's own.
      spec: the objective, or a function that gives it from the state that the stage
        before has ended with (arrays, or tracers of the same shapes).
      epochs: how many.
      tx: the optimiser; it starts anew, and schedules count this stage's steps.
      trains: patterns of the paths of the parameters that move, such as "student/*",
        "student/head/*" or "terms/hint/*"; the others stay bit for bit.
    """

    name: str
    spec: Spec | Callable[[TrainState], Spec]
    epochs: int
    tx: optax.GradientTransformation
    trains: str | Sequence[str] = "*"


def stage_distiller(
    stage: Stage, student: Net, teacher: Teacher, before: TrainState | None = None
) -> Distiller:
    """Return the procedure of one stage, whose `init` goes on from `before`.

    The student's variables, and those of terms that have the same name and shapes in
    both stages, are carried over; optimiser and step count start anew.

    Raises:
      ValueError: if the first stage asks for the state of a stage before it; at `init`,
        if a pattern in `trains` fits no parameter.
    """
    spec = stage.spec
    if callable(spec):
        if before is None:
            raise ValueError(
                f"the first stage ({stage.name!r}) must have a spec of its own: there "
                "is no state before it"
            )
        spec = spec(before)
    tx = stage.tx
    if stage.trains != "*":
        tx = transfer.train_only(tx, stage.trains)
    d = distiller(student, teacher, spec, tx)

    def init(key: Array, teacher_variables: Any, batch: Batch) -> TrainState:
        fresh = d.init(key, teacher_variables, batch)
        if before is None:
            return fresh
        params = _carried(fresh.params, before.params)
        state = _carried(fresh.state, before.state)
        return fresh._replace(params=params, state=state, opt_state=tx.init(params))

    return Distiller(init, d.step, d.check)


def _carried(new: Any, old: Any) -> Any:
    """`{"student", "terms"}` of the new stage, from the old one where it has them."""
    same = {
        name: old["terms"][name]
        for name, tree in new["terms"].items()
        if name in old["terms"] and _alike(tree, old["terms"][name])
    }
    return {"student": old["student"], "terms": {**new["terms"], **same}}


def _alike(a: Any, b: Any) -> bool:
    """Two trees have the same structure, shapes and types."""
    kind = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)
    return kind(a) == kind(b)


def fit(
    stages: Sequence[Stage],
    student: Net,
    teacher: Teacher,
    teacher_variables: Any,
    resident: Batch,
    *,
    view: View,
    key: Array,
    batch_size: int,
    mesh: Mesh | None = None,
    together: bool = True,
    evaluate: Callable[[TrainState], Metrics] | None = None,
    done: Callable[[Stage, train.Run], None] | None = None,
    log: logs.Log | None = None,
    name: str = "train",
    progress: bool = True,
) -> list[train.Run]:
    """Train through all stages, each from where the one before has ended.

    The student's initial weights are those of `distill.distiller`'s `init` under the
    same key, and one stage alone is what `train.fit` does. Ctrl-C ends the stage that
    is under way after its epoch, and the run.

    Args:
      stages: at least one.
      student: the network to train.
      teacher: as in `distill.distiller`, for all stages; one whose outputs a stage does
        not look at is not computed there.
      teacher_variables: its variables.
      resident: the training data, from `data.on_device`.
      view: how the networks see the images.
      key: one, or several for as many seeds.
      batch_size: examples in a step.
      mesh: of the devices; data, teacher and state are put on it.
      together: whether several seeds are trained by vmap; see `train.over_seeds`.
      evaluate: as in `train.fit`.
      done: called after each stage, e.g. to save what it has trained.
      log: as in `train.fit`.
      name: of the run; a stage's rows have its name after a colon.
      progress: whether to show a bar.

    Returns:
      The run of each stage that was begun.

    Raises:
      ValueError: if there is no stage, and what `train.fit` raises.
    """
    if not stages:
        raise ValueError("stages must name at least one stage")
    if mesh is not None:
        everywhere = meshes.replicated(mesh)
        resident = meshes.put(resident, everywhere)
        teacher_variables = meshes.put(teacher_variables, everywhere)
    batch = train.example(resident, view)
    runs: list[train.Run] = []
    before: TrainState | None = None
    for number, stage in enumerate(stages):
        state = _begin(stage, student, teacher, key, teacher_variables, batch, before)
        d = stage_distiller(stage, student, teacher, before)
        epoch = train.make_epoch(d, view=view, batch_size=batch_size, mesh=mesh)
        if mesh is not None:
            state = meshes.put(state, everywhere)
        run = train.fit(
            train.over_seeds(epoch, together=together) if key.ndim else epoch,
            state,
            teacher_variables,
            resident,
            key=_order(key, number),
            epochs=stage.epochs,
            evaluate=evaluate,
            log=log,
            name=f"{name}: {stage.name}",
            progress=progress,
        )
        runs.append(run)
        if done is not None:
            done(stage, run)
        if run.interrupted:
            break
        before = run.state
    return runs


def _order(key: Array, number: int) -> Array:
    """Return the key of a stage's data order; the first has the run's own."""
    if number == 0:
        return key
    fold = lambda k: jax.random.fold_in(k, number)
    return jax.vmap(fold)(key) if key.ndim else fold(key)


def _begin(
    stage: Stage,
    student: Net,
    teacher: Teacher,
    key: Array,
    teacher_variables: Any,
    batch: Batch,
    before: TrainState | None,
) -> TrainState:
    """Return the state that a stage starts from, for one seed or for several."""

    def init(key: Array, teacher_variables: Any, before: TrainState | None) -> Any:
        d = stage_distiller(stage, student, teacher, before)
        return d.init(key, teacher_variables, batch)

    if key.ndim:
        init = jax.vmap(init, in_axes=(0, None, 0))
    return jax.jit(init)(key, teacher_variables, before)
