"""From a step to a run: the compiled epoch, several seeds at once, the host's loop.

    epoch = train.make_epoch(distiller, view=view, batch_size=128)
    state = distiller.init(key, teacher_variables, train.example(resident, view))
    run = train.fit(epoch, state, teacher_variables, resident, key=key, epochs=10)

An epoch is one compiled program over data that lies on the device: it shuffles indices,
gathers the images, augments them and takes the steps, without coming back to Python.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array

from jaxkd import _loop, data, log as logs, mesh as meshes
from jaxkd.cache import cache_teacher as cache_teacher
from jaxkd.data.augment import View
from jaxkd.distill import Distiller, TrainState
from jaxkd.types import Batch, Metrics

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
      ValueError: if the mesh cannot share a batch equally; when traced, if the batch is
        larger than the data, if the view is random while a teacher's stored outputs
        ("teacher...") lie beside the images, or if an argument is not on the mesh.
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
        order = data.epoch(order_key, len(resident["image"]), batch_size)

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
    """What `fit` gives back.

    Attributes:
      state: the state after the last epoch.
      history: one row an epoch: the means of the step metrics, the evaluation, seconds.
      interrupted: whether Ctrl-C ended the run before its last epoch.
    """

    state: TrainState
    history: list[logs.Row]
    interrupted: bool


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
