"""Training: one verb for everyday use, and the three functions under it.

    run = train.learn(student, images, spec=spec, teacher=(net, variables),
                      tx=tx, view=view, batch_size=128, epochs=10, test=test_images)
    run.variables, run.history

`learn` is `distill.distiller`, its `init`, `make_epoch` and `fit` in a row; write them
out for a loop of your own::

    epoch = train.make_epoch(distiller, view=view, batch_size=128)
    state = distiller.init(key, teacher_variables, train.example(resident, view))
    run = train.fit(epoch, state, teacher_variables, resident, key=key, epochs=10)

An epoch is one compiled program over data that lies on the device: it shuffles indices,
gathers the examples, augments them and takes the steps, without returning to Python.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array

from jaxkd import (
    _loop,
    data,
    distill,
    evaluate as evaluation,
    log as logs,
    mesh as meshes,
)
from jaxkd.cache import cache_teacher as cache_teacher
from jaxkd.data import augment
from jaxkd.data.augment import View
from jaxkd.distill import Distiller, Inputs, Spec, Teacher, TrainState
from jaxkd.models.net import Net
from jaxkd.types import Batch, Metrics, Params, State

Variables = tuple[Params, State]
Epoch = Callable[[TrainState, Any, Batch, Array], tuple[TrainState, Metrics]]


def example(resident: Batch, view: View, size: int = 2) -> Batch:
    """A small batch as the networks will see it, to make their variables from."""
    batch = jax.tree.map(lambda a: a[:size], resident)
    return view(jax.random.key(0), batch)


def make_epoch(
    distiller: Distiller, *, view: View, batch_size: int, mesh: Mesh | None = None
) -> Epoch:
    """Builds one pass over the data as a pure function, to be compiled by `fit`.

    On a mesh each device takes an equal part of every batch; the losses, BatchNorm and
    the metrics are those of the whole batch. State, teacher and data have to lie on it
    (`mesh.put`), the data replicated, the networks as is best for them.

    Args:
      distiller: whose `step` is taken for every batch.
      view: from the stored uint8 images to what the networks see; student and teacher
        see the same.
      batch_size: examples in a step, on all devices together; the last, incomplete
        batch is left out.
      mesh: of the devices, from `mesh.make`; None for one device.

    Returns:
      `(state, teacher_variables, resident, key) -> (state, metrics)`, where each metric
      has one value per step, `[steps]`.

    Raises:
      ValueError: if the mesh cannot share a batch equally; when traced, if the columns
        of the data differ in length, if the batch is larger than the data, if the view
        is random while a teacher's stored outputs ("teacher...") lie beside the
        images, or if an argument is not on the mesh.
    """
    if mesh is not None:
        meshes.check_batch(batch_size, mesh)

    def epoch(
        state: TrainState, teacher_variables: Any, resident: Batch, key: Array
    ) -> tuple[TrainState, Metrics]:
        if view.random and any(name.startswith("teacher") for name in resident):
            raise ValueError(
                "the view is random, but the teacher's outputs were stored for other "
                "images; use the live teacher, a view without augmentation, or one "
                "that can be replayed (schemes.offline)"
            )
        meshes.check_placed(
            mesh, state=state, teacher_variables=teacher_variables, resident=resident
        )
        order_key, view_key = jax.random.split(key)
        order = data.epoch(order_key, data.count(resident), batch_size)

        def step(state: TrainState, now: tuple[Array, Array]) -> tuple:
            indices, key = now
            batch = meshes.split(data.gather(resident, indices), mesh)
            batch = meshes.split(view(key, batch), mesh)
            return distiller.step(state, teacher_variables, batch)

        return jax.lax.scan(
            step, state, (order, jax.random.split(view_key, len(order)))
        )

    return epoch


def over_seeds(epoch: Epoch, *, together: bool = True) -> Epoch:
    """Runs an epoch for several states at once, each with its own key.

    Args:
      epoch: what `make_epoch` returned.
      together: by `vmap`, right for MLPs and on accelerators; else one after another,
        since XLA:CPU is slow at the grouped convolutions that `vmap` makes.

    Returns:
      An epoch whose state and key have a leading axis of seeds, as the metrics have:
      `[seeds, steps]`. Teacher and data are shared.
    """
    if together:
        return jax.vmap(epoch, in_axes=(0, None, None, 0))

    def one_by_one(
        states: TrainState, teacher_variables: Any, resident: Batch, keys: Array
    ) -> tuple[TrainState, Metrics]:
        return jax.lax.map(
            lambda each: epoch(each[0], teacher_variables, resident, each[1]),
            (states, keys),
        )

    return one_by_one


class Run(NamedTuple):
    """What a training returns.

    Attributes:
      state: the state after the last epoch; of several seeds, stacked.
      history: one row an epoch: the means of the step metrics, the evaluation, seconds.
      interrupted: whether Ctrl-C ended the run before its last epoch.
    """

    state: TrainState
    history: list[logs.Row]
    interrupted: bool

    @property
    def variables(self) -> Variables:
        """The student's `(params, state)`; of several seeds, with a leading axis."""
        return self.state.student

    def seed(self, i: int) -> Variables:
        """Return the student's variables of the i-th of several seeds."""
        return jax.tree.map(lambda leaf: leaf[i], self.state.student)

    def final(self, metric: str = "accuracy") -> np.ndarray:
        """Return a metric after the last epoch: a scalar, or `[seeds]`."""
        return np.asarray(self.history[-1][metric])


def learn(
    student: Net | Distiller,
    examples: data.Dataset | Batch,
    *,
    view: View | None = None,
    batch_size: int,
    epochs: int,
    tx: optax.GradientTransformation | None = None,
    spec: Spec | None = None,
    teacher: tuple[Net | Teacher, Any] | str | None = None,
    seeds: int | None = None,
    key: Array | None = None,
    start: Variables | None = None,
    test: data.Dataset | Batch | None = None,
    test_view: View | None = None,
    metrics: Mapping[str, evaluation.Metric] | None = None,
    inputs: Inputs = "image",
    mesh: Mesh | None = None,
    together: bool = True,
    log: logs.Log | None = None,
    name: str = "train",
    progress: bool = True,
) -> Run:
    """Train a student on an objective, with or without a teacher.

    The whole run is one compilation of `init`, one of the epoch and one of the
    evaluation. A student's first weights and the order of the data depend on the key
    alone, so that a baseline and a distilled student of one seed can be compared.

    Args:
      student: the network; or a Distiller of your own (`schemes`, `prune.fine_tuner`),
        which brings `spec`, `tx` and `inputs` with it. `teacher` is then
        `(anything, variables)`, of which only the variables are used.
      examples: the training data: a `data.Dataset`, or columns with one entry for each
        example. `"where"` among them masks what counts.
      view: from the stored examples to what the networks see, e.g.
        `augment.chain(augment.flip(), augment.to_float())`; None leaves them as they
        are.
      batch_size: examples in a step; the last, incomplete batch of an epoch is left
        out.
      epochs: how many.
      tx: the optimiser.
      spec: the terms of the objective by name; by default cross-entropy with "label".
      teacher: `(net, variables)`, run live; `(function, variables)` of the type
        `distill.Teacher`; "cached" if its logits are the column "teacher"; None.
      seeds: trains so many students, from seeds 0, 1, ..., each with data in an order
        of its own; results have a leading axis. None is one student, from seed 0.
      key: in place of `seeds`: one key, or several stacked.
      start: variables to start from in place of fresh ones, the same for all seeds.
      test: data to measure on after each epoch.
      test_view: how it is seen; by default `view`, which must not be random.
      metrics: what is measured, as in `evaluate.scorer`.
      inputs: what the networks see of a batch: a field's name, or a function.
      mesh: trains on all of its devices, e.g. `mesh.make()`.
      together: trains seeds by `vmap`; else one after another, which is faster for
        convolutions on a CPU.
      log: where each epoch's row goes, e.g. `log.start(directory)`.
      name: of the run, in its rows and beside the progress bar.
      progress: whether to show a bar, if the output is a terminal.

    Returns:
      The run: `variables`, `history`, `seed(i)`.

    Raises:
      ValueError: before training: if columns differ in length, a label has no output,
        stored bytes reach the network, or networks, spec and data do not fit.
      FloatingPointError: if a metric is not finite, naming the step and the term.
      KeyboardInterrupt: after Ctrl-C, when the epoch under way is done.
    """
    view = augment.chain() if view is None else view
    keys = _keys(seeds, key)
    teach, teacher_variables = _teacher(teacher, inputs)
    if isinstance(student, Distiller):
        if not (spec is None and tx is None):
            raise ValueError("a Distiller has its own spec and tx: leave them out")
        d, net = student, None
    elif tx is None:
        raise ValueError("tx must be an optimiser, e.g. optax.adam(1e-3)")
    else:
        spec = distill.labels_only() if spec is None else spec
        d, net = distill.distiller(student, teach, spec, tx, inputs=inputs), student
    resident = _columns(examples)
    score = None
    if test is not None:
        if net is None:
            raise ValueError("test= needs the student's Net; pass evaluate= to fit")
        score = evaluation.scorer(
            net,
            _columns(test),
            view=_fixed(view if test_view is None else test_view),
            inputs=inputs,
            metrics=metrics,
        )
    if mesh is not None:
        everywhere = meshes.replicated(mesh)
        put = lambda tree: meshes.put(tree, everywhere)
        resident, teacher_variables = put(resident), put(teacher_variables)
    batch = example(resident, view)
    state = _initial(d, keys, teacher_variables, batch, start)
    _check_fit(net, state, resident, batch, inputs, several=keys.ndim > 0)
    if mesh is not None:
        state = meshes.put(state, everywhere)
    epoch = make_epoch(d, view=view, batch_size=batch_size, mesh=mesh)
    run = fit(
        over_seeds(epoch, together=together) if keys.ndim else epoch,
        state,
        teacher_variables,
        resident,
        key=keys,
        epochs=epochs,
        evaluate=score,
        log=log,
        name=name,
        progress=progress,
    )
    if run.interrupted:
        raise KeyboardInterrupt(f"{name}: after epoch {len(run.history)} of {epochs}")
    return run


def _keys(seeds: int | None, key: Array | None) -> Array:
    if seeds is not None and key is not None:
        raise ValueError("seeds and key exclude each other, got both")
    if key is not None:
        return key
    if seeds is None:
        return jax.random.key(0)
    if seeds < 1:
        raise ValueError(f"seeds must be >= 1, got {seeds}")
    return jax.vmap(jax.random.key)(jnp.arange(seeds))


def _teacher(teacher: Any, inputs: Inputs) -> tuple[Teacher, Any]:
    """The teacher and its variables, of what `learn` was given."""
    if teacher is None:
        return distill.nobody, None
    if isinstance(teacher, str) and teacher == "cached":
        return distill.cached, None
    if isinstance(teacher, Net) or not isinstance(teacher, tuple) or len(teacher) != 2:
        raise ValueError(
            'teacher must be (net, variables), (function, variables), "cached" or '
            f"None, got {type(teacher).__name__}"
        )
    net, variables = teacher
    return distill.frozen(net, inputs=inputs) if isinstance(
        net, Net
    ) else net, variables


def _columns(examples: data.Dataset | Batch) -> Batch:
    if isinstance(examples, data.Dataset):
        return data.on_device(examples)
    columns = jax.tree.map(jnp.asarray, dict(examples))
    data.count(columns)
    return columns


def _fixed(view: View) -> View:
    if view.random:
        raise ValueError("test_view must be given and not random where view is random")
    return view


def _initial(
    d: Distiller, keys: Array, teacher_variables: Any, batch: Batch, start: Any
) -> TrainState:
    """The state of one seed, or of several."""

    def init(key: Array, teacher_variables: Any, batch: Batch) -> TrainState:
        return d.init(key, teacher_variables, batch)

    if keys.ndim:
        init = jax.vmap(init, in_axes=(0, None, None))
    state = jax.jit(init)(keys, teacher_variables, batch)
    if start is None:
        return state
    student = jax.tree.map(
        lambda new, old: jnp.broadcast_to(
            jnp.asarray(old, new.dtype), new.shape
        ).copy(),
        state.student,
        start,
    )
    params = {**state.params, "student": student[0]}
    return state._replace(params=params, state={**state.state, "student": student[1]})


def _check_fit(
    net: Net | None,
    state: TrainState,
    resident: Batch,
    batch: Batch,
    inputs: Inputs,
    *,
    several: bool,
) -> None:
    """Refuse bytes that reach a network, and labels that it has no output for."""
    if net is None:
        return
    seen = distill.select(inputs, batch)
    if inputs == "image" and jnp.issubdtype(seen.dtype, jnp.integer):
        raise ValueError(
            f"the network would see images as stored, {seen.dtype}: pass a view that "
            "scales them, e.g. view=augment.to_float()"
        )
    label = resident.get("label")
    if label is None or not jnp.issubdtype(label.dtype, jnp.integer):
        return
    variables = state.student
    if several:
        variables = jax.tree.map(lambda leaf: leaf[0], variables)
    run = lambda v, x: net.apply(*v, x, train=False)[0].logits
    classes = jax.eval_shape(run, variables, seen).shape[-1]
    if "where" in resident:
        where = distill.fit_mask(resident["where"], label.shape)
        label = jnp.where(where, label, 0)
    low, high = int(label.min()), int(label.max())
    if low < -1 or high >= classes:
        raise ValueError(
            f"labels must be in [0, {classes}), the student's outputs, or -1 for an "
            f"example without one, got {low} to {high}; mask what has no label with a "
            'boolean column "where"'
        )


def fit(
    epoch: Epoch,
    state: TrainState,
    teacher_variables: Any,
    resident: Batch,
    *,
    key: Array,
    epochs: int,
    evaluate: Callable[[TrainState], Metrics] | None = None,
    log: logs.Log | None = None,
    name: str = "train",
    progress: bool = True,
    first_epoch: int = 0,
    after: Callable[[TrainState, logs.Row], logs.Row] | None = None,
) -> Run:
    """Trains for a number of epochs: one compilation, one call to the device for each.

    The state is donated: the one passed in must not be used afterwards. The data order
    of epoch e depends on `key` and e alone. On a mesh, the state keeps its sharding.

    Ctrl-C lets the epoch that is under way finish (a compiled program cannot be
    stopped), then returns what there is; a second Ctrl-C raises at once.

    Args:
      epoch: from `make_epoch`, or `over_seeds` of it.
      state: from `Distiller.init`; with `over_seeds`, several of them stacked.
      teacher_variables: passed on to the teacher; never donated.
      resident: the training data, from `data.on_device`.
      key: of the data order and the augmentation; with `over_seeds`, one per seed.
      epochs: how many.
      evaluate: measured after each epoch, e.g. `evaluate.scorer(net, test, view=view)`.
      log: where each epoch's row goes, e.g. `log.start(directory)`.
      name: of the run, in its rows and beside the progress bar.
      progress: whether to show a bar, if the output is a terminal.
      first_epoch: how many of the epochs the state has behind it, of which the others
        are then run as if without a pause.
      after: called after each epoch with the state, before it is donated to the next,
        and the row; what it returns is added to the row. To save the state, for one.

    Returns:
      The trained state, and the history.

    Raises:
      FloatingPointError: if a metric is not finite, naming the step and the term. The
        rows of the epochs before it are in the log.
      ValueError: if the batch is larger than the data.
    """
    if epochs < 0:
        raise ValueError(f"epochs must be >= 0, got {epochs}")
    if not 0 <= first_epoch <= epochs:
        raise ValueError(f"first_epoch must be 0 to {epochs}, got {first_epoch}")
    run_epoch, key = _compiled(epoch, state, key)
    keys = jax.jit(_fold)
    history: list[logs.Row] = []
    left = epochs - first_epoch
    with _loop.interruptible() as stop, logs.bar(name, left, show=progress) as tick:
        for e in range(first_epoch, epochs):
            start = time.perf_counter()
            state, metrics = run_epoch(state, teacher_variables, resident, keys(key, e))
            found = _wait(metrics, tick)
            seconds = time.perf_counter() - start
            _loop.check_finite(found, first_step=e * found["loss"].shape[-1], name=name)
            row: logs.Row = {"run": name, "epoch": e + 1, "seconds": round(seconds, 4)}
            row |= {k: v.mean(-1).tolist() for k, v in found.items()}
            if evaluate is not None:
                row |= {k: v.tolist() for k, v in _wait(evaluate(state), tick).items()}
            if after is not None:
                row |= after(state, row)
            history.append(row)
            if log is not None:
                log(row)
            tick(row)
            if stop.is_set():
                break
    return Run(state, history, interrupted=len(history) < left)


def _compiled(epoch: Epoch, state: TrainState, key: Array) -> tuple[Epoch, Array]:
    """The epoch to be run, and its key where the state is."""
    leaves = jax.tree.leaves(state)
    parts: list[Any] = [leaf.sharding for leaf in leaves if hasattr(leaf, "sharding")]
    on: Any = next(
        (part.mesh for part in parts if isinstance(part, NamedSharding)), None
    )
    if on is None:
        return jax.jit(epoch, donate_argnums=0), key
    # Else XLA may let the state come out elsewhere: not donated, and compiled again.
    out = (meshes.shardings(state), meshes.replicated(on))
    run_epoch = jax.jit(epoch, donate_argnums=0, out_shardings=out)
    return run_epoch, meshes.put(key, meshes.replicated(on))


def _fold(key: Array, epoch: Array) -> Array:
    fold = lambda k: jax.random.fold_in(k, epoch)
    return jax.vmap(fold)(key) if key.ndim else fold(key)


def _wait(metrics: dict[str, Any], tick: Callable[[], None]) -> dict[str, np.ndarray]:
    """Fetches what is being computed; the bar and Ctrl-C stay alive meanwhile."""
    pause = 1e-4
    while not all(value.is_ready() for value in metrics.values()):
        time.sleep(pause)
        pause = min(2 * pause, 0.05)
        tick()
    return {name: np.asarray(value) for name, value in sorted(metrics.items())}
