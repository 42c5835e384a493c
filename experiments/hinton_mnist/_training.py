"""The teacher and its students: networks, courses, and what is kept of them."""

import dataclasses
import json
import pathlib
import re
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import _pair as pair
from experiments.hinton_mnist._config import Config
from jaxkd import (
    cache as caches,
    checkpoint,
    distill,
    evaluate,
    log,
    losses,
    models,
    train,
)
from jaxkd.data import augment
from jaxkd.models import Net
from jaxkd.types import Batch


class Lab(NamedTuple):
    """What every training of one run shares.

    Attributes:
      config: of the run.
      task: the data; once there is a teacher, with its logits.
      write: the log.
      directory: where everything is kept.
      teacher: the teacher's network and variables, once there is one.
      known: the fingerprint of these variables.
    """

    config: Config
    task: pair.Task
    write: log.Log
    directory: pathlib.Path
    teacher: tuple[Net, Any] | None = None
    known: str = ""


class Course(NamedTuple):
    """How one network is trained, from as many seeds as are wanted.

    Attributes:
      tx: the optimiser.
      batch_size: examples in a step.
      epochs: how many.
      resident: the data to train on.
      view: how they are seen; the measurements are made under the task's own view.
      seeds: 0 to this, excluded.
      together: whether they are trained by vmap, or one after another.
      spec: the objective; on the labels alone if there is none.
      teacher: what teaches, with its variables.
      start: parameters to go on from instead of new ones, with the axis of seeds.
    """

    tx: optax.GradientTransformation
    batch_size: int
    epochs: int
    resident: Batch
    view: augment.View
    seeds: int = 1
    together: bool = False
    spec: distill.Spec | None = None
    teacher: tuple[distill.Teacher, Any] = (distill.nobody, None)
    start: Any = None


class Students(NamedTuple):
    """Trained students: one network, variables and logits with an axis of seeds."""

    net: Net
    variables: Any
    test_logits: np.ndarray


def max_norm(limit: float) -> optax.GradientTransformation:
    """Keeps the norm of the weights into each unit at or below a limit.

    Weights are `[inputs, units]`; a column that the update would make longer is scaled
    back onto the sphere. To be the last of a chain, since it looks at where the update
    leads.

    Raises:
      ValueError: if the limit is not > 0.
    """
    if not 0 < limit < float("inf"):
        raise ValueError(f"max_norm must be finite and > 0, got {limit}")

    def bounded(update: jax.Array, weights: jax.Array) -> jax.Array:
        moved = weights + update
        norm = jnp.sqrt(jnp.sum(moved**2, axis=0, keepdims=True))
        return moved * (limit / jnp.maximum(norm, limit)) - weights

    return optax.stateless(
        lambda updates, params: jax.tree.map(bounded, updates, params)
    )


def hidden_kernels(params: Any) -> Any:
    """The same tree of booleans: true at the kernels of the hidden layers."""

    def chosen(keys: Any, _: Any) -> bool:
        path = jax.tree_util.keystr(keys, simple=True, separator="/")
        return re.search(r"hidden\d+/kernel$", path) is not None

    return jax.tree_util.tree_map_with_path(chosen, params)


def answers(
    net: Net, variables: Any, resident: Batch, view: augment.View
) -> np.ndarray:
    """Logits `[seeds, examples, classes]` of networks stacked over seeds."""
    images = {name: resident[name] for name in ("image", "label")}
    return np.asarray(_answers(net, variables, images, view))


@partial(jax.jit, static_argnames=("net", "view"))
def _answers(net: Net, variables: Any, images: Batch, view: augment.View) -> jax.Array:
    one = lambda v: evaluate.predict(distill.frozen(net), v, images, view=view)
    return jax.lax.map(one, (variables["params"], variables["state"]))


@cache
def two_layers(units: int, classes: int, **dropout: float) -> Net:
    """A network with two hidden layers: for the same numbers the same object."""
    return models.mlp([units, units], classes=classes, **dropout)


def slug(name: str) -> str:
    """The name of a run as that of a file."""
    return re.sub("[^a-z0-9]+", "_", name)


def kept(lab: Lab, name: str, recipe: dict, make: Callable[[], Any]) -> Any:
    """The variables that `make` trains, or those of the run that is to be reused."""
    recipe = json.loads(json.dumps(recipe))  # as it will be read: tuples are lists
    note = lab.directory / f"{slug(name)}.json"
    old = pathlib.Path(lab.config.reuse or lab.directory) / note.name
    if old.exists() and json.loads(old.read_text()) == recipe:
        variables = checkpoint.load(old.with_suffix(""))
        lab.write({"run": name, "reused": str(old.with_suffix(""))})
    else:
        variables = make()
    checkpoint.save(note.with_suffix(""), variables)
    note.write_text(json.dumps(recipe, indent=2) + "\n")  # last: now it is whole
    return variables


def falling(rate: float, resident: Batch, batch_size: int, epochs: int) -> Any:
    """A learning rate that falls to 0 along half a cosine, in so many epochs."""
    steps = epochs * (len(resident["image"]) // batch_size)
    return optax.cosine_decay_schedule(rate, max(steps, 1))


def trained(lab: Lab, name: str, net: Net, course: Course) -> Any:
    """The variables of a network after its course, with an axis of seeds.

    `_pair.Trainer` would also measure under the view that it trains with.
    """
    task, (teacher, teacher_variables) = lab.task, course.teacher
    spec = course.spec or {"ce": (1.0, distill.on_labels(losses.cross_entropy))}
    d = distill.distiller(net, teacher, spec, course.tx)
    keys = jax.vmap(jax.random.key)(jnp.arange(course.seeds))
    batch = train.example(course.resident, course.view)
    init = jax.jit(jax.vmap(d.init, in_axes=(0, None, None)))
    state = init(keys, teacher_variables, batch)
    if course.start is not None:
        student = jax.tree.map(jnp.array, course.start)  # the epoch consumes its state
        state = state._replace(params={**state.params, "student": student})
    epoch = train.make_epoch(d, view=course.view, batch_size=course.batch_size)
    run = train.fit(
        train.over_seeds(epoch, together=course.together),
        state,
        teacher_variables,
        course.resident,
        key=keys,
        epochs=course.epochs,
        evaluate=evaluate.scorer(net, task.resident_test, view=task.view),
        log=lab.write,
        name=name,
    )
    if run.interrupted:
        raise SystemExit(
            f"interrupted after epoch {len(run.history)} of {name}; what was finished "
            f"before is in {lab.directory}: --reuse goes on from there"
        )
    params, state = run.state.params["student"], run.state.state["student"]
    return {"params": params, "state": state}


def taught(lab: Lab, net: Net) -> Any:
    """The teacher's variables, with an axis for its one seed.

    It is trained in cycles, each with the learning rate falling to 0 and a new state of
    the optimiser, from the weights of the cycle before; each cycle is kept.
    """
    config, task, variables = lab.config, lab.task, None
    plan = zip(config.teacher_learning_rates, config.teacher_epochs, strict=True)
    data_fields = ("dataset", "evaluate_on", "train_images")
    fields = ("max_norm", "jitter", "input_dropout", *data_fields)
    bounded = optax.masked(max_norm(config.max_norm), hidden_kernels)
    view = augment.chain(augment.jitter(config.jitter), task.view)
    for cycle, (rate, epochs) in enumerate(plan, start=1):
        batch_size = config.teacher_batch_size
        recipe = {f: getattr(config, f) for f in fields}
        recipe |= {"units": config.teacher_units, "learning_rate": rate}
        recipe |= {"batch_size": batch_size, "epochs": epochs}
        if variables is not None:
            recipe["after"] = caches.fingerprint(variables)
        adam = optax.adam(falling(rate, task.resident, batch_size, epochs))
        course = Course(
            optax.chain(adam, bounded),
            batch_size,
            epochs,
            task.resident,
            view,
            start=variables and variables["params"],
        )
        name = f"teacher {cycle}"
        variables = kept(lab, name, recipe, partial(trained, lab, name, net, course))
    return variables


def without(resident: Batch, transfer: Sequence[int] | None) -> Batch:
    """The transfer set: the examples of these classes, or all if there are none."""
    if transfer is None:
        return resident
    chosen = np.flatnonzero(np.isin(np.asarray(resident["label"]), transfer))
    return {name: column[chosen] for name, column in resident.items()}


def students(
    lab: Lab,
    name: str,
    units: int,
    *,
    epochs: int,
    seeds: int,
    temperature: float | None = None,
    transfer: Sequence[int] | None = None,
    jitter: int = 0,
) -> Students:
    """Trains one student a seed: the same weights at first, whatever the objective.

    Args:
      lab: with a teacher.
      name: of the run.
      units: in each of the two hidden layers.
      epochs: over all images; over a part of them, more, for as many updates.
      seeds: how many students.
      temperature: of the distillation; None trains on the labels alone.
      transfer: the classes that the students see; None is all.
      jitter: pixels by which their images are shifted; a live teacher sees the same.
    """
    config, task = lab.config, lab.task
    net = two_layers(units, task.train.num_classes)
    resident = without(task.resident, transfer)
    if temperature is None or jitter:
        resident = {k: v for k, v in resident.items() if k != "teacher"}
    epochs = round(epochs * len(task.train.images) / len(resident["image"]))
    shared = ("learning_rate", "batch_size", "dataset", "evaluate_on", "train_images")
    recipe = {f: getattr(config, f) for f in shared}
    recipe |= {"units": units, "seeds": seeds, "epochs": epochs, "transfer": transfer}
    view = augment.chain(augment.jitter(jitter), task.view)
    rate = falling(config.learning_rate, resident, config.batch_size, epochs)
    course = Course(optax.adam(rate), config.batch_size, epochs, resident, view, seeds)
    # One after another is the faster for wide networks, vmap for narrow ones.
    course = course._replace(together=units < 500)
    if jitter:
        recipe["jitter"] = jitter
    if temperature is not None:
        if lab.teacher is None:
            raise ValueError(f"{name}: a temperature is given, but no teacher")
        weights = {w: getattr(config, w) for w in ("hard_weight", "soft_weight")}
        recipe |= {"temperature": temperature, "teacher": lab.known, **weights}
        at = dataclasses.replace(config, temperature=temperature)
        teacher, variables = lab.teacher
        live = (distill.frozen(teacher), variables)
        course = course._replace(
            spec=pair.kd_spec(at), teacher=live if jitter else (distill.cached, None)
        )
    variables = kept(lab, name, recipe, partial(trained, lab, name, net, course))
    logits = answers(net, variables, task.resident_test, task.view)
    np.save(lab.directory / f"{slug(name)}_logits.npy", logits)
    return Students(net, variables, logits)
