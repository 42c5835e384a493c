"""A chain of trainings: each network is taught by the one trained before it.

`schemes.born_again` and `schemes.assistants` are such chains. How a network is trained
is an argument, `learn`, so that an experiment can log, cache the teacher's logits or
use a loop of its own; `by_fit` is the usual one::

    learn = chain.by_fit(tx, resident, view=view, batch_size=64, epochs=10)
    trained = chain.chain(
        {"teacher": big, "student": small}, spec, learn,
        key=key, example=train.example(resident, view), directory="runs/a",
    )

With a directory, each network is written there as soon as it is trained, and read
instead of trained the next time: an interrupted chain goes on where it was.
"""

import hashlib
import os
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import optax
from jaxtyping import Array

from jaxkd import _tree, checkpoint, distill, jaxpr, log as logs, store, train
from jaxkd.data.augment import View
from jaxkd.distill import Spec, Teacher
from jaxkd.models.net import Net
from jaxkd.types import Batch, Metrics, Params, State

Variables = tuple[Params, State]
Evaluate = Callable[[distill.TrainState], Metrics]


class Lesson(NamedTuple):
    """One training of a chain: what `learn` is given.

    Attributes:
      name: of the network in the chain.
      net: to be trained.
      teacher: `distill.frozen` of the network before, or the first lesson's own.
      teacher_variables: its variables.
      spec: the objective.
      key: differs from lesson to lesson.
    """

    name: str
    net: Net
    teacher: Teacher
    teacher_variables: Any
    spec: Spec
    key: Array


Learn = Callable[[Lesson], Variables]  # trains to the end, or raises


def chain(
    nets: Mapping[str, Net],
    spec: Spec,
    learn: Learn,
    *,
    key: Array,
    example: Batch,
    teacher: Teacher = distill.no_teacher,
    teacher_variables: Any = None,
    directory: str | os.PathLike | None = None,
) -> dict[str, Variables]:
    """Train networks in turn, each taught by the one before.

    All networks are traced with their teachers before the first is trained, so that one
    that does not fit is refused at once.

    Args:
      nets: by name, in order.
      spec: the objective of every network that has a teacher. Without a `teacher`, the
        first is trained on its labels alone.
      learn: trains one network and returns its `(params, state)`. A training that was
        cut short must raise: what it returns counts as trained.
      key: the i-th lesson's is `jax.random.fold_in(key, i)`.
      example: a batch as the networks see it, from `train.example`.
      teacher: of the first network.
      teacher_variables: its variables.
      directory: where the variables of NAME go, as `NAME`; None keeps nothing. What is
        there is read, if it had the same key, teacher, networks and objective, weights
        and knobs of the terms included. How `learn` trains (optimiser, data, epochs) is
        not recorded: name another directory for that.

    Returns:
      The variables by name, in order: `tuple(found.values())` are those of the
      committee of `ensemble.of`.

    Raises:
      ValueError: before work, if there is no network, the classes differ or a name is
        no file name; if what lies in `directory` belongs to another chain.
      KeyError: before work, if a tap is missing.
    """
    if not nets:
        raise ValueError("nets must hold at least one network, got none")
    shapes = rehearse(nets, spec, example, teacher, teacher_variables)
    folder = None if directory is None else pathlib.Path(directory)
    found: dict[str, Variables] = {}
    for i, (name, net) in enumerate(nets.items()):
        own = distill.labels_only() if teacher is distill.no_teacher else spec
        lesson = Lesson(
            name, net, teacher, teacher_variables, own, jax.random.fold_in(key, i)
        )
        found[name] = _kept(folder, lesson, learn, shapes[name], example)
        teacher, teacher_variables = distill.frozen(net), found[name]
    return found


def rehearse(
    nets: Mapping[str, Net],
    spec: Spec,
    example: Batch,
    teacher: Teacher = distill.no_teacher,
    teacher_variables: Any = None,
) -> dict[str, Variables]:
    """Trace what a chain will train, without training: the shapes of its variables.

    Raises:
      ValueError: if a network does not fit its teacher or the spec, or a name is no
        file name.
      KeyError: if a tap is missing.
    """
    key = jax.random.key(0)
    shapes: dict[str, Variables] = {}
    for name, net in nets.items():
        if not name or pathlib.PurePath(name).name != name:
            raise ValueError(f"a network's name must do as a file name, got {name!r}")
        own = distill.labels_only() if teacher is distill.no_teacher else spec
        d = distill.distiller(net, teacher, own, optax.identity())
        try:
            state = jax.eval_shape(d.init, key, teacher_variables, example)
        except (ValueError, KeyError) as error:
            error.add_note(f"while tracing {name!r}, one of {list(nets)}")
            raise
        shapes[name] = state.student
        teacher, teacher_variables = distill.frozen(net), shapes[name]
    return shapes


def by_fit(
    tx: optax.GradientTransformation,
    resident: Batch,
    *,
    view: View,
    batch_size: int,
    epochs: int,
    evaluate: Callable[[Net], Evaluate] | None = None,
    log: logs.Log | None = None,
    progress: bool = True,
) -> Learn:
    """Return the usual way to learn: `train.fit` with the teacher live.

    Args:
      tx: the optimiser.
      resident: the training data, from `data.on_device`.
      view: how the networks see it.
      batch_size: examples in a step.
      epochs: of each network.
      evaluate: from a network to what is measured after each epoch, e.g.
        `lambda net: evaluate.scorer(net, test, view=view)`.
      log: where each epoch's row goes, under the network's name.
      progress: whether to show a bar.

    Returns:
      `learn`, which raises KeyboardInterrupt if Ctrl-C ended an epoch early: networks
      trained before are not lost, the one under way is.
    """

    def learn(lesson: Lesson) -> Variables:
        return train.learn(
            lesson.net,
            resident,
            spec=lesson.spec,
            teacher=(lesson.teacher, lesson.teacher_variables),
            tx=tx,
            view=view,
            batch_size=batch_size,
            epochs=epochs,
            key=lesson.key,
            test=None if evaluate is None else evaluate(lesson.net),
            log=log,
            name=lesson.name,
            progress=progress,
        ).variables

    return learn


def _kept(
    folder: pathlib.Path | None,
    lesson: Lesson,
    learn: Learn,
    shapes: Variables,
    example: Batch,
) -> Variables:
    """The lesson's result: read, if it was learnt before; else learnt, and written."""
    if folder is None:
        return learn(lesson)
    path, identity = folder / lesson.name, _identity(lesson, shapes, example)
    like = {"params": shapes[0], "state": shapes[1]}
    if checkpoint.has_notes(path):
        found = checkpoint.read(path)
        store.require_same(path, found.meta, identity)
        kept = checkpoint.like(found.tree, like)
        return kept["params"], kept["state"]
    store.require_ours(path)
    params, state = learn(lesson)
    checkpoint.write(path, {"params": params, "state": state}, identity)
    return params, state


def _identity(lesson: Lesson, shapes: Variables, example: Batch) -> dict[str, Any]:
    """Return what a lesson's result depends on, but for how `learn` trains."""
    return store.identity(
        key=jax.random.key_data(lesson.key).tolist(),
        spec=sorted(lesson.spec),
        teacher=store.digest(lesson.teacher_variables),
        shapes={
            path: f"{leaf.dtype}{list(leaf.shape)}"
            for path, leaf in _tree.flatten(shapes).items()
        },
        step=_digest_of_step(lesson, example),
    )


def _digest_of_step(lesson: Lesson, example: Batch) -> str:
    """Return a digest of the traced step: networks, terms, their weights and knobs.

    The same in every process with one version of jax. Traced, a temperature is a number
    in the program, and a schedule of a weight is a part of it.
    """
    d = distill.distiller(lesson.net, lesson.teacher, lesson.spec, optax.identity())
    state = jax.eval_shape(d.init, lesson.key, lesson.teacher_variables, example)
    program = jaxpr.trace(d.step, state, lesson.teacher_variables, example)
    steps = [
        f"{step.name} {step.inputs} {step.outputs} {sorted(step.params.items())}"
        for step in program.steps
    ]
    text = re.sub("0x[0-9a-f]+", "", "\n".join(steps))  # addresses of functions
    constants = {str(i): value for i, value in program.constants.items()}
    return hashlib.sha256(f"{text}{store.digest(constants)}".encode()).hexdigest()
