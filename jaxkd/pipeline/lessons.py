"""From a recipe, published or of a stage's losses, to the trainings it consists of."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxkd import distill, train
from jaxkd.distill import Distiller, TrainState
from jaxkd.models.net import Net
from jaxkd.pipeline import memory, networks
from jaxkd.pipeline.run_data import RunData
from jaxkd.recipes import Recipe
from jaxkd.schemes import mutual, self_teacher
from jaxkd.schemes.staged import Stage, stage_distiller
from jaxkd.types import Batch


class RecipePart(NamedTuple):
    """One training; most stages of a run have one.

    Attributes:
      name: of its checkpoints' folder, if there are several.
      epochs: how many.
      net: the network that is measured.
      distiller: `(start, before) -> Distiller`; `start` are the variables to start
        from, or None, and `before` the state that the lesson before has ended with.
      teacher_variables: `before -> variables`.
      examples: the training data.
      deployed: from the state to the one whose student is measured and kept.
    """

    name: str
    epochs: int
    net: Net
    distiller: Callable[[Any, Any], Distiller]
    teacher_variables: Callable[[Any], Any]
    examples: Batch
    deployed: Callable[[Any], TrainState] = lambda state: state


def lessons(recipe: Recipe, splits: RunData, teacher: Any = None) -> list[RecipePart]:
    """Return the trainings of a recipe, in order.

    Args:
      recipe: what to train.
      splits: the data.
      teacher: `(net, variables)` whose scores a recipe of stored scores reads.
    """
    return SCHEMES[recipe.scheme](recipe, splits, teacher)


def _staged(recipe: Recipe, splits: RunData, teacher: Any) -> list[RecipePart]:
    def lesson(stage: Stage) -> RecipePart:
        def make(start: Any, before: Any) -> Distiller:
            net = networks.started(recipe.net, start)
            return stage_distiller(stage, net, recipe.teacher, before)

        variables = lambda before: recipe.teacher_variables
        return RecipePart(
            stage.name, stage.epochs, recipe.net, make, variables, splits.resident
        )

    return [lesson(stage) for stage in recipe.stages]


def _offline(recipe: Recipe, splits: RunData, teacher: Any) -> list[RecipePart]:
    net, variables = teacher
    if splits.view.random:
        raise ValueError(
            "stored scores are those of one view of each image: leave data.augment out"
        )
    if any(isinstance(a, jax.ShapeDtypeStruct) for a in jax.tree.leaves(variables)):
        shape = len(splits.train.labels), splits.classes
        scores: Any = jax.ShapeDtypeStruct(shape, jnp.float32)
    else:
        teach = distill.frozen(net)
        found = train.cache_teacher(teach, variables, splits.train, view=splits.view)
        scores = jnp.asarray(found)
    columns = {**splits.resident, "teacher": scores}
    return _staged(recipe, splits._replace(resident=columns), None)


def _only(recipe: Recipe) -> tuple[Stage, distill.Spec]:
    """Return the only stage of a recipe, and its objective."""
    (stage,) = recipe.stages
    assert not callable(stage.spec)
    return stage, stage.spec


def _mutual(recipe: Recipe, splits: RunData, teacher: Any) -> list[RecipePart]:
    first, *others = recipe.options["peers"]

    def make(start: Any, before: Any) -> Distiller:
        peers = (networks.started(first, start), *others)
        return mutual.distiller(peers, spec, stage.tx)

    stage, spec = _only(recipe)
    (lesson,) = _staged(recipe, splits, None)
    return [lesson._replace(distiller=make, deployed=lambda states: states[0])]


def _self_teacher(recipe: Recipe, splits: RunData, teacher: Any) -> list[RecipePart]:
    def make(start: Any, before: Any) -> Distiller:
        net = networks.started(recipe.net, start)
        return self_teacher.distiller(net, spec, stage.tx, **recipe.options)

    stage, spec = _only(recipe)
    (lesson,) = _staged(recipe, splits, None)
    return [lesson._replace(distiller=make, deployed=self_teacher.promoted)]


def _born_again(recipe: Recipe, splits: RunData, teacher: Any) -> list[RecipePart]:
    stage, spec = _only(recipe)

    def generation(number: int) -> RecipePart:
        teach = distill.frozen(recipe.net) if number else recipe.teacher
        own = distill.labels_only() if teach is distill.no_teacher else spec

        def make(start: Any, before: Any) -> Distiller:
            net = networks.started(recipe.net, start if number == 0 else None)
            return distill.distiller(net, teach, own, stage.tx)

        return RecipePart(
            f"generation{number}",
            stage.epochs,
            recipe.net,
            make,
            lambda before: before.student if number else recipe.teacher_variables,
            splits.resident,
        )

    return [generation(number) for number in range(recipe.options["count"])]


# How the module of `jaxkd.schemes` that a recipe names is run in a stage.
SCHEMES: dict[str, Callable[[Recipe, RunData, Any], list[RecipePart]]] = {
    "staged": _staged,
    "offline": _offline,
    "mutual": _mutual,
    "self_teacher": _self_teacher,
    "born_again": _born_again,
}


def trace(
    trainings: list[RecipePart], splits: RunData, start: Any, *, batch_size: int
) -> tuple[Any, Any]:
    """Trace the first state and an epoch of each lesson.

    Returns:
      The shapes of the student's variables at the end.

    Raises:
      ValueError: if networks, losses, patterns or data do not fit together, or not
        into memory.
    """
    key = jax.random.key(0)
    batch = jax.eval_shape(lambda r: train.example(r, splits.plain), splits.resident)
    before: Any = None
    for lesson in trainings:
        batch = _with_scores(batch, lesson.examples)
        teacher = lesson.teacher_variables(before)

        def init(start, before, teacher, batch, lesson=lesson):
            return lesson.distiller(start, before).init(key, teacher, batch)

        def epoch(state, before, teacher, examples, lesson=lesson):
            d = lesson.distiller(start, before)
            pass_ = train.make_epoch(d, view=splits.view, batch_size=batch_size)
            return pass_(state, teacher, examples, key)[0]

        state = memory.traced(init, start, before, teacher, batch)
        before = memory.traced(epoch, state, before, teacher, lesson.examples)
    return trainings[-1].deployed(before).student


def _with_scores(batch: Batch, examples: Batch) -> Batch:
    """An example batch as a training sees it, with the teacher's scores if stored."""
    if "teacher" not in examples:
        return batch
    scores = examples["teacher"]
    shape = (len(batch["label"]), *scores.shape[1:])
    return {**batch, "teacher": jax.ShapeDtypeStruct(shape, scores.dtype)}
