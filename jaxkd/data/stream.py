"""Examples that do not fit into memory: read by position, in a fixed order, ahead.

    source = stream.mapped(data.load("cifar10", "train"))
    plan = stream.plan(key, source.examples, batch_size=128, epochs=10)
    with stream.prefetch(stream.read(source, plan, workers=4)) as feed:
        while (batch := feed.take()) is not None:
            ...

What is kept in memory is the order of one epoch (4 bytes an example) and the few
batches between the reader and the step.
"""

import collections
import contextlib
import functools
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxkd import _check
from jaxkd.data import batches, dataset as datasets

HostBatch = dict[str, np.ndarray]
Read = Callable[[np.ndarray, np.ndarray], HostBatch]
Chosen = tuple[np.ndarray, np.ndarray]  # positions, and a draw for each


class Source(NamedTuple):
    """Examples on a disk, each of which can be read at any time.

    Attributes:
      name: of the data set and its split, for messages.
      examples: how many there are.
      classes: the classes' names, by label.
      read: `(positions [k], draws [k]) -> {"image": uint8 [k, h, w, c], "label": int32
        [k], "index": int32 [k]}`. A draw is a uint64 from which whatever is random
        about reading its example is made, a crop for one. Called from many threads.
      record: what the example at a position is called in its file, for messages.
    """

    name: str
    examples: int
    classes: tuple[str, ...]
    read: Read
    record: Callable[[int], str]


def mapped(dataset: datasets.Dataset) -> Source:
    """The examples of a decoded split, gathered from the file that is mapped.

    The file's pages are the operating system's: it keeps as many as there is room for,
    and takes them back when memory gets scarce. Only the gathered batch is a copy.

    Args:
      dataset: as `load` returns it. "validation" and "train_rest" are copies in memory.

    Raises:
      ValueError: if the arrays do not fit together or a label has no class.
    """
    datasets.check(dataset)
    columns = {
        "image": np.asarray(dataset.images),  # still mapped, but no longer a memmap
        "label": dataset.labels,
        "index": dataset.index,
    }

    def read(positions: np.ndarray, draws: np.ndarray) -> HostBatch:
        return {name: np.take(array, positions, 0) for name, array in columns.items()}

    name = f"{dataset.name}/{dataset.split}"
    record = lambda position: f"{name}, image {position}"
    return Source(name, len(dataset.labels), dataset.classes, read, record)


def order(key: Array, epoch: int, n: int, batch_size: int) -> np.ndarray:
    """The positions of every step of an epoch, over all processes.

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
    """Computes on the CPU where JAX has one: an accelerator has better things to do."""
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:
        return contextlib.nullcontext()


def _moved(key: Array) -> Array:
    """The same key where `_on_host` computes."""
    words = np.asarray(jax.random.key_data(key))
    return jax.random.wrap_key_data(jnp.asarray(words), impl=jax.random.key_impl(key))


def seed_of(key: Array) -> int:
    """A number in [0, 2**64) made of all bits of a key."""
    seed = 0
    for word in np.asarray(jax.random.key_data(key)).ravel().tolist():
        seed = int(datasets._shuffle_keys(np.array([seed], np.uint64), word)[0])
    return seed


def draws(seed: int, epoch: int, positions: np.ndarray) -> np.ndarray:
    """A uint64 for each example that depends on seed, epoch and position alone.

    So an example is cropped alike whichever process or thread reads it.
    """
    of_epoch = int(datasets._shuffle_keys(np.array([seed], np.uint64), epoch)[0])
    return datasets._shuffle_keys(positions, of_epoch)


def share(batch_size: int, part: tuple[int, int]) -> slice:
    """The rows of a global batch that a reader reads.

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


def plan(
    key: Array,
    n: int,
    *,
    batch_size: int,
    epochs: int,
    start: tuple[int, int] = (0, 0),
    part: tuple[int, int] = (0, 1),
) -> Iterator[Chosen]:
    """What a reader is to read, step by step, through all epochs.

    Args:
      key: of the run.
      n: how many examples there are.
      batch_size: examples in a step, of all readers together.
      epochs: where to end.
      start: (epoch, step) of the first batch, to go on where a run was left.
      part: which of how many readers this one is; see `share`.

    Yields:
      The positions of this reader's rows of the next global batch, and their draws.

    Raises:
      ValueError: if the batch is larger than the data or cannot be shared equally.
    """
    first_epoch, first_step = start
    rows = share(batch_size, part)
    # Once: later on, asking the device would mean to wait for the steps in its queue.
    with _on_host():
        key, seed = _moved(key), seed_of(key)
    for epoch in range(first_epoch, epochs):
        steps = order(key, epoch, n, batch_size)
        for positions in steps[first_step if epoch == first_epoch else 0 :]:
            mine = positions[rows]
            yield mine, draws(seed, epoch, mine)


def read(
    source: Source, plan: Iterable[Chosen], *, workers: int = 0, ahead: int = 2
) -> Generator[HostBatch, None, None]:
    """Reads batch after batch, each shared among threads, some batches ahead.

    Decoding and resizing release Python's lock, so threads use all cores.

    Args:
      source: from where.
      plan: what, e.g. from the function `plan`; consumed in order.
      workers: threads; 0 reads in the caller's.
      ahead: how many batches the threads begin before the first is handed out.

    Yields:
      The batches in the order of the plan, whatever the number of threads.

    Raises:
      ValueError: what `source.read` raises, which names the record.
    """
    _check.whole(0)("workers", workers)
    _check.whole(0)("ahead", ahead)
    if not workers:
        yield from (source.read(*chosen) for chosen in plan)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="read")
    begun: collections.deque[list[Future[HostBatch]]] = collections.deque()
    try:
        for positions, drawn in plan:
            parts = min(workers, len(positions))
            chunks = zip(
                np.array_split(positions, parts),
                np.array_split(drawn, parts),
                strict=True,
            )
            begun.append([pool.submit(source.read, *chunk) for chunk in chunks])
            if len(begun) > ahead:
                yield _joined(begun.popleft())
        while begun:
            yield _joined(begun.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def _joined(parts: list[Future[HostBatch]]) -> HostBatch:
    found = [part.result() for part in parts]
    return {name: np.concatenate([part[name] for part in found]) for name in found[0]}


class Feed(NamedTuple):
    """What `prefetch` has at hand.

    Attributes:
      take: the next item, waiting for it if need be; None after the last one. Raises
        what went wrong when the item was made.
      ready: whether `take` would return at once.
    """

    take: Callable[[], Any]
    ready: Callable[[], bool]


class _Desk(NamedTuple):
    """What the reading thread and the consumer share, under `changed`."""

    changed: threading.Condition
    items: collections.deque
    ended: list[BaseException | None]  # empty until there are no more items
    closed: list[bool]


@contextlib.contextmanager
def prefetch(
    items: Iterable[Any], put: Callable[[Any], Any] = jax.device_put, *, depth: int = 2
) -> Iterator[Feed]:
    """Makes items in a thread of its own, and puts them on the device, ahead of time.

    The thread waits while `depth` items are at hand, and ends with the block; `items`
    is then closed, if it is a generator.

    Args:
      items: what to take from, e.g. `read(...)`.
      put: from an item to what the consumer gets; runs in the thread.
      depth: how many items wait at most, >= 1; 2 is a double buffer.

    Yields:
      The feed.
    """
    _check.whole(1)("depth", depth)
    desk = _Desk(threading.Condition(), collections.deque(), [], [])
    thread = threading.Thread(
        target=_work, args=(desk, items, put, depth), name="prefetch", daemon=True
    )
    thread.start()
    try:
        yield Feed(functools.partial(_take, desk), functools.partial(_ready, desk))
    finally:
        with desk.changed:
            desk.closed.append(True)
            desk.changed.notify_all()
        thread.join()


def _ready(desk: _Desk) -> bool:
    with desk.changed:
        return bool(desk.items or desk.ended)


def _take(desk: _Desk) -> Any:
    with desk.changed:
        desk.changed.wait_for(lambda: desk.items or desk.ended)
        if desk.items:
            desk.changed.notify_all()
            return desk.items.popleft()
    if desk.ended[0] is not None:
        raise desk.ended[0]
    return None


def _work(
    desk: _Desk, items: Iterable[Any], put: Callable[[Any], Any], depth: int
) -> None:
    end: BaseException | None = None
    iterator = iter(items)
    try:
        for item in iterator:
            made = put(item)
            with desk.changed:
                desk.changed.wait_for(lambda: len(desk.items) < depth or desk.closed)
                if desk.closed:
                    return
                desk.items.append(made)
                desk.changed.notify_all()
            del item, made  # else the thread keeps one batch more than `depth`
    except BaseException as error:
        end = error
    finally:
        if hasattr(iterator, "close"):
            iterator.close()
        with desk.changed:
            desk.ended.append(end)
            desk.changed.notify_all()
