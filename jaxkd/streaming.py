"""Training on data that are larger than memory: a loop over one compiled step.

    training = streaming.Stream(data.mapped(dataset), batch_size=128)
    step = streaming.make_step(distiller, training, view=view)
    state = distiller.init(key, teacher_variables, streaming.example(training, view))
    run = streaming.fit(step, state, teacher_variables, training, key=key, epochs=10)

With the same key it is the training that `train.fit` does with resident data: the same
order, the same views, the same updates, up to rounding. It can be left after any step
and taken up there, by any number of processes.
"""

import collections
import functools
import operator
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from jaxkd import _check, _loop, distill, log as logs, mesh as meshes, train
from jaxkd.data import stream as streams
from jaxkd.data.augment import View
from jaxkd.models.net import Net
from jaxkd.types import Batch, Metrics

Step = Callable[..., tuple[distill.TrainState, Metrics]]
IN_FLIGHT = 2  # steps handed to the device before the first's metrics are waited for


class Stream(NamedTuple):
    """How data come in.

    Attributes:
      source: from where.
      batch_size: examples in a step, of all processes together.
      workers: threads that read; 0 is right for memory-mapped data, the number of cores
        for images that are decoded.
      depth: how many batches lie ready on the device.
      mesh: of all devices, from `mesh.make`; each process then reads only the rows of
        its own. None is one device.
    """

    source: streams.Source
    batch_size: int
    workers: int = 0
    depth: int = 2
    mesh: Mesh | None = None

    @property
    def steps(self) -> int:
        """How many whole batches an epoch has."""
        return self.source.examples // self.batch_size

    @property
    def part(self) -> tuple[int, int]:
        """Which of how many readers this process is."""
        if self.mesh is None:
            return 0, 1
        return jax.process_index(), jax.process_count()


class Place(NamedTuple):
    """Where in its course a run stands; what a checkpoint has to keep beside the state.

    Attributes:
      epoch: how many epochs are behind it.
      step: how many steps of the next one are.
      sums: of the metrics of these steps, for the row of that epoch.
    """

    epoch: int = 0
    step: int = 0
    sums: dict[str, float] = {}  # noqa: RUF012  # never changed, only replaced


def example(stream: Stream, view: View, size: int = 2) -> Batch:
    """A small batch as the networks will see it, to make their variables from."""
    first = np.arange(size) % stream.source.examples
    read = stream.source.read(first, np.zeros(size, np.uint64))
    return view(jax.random.key(0), jax.tree.map(jnp.asarray, read))


def make_step(distiller: distill.Distiller, stream: Stream, *, view: View) -> Step:
    """Builds the step of a streamed training, to be compiled by `fit`.

    Args:
      distiller: whose `step` is taken.
      stream: the training data; their number decides the keys of the views.
      view: from the stored uint8 images to what the networks see.

    Returns:
      `(state, teacher_variables, batch, key, epoch, number) -> (state, metrics)`.

    Raises:
      ValueError: if the batch is larger than the data or cannot be split over the mesh;
        when traced, if the view is random while a teacher's stored outputs
        ("teacher...") come with the images, or if an argument is not on the mesh.
    """
    size, examples = stream.batch_size, stream.source.examples
    if not 1 <= size <= examples:
        raise ValueError(
            f"batch_size must be 1 to the {examples} examples of {stream.source.name}, "
            f"got {size}"
        )
    if stream.mesh is not None:
        meshes.check_batch(size, stream.mesh)

    def step(
        state: distill.TrainState,
        teacher_variables: Any,
        batch: Batch,
        key: Array,
        epoch: Array,
        number: Array,
    ) -> tuple[distill.TrainState, Metrics]:
        if view.random and any(name.startswith("teacher") for name in batch):
            raise ValueError(
                "the view is random, but the teacher's outputs were stored for other "
                "images; use the live teacher, or a view without augmentation"
            )
        meshes.check_placed(
            stream.mesh, state=state, teacher_variables=teacher_variables, batch=batch
        )
        seen = view(streams.view_key(key, epoch, number, stream.steps), batch)
        # Each device keeps an equal part, whatever the view did.
        return distiller.step(state, teacher_variables, meshes.split(seen, stream.mesh))

    return step


def fit(
    step: Step,
    state: distill.TrainState,
    teacher_variables: Any,
    stream: Stream,
    *,
    key: Array,
    epochs: int,
    evaluate: Callable[[distill.TrainState], Metrics] | None = None,
    log: logs.Log | None = None,
    name: str = "train",
    progress: bool = True,
    start: Place | None = None,
    after: Callable[[distill.TrainState, logs.Row], logs.Row] | None = None,
    save: Callable[[distill.TrainState, Place], None] | None = None,
    save_every: int | None = None,
) -> train.Run:
    """Trains for a number of epochs: one compilation, one call to the device a step.

    Batches are read and put on the device by a thread of their own while steps run. The
    state is donated: the one passed in must not be used afterwards. Ctrl-C ends the run
    after the step that is under way, and saves it.

    Args:
      step: from `make_step`.
      state: from `Distiller.init`, put on the mesh if there is one (`mesh.put`).
      teacher_variables: passed on to the teacher; never donated.
      stream: the training data.
      key: of the data order and the augmentation, the same in every process.
      epochs: where to end.
      evaluate: measured after each epoch, e.g. `scorer(net, test, view=view)`.
      log: where each epoch's row goes.
      name: of the run, in its rows and beside the progress bar.
      progress: whether to show a bar, if the output is a terminal.
      start: where the state stands, from `save`; None is the beginning. The run goes on
        as if it had not been left.
      after: called after each epoch with the state and the row; what it returns is
        added to the row.
      save: called with the state, before it is donated to the next step, and its place:
        after each epoch, after every `save_every` steps of one, and when interrupted.
      save_every: None is only after each epoch.

    Returns:
      The trained state, and one row an epoch: the means of the step metrics, seconds,
      "images_per_s", and "waited", the share of the time in which the device had
      nothing to do because no batch had been read yet. Of an epoch that was left and
      taken up, the last three are those of its second part.

    Raises:
      FloatingPointError: if a metric is not finite, naming the step and the term.
      ValueError: if a record cannot be read, naming it.
    """
    start = start or Place()
    steps, alone = stream.steps, stream.part[1] == 1
    if not (0 <= start.epoch <= epochs and 0 <= start.step < steps):
        raise ValueError(
            f"start must be within {epochs} epochs of {steps} steps, got {start[:2]}"
        )
    _check.whole(1)("save_every", 1 if save_every is None else save_every)
    call = _compiled(step, state, teacher_variables, key, stream.mesh)
    history: list[logs.Row] = []
    place, spent = start, _Spent()
    # Of several processes each would stop at another step: there, Ctrl-C just ends it.
    stopping = _loop.interruptible() if alone else nullcontext(threading.Event())
    left = (epochs - start.epoch) * steps - start.step
    with (
        stopping as stop,
        logs.bar(name, left, show=progress) as tick,
        _feed(stream, key, epochs, start) as feed,
    ):
        due = lambda done: stop.is_set() or bool(save_every and not done % save_every)
        while place.epoch < epochs:
            state, place, more, error = _advance(
                call, feed, state, place, steps=steps, due=due, name=name, tick=tick
            )
            spent = jax.tree.map(operator.add, spent, more)
            if place.step < steps:
                # Saving takes all processes, and the others do not know of the error.
                if save is not None and (error is None or alone):
                    save(state, place)
                if error is not None:
                    raise error
                if stop.is_set():
                    break
                continue
            row = _row(name, place, spent, stream.batch_size)
            if evaluate is not None:
                row |= {k: np.asarray(v).tolist() for k, v in evaluate(state).items()}
            if after is not None:
                row |= after(state, row)
            history.append(row)
            if log is not None:
                log(row)
            place, spent = Place(place.epoch + 1), _Spent()
            if save is not None:
                save(state, place)
            if stop.is_set():
                break
    return train.Run(state, history, interrupted=place.epoch < epochs)


class _Spent(NamedTuple):
    """What a stretch of an epoch took."""

    seconds: float = 0.0
    waited: float = 0.0
    steps: int = 0


def _compiled(
    step: Step,
    state: distill.TrainState,
    teacher_variables: Any,
    key: Array,
    mesh: Mesh | None,
) -> Callable[[distill.TrainState, Batch, int, int], tuple]:
    """The step of a batch and its place, compiled."""
    # The state lies afterwards as it did before: it can be donated again as it is.
    lies = None
    if mesh is not None:
        lies = (meshes.shardings(state), meshes.replicated(mesh))
    there = key if mesh is None else meshes.put(key, meshes.replicated(mesh))
    run = jax.jit(step, donate_argnums=0, out_shardings=lies)
    return lambda state, batch, epoch, number: run(
        state, teacher_variables, batch, there, np.int32(epoch), np.int32(number)
    )


def _feed(
    stream: Stream, key: Array, epochs: int, start: Place
) -> AbstractContextManager[streams.Feed]:
    """The batches from a place on, through all epochs, on the device."""
    plan = streams.plan(
        key,
        stream.source.examples,
        batch_size=stream.batch_size,
        epochs=epochs,
        start=(start.epoch, start.step),
        part=stream.part,
    )
    return _prefetched(stream, plan)


def _prefetched(
    stream: Stream, plan: Iterable[streams.Chosen]
) -> AbstractContextManager[streams.Feed]:
    put = jax.device_put
    if stream.mesh is not None:
        put = functools.partial(meshes.put_rows, mesh=stream.mesh)
    read = streams.read(stream.source, plan, workers=stream.workers)
    return streams.prefetch(read, put, depth=stream.depth)


def _advance(
    call: Callable[[distill.TrainState, Batch, int, int], tuple],
    feed: streams.Feed,
    state: distill.TrainState,
    place: Place,
    *,
    steps: int,
    due: Callable[[int], bool],
    name: str,
    tick: Callable[..., None],
) -> tuple[distill.TrainState, Place, _Spent, Exception | None]:
    """Takes steps until the epoch ends, something is due, or no batch can be had."""
    begun, waited, error = time.perf_counter(), 0.0, None
    flying: collections.deque[Metrics] = collections.deque()
    done, sums = place.step, dict(place.sums)

    def land() -> None:
        number = done - len(flying)
        found = {k: np.asarray(v) for k, v in sorted(flying.popleft().items())}
        first = place.epoch * steps + number
        _loop.check_finite(
            {k: v[None] for k, v in found.items()}, first_step=first, name=name
        )
        for metric, value in found.items():
            sums[metric] = sums.get(metric, 0.0) + float(value)
        tick({"loss": float(found["loss"])})

    while done < steps:
        if not feed.ready():
            while flying:  # only from here on has the device nothing to do
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


def _row(name: str, place: Place, spent: _Spent, batch_size: int) -> logs.Row:
    return {
        "run": name,
        "epoch": place.epoch + 1,
        "seconds": round(spent.seconds, 4),
        **{metric: total / place.step for metric, total in place.sums.items()},
        "images_per_s": round(spent.steps * batch_size / spent.seconds, 3),
        "waited": round(spent.waited / spent.seconds, 4),
    }


def scorer(
    net: Net, stream: Stream, *, view: View
) -> Callable[[distill.TrainState], Metrics]:
    """Builds the measurement of a student on streamed data that `fit` takes.

    Args:
      net: the student.
      stream: the data to measure it on, every example once; the last batch is filled
        up by repeating examples that do not count.
      view: how the network sees the images; not random.

    Returns:
      `state -> {"accuracy", "nll"}`, scalars.

    Raises:
      ValueError: if the batch cannot be split over the mesh.
    """
    n, size = stream.source.examples, stream.batch_size
    _check.whole(1)("batch_size", size)
    if stream.mesh is not None:
        meshes.check_batch(size, stream.mesh)
    rows = streams.share(size, stream.part)

    def plan() -> Iterator[streams.Chosen]:
        for first in range(0, n, size):
            mine = np.arange(first, first + size)[rows] % n
            yield mine, np.zeros(len(mine), np.uint64)

    @jax.jit
    def score(variables: Any, batch: Batch, count: Array) -> tuple[Array, Array]:
        logits = distill.frozen(net)(variables, view(jax.random.key(0), batch)).logits
        counts = jnp.arange(size) < count
        right = (jnp.argmax(logits, -1) == batch["label"]) & counts
        nats = distill.cross_entropy(logits, batch["label"])
        return jnp.sum(right), jnp.sum(jnp.where(counts, nats, 0))

    def measure(state: distill.TrainState) -> Metrics:
        variables = (state.params["student"], state.state["student"])
        parts = []
        with _prefetched(stream, plan()) as feed:
            for first in range(0, n, size):
                count = np.int32(min(size, n - first))
                parts.append(score(variables, feed.take(), count))
                if len(parts) > IN_FLIGHT:
                    jax.block_until_ready(parts[-1 - IN_FLIGHT])
        right, nats = (sum(map(float, column)) for column in zip(*parts, strict=True))
        return {"accuracy": jnp.float32(right / n), "nll": jnp.float32(nats / n)}

    return measure
