"""The host's loop: one for data on the device and for data that are streamed."""

import collections
import operator
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array

from jaxkd import _check, _loop, data, log as logs, mesh as meshes
from jaxkd.data import Stream, stream as streams
from jaxkd.distill import TrainState
from jaxkd.train.programs import Epoch, Step
from jaxkd.types import Batch, Metrics, Params, State

Variables = tuple[Params, State]
IN_FLIGHT = 2  # steps handed to the device before the first's metrics are waited for


class Place(NamedTuple):
    """How far a run is; what a checkpoint has to keep beside the state.

    Attributes:
      epoch: how many epochs are complete.
      step: how many steps of the next one are.
      sums: of the metrics of these steps, for the row of that epoch.
    """

    epoch: int = 0
    step: int = 0
    sums: dict[str, Any] = {}  # noqa: RUF012  # never changed, only replaced


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
        """Return the student's variables of the i-th of several seeds.

        Raises:
          IndexError: if there is no such seed.
        """
        seeds = self.state.step.shape[0] if self.state.step.ndim else 0
        if not 0 <= i < seeds:
            raise IndexError(
                f"seed {i} is not one of the run's {seeds} (from 0)"
                if seeds
                else "the run is of one key, without seeds: use `variables`"
            )
        return jax.tree.map(lambda leaf: leaf[i], self.state.student)

    def final(self, metric: str = "accuracy") -> np.ndarray:
        """Return a metric after the last epoch: a scalar, or `[seeds]`."""
        return np.asarray(self.history[-1][metric])


def fit(
    program: Epoch | Step,
    state: TrainState,
    teacher_variables: Any,
    examples: Batch | Stream,
    *,
    key: Array,
    epochs: int,
    evaluate: Callable[[TrainState], Metrics] | None = None,
    log: logs.Log | None = None,
    name: str = "train",
    progress: bool = True,
    start: Place | None = None,
    after: Callable[[TrainState, logs.Row], logs.Row] | None = None,
    save: Callable[[TrainState, Place], None] | None = None,
    save_every: int | None = None,
) -> Run:
    """Train for a number of epochs, from one compiled program.

    Data on the device take one call an epoch. Streamed data take one call a step, while
    the next batches are read and put on the device. The state is donated: the one
    passed in must not be used afterwards. The order of epoch e depends on `key` and e
    alone. On a mesh, the state keeps its sharding.

    Ctrl-C or SIGTERM lets the compiled program under way finish (it cannot be stopped),
    saves, and returns what there is; a second Ctrl-C raises at once.

    Args:
      program: from `make_epoch`, or `over_seeds` of it; for a stream, from `make_step`.
      state: from `Distiller.init`; with `over_seeds`, several of them stacked.
      teacher_variables: passed on to the teacher; never donated.
      examples: the training data, e.g. from `data.on_device`, or a `data.Stream`.
      key: of the data order and the augmentation; with `over_seeds`, one per seed.
      epochs: where to end.
      evaluate: measured after each epoch, e.g. `evaluate.scorer(net, test, view=view)`.
      log: where each epoch's row goes, e.g. `log.start(directory)`.
      name: of the run, in its rows and beside the progress bar.
      progress: whether to show a bar, if the output is a terminal.
      start: how far the state is, from `save`; None is the beginning. The run
        continues as if it had not stopped.
      after: called after each epoch with the state, before it is donated to the next,
        and the row; what it returns is added to the row.
      save: called with the state, before it is donated to the next step, and its place:
        after each epoch, after every `save_every` steps of one, and when interrupted.
      save_every: None is only after each epoch.

    Returns:
      The trained state, and one row an epoch: the means of the step metrics, what
      `evaluate` found, "seconds", "examples/s", and "waited": the share of the time in
      which the device was idle because no batch had been read yet. Of an epoch that was
      interrupted and resumed, the last three are those of its second part.

    Raises:
      FloatingPointError: if a metric is not finite, naming the step and the term. The
        rows of the epochs before it are in the log.
      ValueError: before training, if a label has no output, stored bytes reach the
        network, or the data do not fit a term; if the batch is larger than the data, or
        a record cannot be read, naming it.
    """
    if epochs < 0:
        raise ValueError(f"epochs must be >= 0, got {epochs}")
    place = start or Place()
    reading: Any = nullcontext()
    alone = True
    if isinstance(examples, Stream):
        n, size, steps = examples.source.examples, examples.batch_size, examples.steps
        alone = examples.part[1] == 1
        at = (place.epoch, place.step)
        reading = streams.training(examples, key, epochs=epochs, start=at)
        left = (epochs - place.epoch) * steps - place.step
    else:
        if not isinstance(program, Epoch):
            raise ValueError("data on the device need a program from train.make_epoch")
        _check.columns(examples)
        n, size = data.count(examples), program.batch_size
        steps, left = n // size, epochs - place.epoch
    if not steps:
        raise ValueError(f"batch_size must be at most the {n} examples, got {size}")
    if not (0 <= place.epoch <= epochs and 0 <= place.step < steps):
        raise ValueError(
            f"start must be within {epochs} epochs of {steps} steps, got "
            f"{tuple(place[:2])}"
        )
    _check.whole(1)("save_every", 1 if save_every is None else save_every)
    program.check(state, examples)
    history: list[logs.Row] = []
    # Of several processes each would stop at another step: there, Ctrl-C just ends it.
    stopping = _loop.interruptible() if alone else nullcontext(threading.Event())
    call = _compile(program, state, teacher_variables, examples, key)
    with (
        stopping as stop,
        logs.bar(name, left, show=progress) as tick,
        reading as feed,
    ):
        due = lambda done: stop.is_set() or bool(save_every and not done % save_every)
        spent = _Spent()
        while place.epoch < epochs:
            if feed is not None:
                state, place, more, error = _take_steps(
                    call, feed, state, place, steps=steps, due=due, name=name, tick=tick
                )
            else:
                chunk = _chunk(place.step, steps, save_every)
                state, place, more, error = _scan_steps(
                    call, state, place, chunk, steps=steps, name=name, tick=tick
                )
            spent = _Spent(*map(operator.add, spent, more))
            if place.step < steps:
                # Saving takes all processes, and the others do not know of the error.
                if save is not None and (error is None or alone):
                    save(state, place)
                if error is not None:
                    raise error
                if stop.is_set():
                    break
                continue
            row = _row(name, place, spent, size)
            if evaluate is not None:
                measured = _wait(evaluate(state), tick)
                row |= {metric: value.tolist() for metric, value in measured.items()}
                sound = {m: np.isfinite(value).all() for m, value in measured.items()}
                wrong = [m for m, finite in sound.items() if not finite]
                if wrong:  # the training itself is sound, and is not given up
                    warnings.warn(
                        f"{name}: {', '.join(wrong)} is not finite after epoch "
                        f"{place.epoch + 1}; look at the data to measure on",
                        stacklevel=2,
                    )
            if after is not None:
                row |= after(state, row)
            history.append(row)
            if log is not None:
                log(row)
            if feed is None:
                tick(row)
            place, spent = Place(place.epoch + 1), _Spent()
            if save is not None:
                save(state, place)
            if stop.is_set():
                break
    return Run(state, history, interrupted=place.epoch < epochs)


class _Spent(NamedTuple):
    """What a part of an epoch took: seconds, of them waiting for batches, and steps."""

    seconds: float = 0.0
    waited: float = 0.0
    steps: int = 0


def _row(name: str, place: Place, spent: _Spent, batch_size: int) -> logs.Row:
    mean = lambda total: (np.asarray(total) / place.step).tolist()
    return {
        "run": name,
        "epoch": place.epoch + 1,
        "seconds": round(spent.seconds, 4),
        **{metric: mean(total) for metric, total in place.sums.items()},
        "examples/s": round(spent.steps * batch_size / spent.seconds, 3),
        "waited": round(spent.waited / spent.seconds, 4),
    }


def _add(sums: dict[str, Any], metrics: dict[str, np.ndarray]) -> dict[str, Any]:
    """Sum of metrics `[..., steps]` over the steps, as JSON has them."""
    total = lambda name, value: (
        np.asarray(sums.get(name, 0.0)) + value.sum(-1, dtype=np.float64)
    )
    return {name: total(name, value).tolist() for name, value in metrics.items()}


def _chunk(first: int, steps: int, save_every: int | None) -> int:
    """Return how many steps are taken in one call, from number `first` on."""
    left = steps - first
    return left if save_every is None else min(left, save_every - first % save_every)


def _compile(
    program: Epoch | Step,
    state: TrainState,
    teacher_variables: Any,
    examples: Batch | Stream,
    key: Array,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """Return the compiled program, of the state and what changes from call to call."""
    leaves = jax.tree.leaves(state)
    parts: list[Any] = [leaf.sharding for leaf in leaves if hasattr(leaf, "sharding")]
    on: Any = next(
        (part.mesh for part in parts if isinstance(part, NamedSharding)), None
    )
    lies = None
    if on is not None:
        # Else XLA may put the state elsewhere: not donated, and compiled again.
        everywhere = meshes.replicated(on)
        lies = (meshes.shardings(state), everywhere)
        key = meshes.put(key, everywhere)
    if isinstance(examples, Stream):
        step = jax.jit(program, donate_argnums=0, out_shardings=lies)
        return lambda state, batch, epoch, number: step(
            state, teacher_variables, batch, key, np.int32(epoch), np.int32(number)
        )
    run = jax.jit(program, donate_argnums=0, static_argnums=5, out_shardings=lies)
    fold = jax.jit(_fold)

    def scan(state: TrainState, epoch: int, first: int, steps: int | None) -> Any:
        now = fold(key, epoch)
        if steps is None:  # the whole epoch
            return run(state, teacher_variables, examples, now)
        return run(state, teacher_variables, examples, now, np.int32(first), steps)

    return scan


def _scan_steps(
    call: Callable[..., Any],
    state: TrainState,
    place: Place,
    chunk: int,
    *,
    steps: int,
    name: str,
    tick: Callable[..., None],
) -> tuple[TrainState, Place, _Spent, None]:
    """Take steps over data on the device, in one call."""
    begun = time.perf_counter()
    whole = chunk == steps
    state, metrics = call(state, place.epoch, place.step, None if whole else chunk)
    found = _wait(metrics, tick)
    spent = _Spent(time.perf_counter() - begun, 0.0, chunk)
    first = place.epoch * steps + place.step
    _loop.check_finite(found, first_step=first, name=name)
    sums = _add(place.sums, found)
    return state, Place(place.epoch, place.step + chunk, sums), spent, None


def _take_steps(
    call: Callable[..., Any],
    feed: streams.Feed,
    state: TrainState,
    place: Place,
    *,
    steps: int,
    due: Callable[[int], bool],
    name: str,
    tick: Callable[..., None],
) -> tuple[TrainState, Place, _Spent, Exception | None]:
    """Take steps over a stream until the epoch ends, saving is due, or an error."""
    begun, waited, error = time.perf_counter(), 0.0, None
    flying: collections.deque[Metrics] = collections.deque()
    done, sums = place.step, place.sums

    def land() -> None:
        nonlocal sums
        number = done - len(flying)
        found = {k: np.asarray(v)[None] for k, v in sorted(flying.popleft().items())}
        first = place.epoch * steps + number
        _loop.check_finite(found, first_step=first, name=name)
        sums = _add(sums, found)
        tick({"loss": float(found["loss"][0])})

    while done < steps:
        if not feed.ready():
            while flying:  # only from here on is the device idle
                land()
        asked = time.perf_counter()
        try:
            batch = feed.take()
        except Exception as problem:
            error = problem
            break
        waited += time.perf_counter() - asked
        state, metrics = call(state, batch, place.epoch, done)
        flying.append(metrics)
        done += 1
        if len(flying) > IN_FLIGHT:
            land()
        if due(done):
            break
    while flying:
        land()
    spent = _Spent(time.perf_counter() - begun, waited, done - place.step)
    return state, Place(place.epoch, done, sums), spent, error


def _fold(key: Array, epoch: Array) -> Array:
    fold = lambda k: jax.random.fold_in(k, epoch)
    return jax.vmap(fold)(key) if key.ndim else fold(key)


def _wait(metrics: dict[str, Any], tick: Callable[[], None]) -> dict[str, np.ndarray]:
    """Fetch what is being computed; the bar and Ctrl-C stay alive meanwhile."""
    pause = 1e-4
    while not all(
        value.is_ready() for value in metrics.values() if hasattr(value, "is_ready")
    ):
        time.sleep(pause)
        pause = min(2 * pause, 0.05)
        tick()
    return {name: np.asarray(value) for name, value in sorted(metrics.items())}
