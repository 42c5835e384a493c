"""Examples that do not fit into memory: read by position, in a fixed order, ahead.

    stream = data.Stream(data.mapped(data.load("cifar10", "train")), batch_size=128)
    run = train.learn(student, stream, ...)

grain reads; the order is that of training on data that lie on the device. What is kept
in memory is the order of an epoch (4 bytes an example) and the few batches between the
reader and the step.
"""

import contextlib
import dataclasses
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from jaxkd import _check, mesh as meshes
from jaxkd.data import batches, dataset as datasets
from jaxkd.types import Batch

HostBatch = dict[str, Any]
Read = Callable[[np.ndarray, np.ndarray], HostBatch]


class Source(NamedTuple):
    """Examples on a disk, each of which can be read at any time.

    Attributes:
      name: of the data set and its split, for messages.
      examples: how many there are.
      classes: the classes' names, by label.
      read: `(positions [k], draws [k]) -> {name: array [k, ...]}`, for images "image"
        uint8 `[k, h, w, c]`, "label" int32 `[k]` and "index" int32 `[k]`. A draw is a
        uint64 from which whatever is random about reading its example is made, a crop
        for one. Called from many threads.
      record: what the example at a position is called in its file, for messages.
    """

    name: str
    examples: int
    classes: tuple[str, ...]
    read: Read
    record: Callable[[int], str]


def sequence(
    examples: Any, *, name: str = "sequence", classes: Sequence[str] = ()
) -> Source:
    """Make a source of anything that has `__len__` and `__getitem__`.

    That is grain's protocol of a random-access data source; data sources of
    TensorFlow Datasets, data sets of Hugging Face and lists have it too.
    `__getitems__` is used where it exists.

    Args:
      examples: `examples[i]` is a dict of arrays or numbers, of the same names and
        shapes for every i.
      name: for messages.
      classes: the classes' names, by label.

    Returns:
      The source; "index" is added where the examples have none.

    Raises:
      ValueError: if there is no example; when read, naming the first example that
        differs from the others or cannot be read.
    """
    if not len(examples):
        raise ValueError(f"{name} has no examples")
    record = lambda position: f"{name}, example {position}"

    def fetch(position: int) -> dict[str, Any]:
        try:
            return dict(examples[position])
        except Exception as error:
            raise ValueError(f"{record(position)} cannot be read: {error}") from error

    def read(positions: np.ndarray, draws: np.ndarray) -> HostBatch:
        places = positions.tolist()
        if hasattr(examples, "__getitems__"):
            found = [dict(example) for example in examples.__getitems__(places)]
        else:
            found = [fetch(place) for place in places]
        for place, example in zip(places, found, strict=True):
            example.setdefault("index", np.int32(place))
            if _shapes(example) != _shapes(found[0]):
                raise ValueError(
                    f"{record(place)} is {_shapes(example)}, unlike "
                    f"{record(places[0])}, {_shapes(found[0])}"
                )
        return jax.tree.map(lambda *leaves: np.stack(leaves), *found)

    return Source(name, len(examples), tuple(classes), read, record)


def _shapes(example: dict[str, Any]) -> dict[str, Any]:
    return jax.tree.map(np.shape, example)


@dataclasses.dataclass(frozen=True)
class Stream:
    """How examples that are read while training come in.

    Attributes:
      source: from where; `mapped`, `records`, or `sequence` of objects of your own.
      batch_size: examples in a step, of all processes together.
      workers: threads that read; 1 is right for memory-mapped data, the number of cores
        for images that are decoded.
      depth: how many batches wait on the device, or more if there are more threads.
      mesh: of all devices, from `mesh.make`; each process then reads only the rows of
        its own. None is one device.
    """

    source: Source
    batch_size: int
    workers: int = 1
    depth: int = 2
    mesh: Mesh | None = None

    def __post_init__(self) -> None:
        _check.whole(1)("workers", self.workers)
        _check.whole(1)("depth", self.depth)
        _check.whole(1)("batch_size", self.batch_size)
        if self.mesh is not None:
            meshes.check_batch(self.batch_size, self.mesh)

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

    def put(self, batch: HostBatch) -> Batch:
        """Put the rows of this process on its devices."""
        _check.columns(batch)
        if self.mesh is None:
            return jax.device_put(batch)
        return meshes.put_rows(batch, self.mesh)


def mapped(dataset: datasets.Dataset) -> Source:
    """Return the examples of a decoded split, gathered from the file that is mapped.

    The file's pages are the operating system's: it keeps as many as there is room for,
    and takes them back when memory gets scarce. Only the gathered batch is a copy.

    Args:
      dataset: as `load` returns it. "validation" and "train_rest" are copies in memory.

    Raises:
      ValueError: if the arrays do not fit together or a label has no class.
    """
    datasets.check(dataset)
    # Still mapped, but no longer memmaps: gathered rows are plain arrays.
    columns = {name: np.asarray(array) for name, array in dataset.columns.items()}

    def read(positions: np.ndarray, draws: np.ndarray) -> HostBatch:
        return {name: np.take(array, positions, 0) for name, array in columns.items()}

    name = f"{dataset.name}/{dataset.split}"
    kind = "image" if "image" in columns else "example"
    record = lambda position: f"{name}, {kind} {position}"
    return Source(name, len(dataset), dataset.classes, read, record)


def order(key: Array, epoch: int, n: int, batch_size: int) -> np.ndarray:
    """Return the positions of every step of an epoch, over all processes.

    It depends on nothing but the arguments, and is the order in which `train.fit` takes
    resident data with the same key.

    Args:
      key: of the run.
      epoch: which one, from 0.
      n: how many examples there are.
      batch_size: examples in a step, of all processes together.

    Returns:
      int32 `[n // batch_size, batch_size]`.

    Raises:
      ValueError: if `batch_size` is larger than n.
    """
    with _on_host():
        return np.asarray(_order(_moved(key), np.int32(epoch), n, batch_size))


@functools.partial(jax.jit, static_argnums=(2, 3))
def _order(key: Array, epoch: Array, n: int, batch_size: int) -> Array:
    order_key, _ = jax.random.split(jax.random.fold_in(key, epoch))
    return batches.epoch(order_key, n, batch_size)


def view_key(key: Array, epoch: Array, step: Array, steps: int) -> Array:
    """The key under which `train.fit` makes the view of a step; runs when compiled."""
    _, of_views = jax.random.split(jax.random.fold_in(key, epoch))
    return jax.random.split(of_views, steps)[step]


def _on_host() -> Any:
    """Compute on the CPU where JAX has one: an accelerator has better things to do."""
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:
        return contextlib.nullcontext()


def _moved(key: Array) -> Array:
    """Return the same key where `_on_host` computes."""
    words = np.asarray(jax.random.key_data(key))
    return jax.random.wrap_key_data(jnp.asarray(words), impl=jax.random.key_impl(key))


def seed_of(key: Array) -> int:
    """Return a number in [0, 2**64) made of all bits of a key."""
    seed = 0
    for word in np.asarray(jax.random.key_data(key)).ravel().tolist():
        seed = int(datasets._shuffle_keys(np.array([seed], np.uint64), word)[0])
    return seed


def draws(seed: int, epoch: int, positions: np.ndarray) -> np.ndarray:
    """Return a uint64 for each example that depends on seed, epoch and position alone.

    So an example is cropped alike whichever process or thread reads it.
    """
    of_epoch = int(datasets._shuffle_keys(np.array([seed], np.uint64), epoch)[0])
    return datasets._shuffle_keys(positions, of_epoch)


def share(batch_size: int, part: tuple[int, int]) -> slice:
    """Return the rows of a global batch that a reader reads.

    Args:
      batch_size: of the global batch.
      part: (which, of how many); the first reader has the first rows.

    Raises:
      ValueError: if there is no such reader, or the batch cannot be shared equally.

    Example:
      >>> share(8, (1, 4))
      slice(2, 4, None)
    """
    which, count = part
    if not 0 <= which < count:
        raise ValueError(f"part must be (which, of how many), got {part}")
    if batch_size % count:
        raise ValueError(
            f"batch_size must be a multiple of the {count} readers, got {batch_size}"
        )
    rows = batch_size // count
    return slice(which * rows, (which + 1) * rows)


class _Training:
    """The batches of a training, by the number of their step: what grain reads from."""

    def __init__(self, stream: Stream, key: Array, epochs: int) -> None:
        self.stream, self.epochs = stream, epochs
        # Once: later on, asking the device would mean to wait for the steps in its
        # queue.
        with _on_host():
            self.key = _moved(key)
            self.seed = seed_of(self.key)
        self.rows = share(stream.batch_size, stream.part)
        self.order = functools.lru_cache(2)(self._order)  # threads are an epoch apart
        self.lock = threading.Lock()

    def _order(self, epoch: int) -> np.ndarray:
        n, size = self.stream.source.examples, self.stream.batch_size
        return order(self.key, epoch, n, size)

    def __len__(self) -> int:
        return self.epochs * self.stream.steps

    def __getitem__(self, number: int) -> Batch:
        epoch, step = divmod(number, self.stream.steps)
        with self.lock:
            positions = self.order(epoch)[step][self.rows]
        read = self.stream.source.read
        return self.stream.put(read(positions, draws(self.seed, epoch, positions)))


class _Once:
    """Every example once, in order; the last batch is filled up from the beginning."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.rows = share(stream.batch_size, stream.part)

    def __len__(self) -> int:
        return -(-self.stream.source.examples // self.stream.batch_size)

    def __getitem__(self, number: int) -> Batch:
        size = self.stream.batch_size
        positions = np.arange(number * size, (number + 1) * size)[self.rows]
        positions = (positions % self.stream.source.examples).astype(np.int32)
        read = self.stream.source.read
        return self.stream.put(read(positions, np.zeros(len(positions), np.uint64)))


class Feed:
    """Batches on the device, one ahead of the one that is taken.

    `take` returns the next, or None after the last; it raises what went wrong when the
    batch was read. `ready` tells whether it would return at once.
    """

    def __init__(self, batches: Iterator[Batch], pool: ThreadPoolExecutor) -> None:
        self._next: Callable[[], Future] = lambda: pool.submit(next, batches, None)
        self._ahead = self._next()

    def ready(self) -> bool:
        """Return whether `take` would return at once."""
        return self._ahead.done()

    def take(self) -> Batch | None:
        """Return the next batch, or None after the last."""
        batch = self._ahead.result()
        self._ahead = self._next()
        return batch


@contextlib.contextmanager
def training(
    stream: Stream, key: Array, *, epochs: int, start: tuple[int, int] = (0, 0)
) -> Iterator[Feed]:
    """Read the batches of a training from a step on, through all epochs.

    Args:
      stream: what is read, and how.
      key: of the run.
      epochs: where to end.
      start: (epoch, step) of the first batch.

    Raises:
      ValueError: if the batch cannot be shared equally among several processes.
    """
    first = start[0] * stream.steps + start[1]
    with _feed(_Training(stream, key, epochs), stream, first) as feed:
        yield feed


@contextlib.contextmanager
def once(stream: Stream) -> Iterator[Feed]:
    """Read every example once, in order, to measure on."""
    with _feed(_Once(stream), stream, 0) as feed:
        yield feed


@contextlib.contextmanager
def _feed(numbered: Any, stream: Stream, first: int) -> Iterator[Feed]:
    import grain  # only where something is streamed: it takes a second

    if first >= len(numbered):  # grain has no empty data sets
        with ThreadPoolExecutor(1) as pool:
            yield Feed(iter(()), pool)
        return
    options = grain.ReadOptions(
        num_threads=stream.workers,
        prefetch_buffer_size=max(stream.workers, stream.depth),
    )
    batches = iter(grain.MapDataset.source(numbered)[first:].to_iter_dataset(options))
    pool = ThreadPoolExecutor(1, thread_name_prefix="feed")
    try:
        yield Feed(batches, pool)
    finally:
        pool.shutdown(cancel_futures=True)
        if hasattr(batches, "close"):
            batches.close()


def first(stream: Stream, size: int = 2) -> HostBatch:
    """Read the first examples, as they are stored."""
    positions = (np.arange(size) % stream.source.examples).astype(np.int32)
    found = stream.source.read(positions, np.zeros(size, np.uint64))
    _check.columns(found)
    return found
