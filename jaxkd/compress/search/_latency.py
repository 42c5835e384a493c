"""Latency from a look-up table: single blocks are measured, and their times added."""

import os
import pathlib
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import _check, store
from jaxkd.compress.search._blocks import TracedBlock, taken_apart
from jaxkd.compress.search._controller import Tokens
from jaxkd.compress.search._limit import Measure
from jaxkd.compress.search._space import Space

Stopwatch = Callable[[Callable[..., Any], tuple[int, ...]], float]


def xla_ms(
    f: Callable[..., Any], image_shape: tuple[int, ...], *, repeats: int = 20
) -> float:
    """Milliseconds of `f` on one image, compiled by XLA: the median of several calls.

    On a CPU this says little about a phone: give `latency` the runtime that the network
    is for.

    Args:
      f: from an array `[1, *image_shape]` to arrays.
      image_shape: of one image, without the batch axis.
      repeats: calls that are timed.
    """
    _check.whole(1)("repeats", repeats)
    x = jnp.zeros((1, *image_shape), jnp.float32)
    run = jax.jit(f).lower(x).compile()
    jax.block_until_ready(run(x))
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        jax.block_until_ready(run(x))
        seconds.append(time.perf_counter() - begin)
    return 1e3 * float(np.median(seconds))


def latency(
    space: Space,
    image_shape: tuple[int, ...],
    *,
    measure: Stopwatch = xla_ms,
    file: str | os.PathLike | None = None,
) -> Measure:
    """Build the latency of a candidate: the sum of its blocks' times, in ms.

    The blocks are the modules that the outermost module of a network calls. Each
    configuration is measured when it first occurs, and then kept: a search over
    thousands of candidates measures some dozens of blocks. What joins the blocks is not
    measured; `table_errors` says what that is worth.

    Args:
      space: makes the networks.
      image_shape: of one image, without the batch axis.
      measure: `(f, image_shape) -> ms`, on the runtime that the network is for; `f`
        is a function of one array `[1, *image_shape]`.
      file: where the times are kept, a line for each block, on the disk at once. A
        search that is to be resumed needs it, since times differ when measured again.

    Returns:
      From tokens to milliseconds, for `limit`. It raises a ValueError where a network
      has no blocks, or one of them not exactly one input.
    """
    blocks: dict[str, TracedBlock] = {}
    known: dict[Tokens, float] = {}
    times = _stored(file)

    def time_of(key: str) -> float:
        if key not in times:
            block = blocks[key]
            if len(block.inputs) != 1:
                raise ValueError(
                    f"a block must have one input to be measured, got "
                    f"{len(block.inputs)} in {key}"
                )
            times[key] = float(measure(block.run, block.inputs[0].shape[1:]))
            _store(file, key, times[key])
        return times[key]

    def cost(tokens: Tokens) -> float:
        tokens = tuple(tokens)
        if tokens not in known:
            whole = taken_apart(space.net(tokens), image_shape, blocks)
            if not whole.keys:
                raise ValueError("the network calls no modules that could be measured")
            known[tokens] = sum(map(time_of, whole.keys))
        return known[tokens]

    return cost


class TableError(NamedTuple):
    """How well sums of blocks tell the latencies of whole networks.

    Attributes:
      tokens: the networks that were measured.
      sums: ms `[n]`, from the table.
      wholes: ms `[n]`, measured.
      relative: `sums / wholes - 1`, `[n]`.
      order: the share of pairs that both put in the same order, in [0, 1]; nan for one
        network.
    """

    tokens: list[Tokens]
    sums: np.ndarray
    wholes: np.ndarray
    relative: np.ndarray
    order: float


def table_errors(
    space: Space,
    cost: Measure,
    candidates: Iterable[Tokens],
    image_shape: tuple[int, ...],
    *,
    measure: Stopwatch = xla_ms,
) -> TableError:
    """Compare a latency table with whole networks on the same runtime.

    Args:
      space: makes the networks.
      cost: from `latency`.
      candidates: tokens, e.g. from `sample`.
      image_shape: of one image, without the batch axis.
      measure: the same as the table's.
    """
    tokens = [tuple(each) for each in candidates]
    sums = np.asarray([cost(each) for each in tokens])
    wholes = np.asarray(
        [measure(_forward(space, each, image_shape), image_shape) for each in tokens]
    )
    i, j = np.triu_indices(len(tokens), 1)
    same = (sums[i] - sums[j]) * (wholes[i] - wholes[j]) > 0
    order = float(same.mean()) if len(i) else float("nan")
    return TableError(tokens, sums, wholes, sums / wholes - 1, order)


def _forward(space: Space, tokens: Tokens, image_shape: tuple[int, ...]) -> Callable:
    net = space.net(tokens)
    x = jnp.zeros((1, *image_shape), jnp.float32)
    # A kind of key that compiles in a fraction of the time; any weights will do.
    params, state = jax.jit(net.init)(jax.random.key(0, impl="rbg"), x)
    return lambda x: net.apply(params, state, x, train=False)[0].logits


def _stored(file: str | os.PathLike | None) -> dict[str, float]:
    """Return the times in a file; a torn last line is cut off."""
    if file is None or not pathlib.Path(file).exists():
        return {}
    path = pathlib.Path(file)
    try:
        rows, end = store.read_lines(path)
        os.truncate(path, end)
        return {row["block"]: float(row["ms"]) for row in rows}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no table of latencies: {error!r}") from error


def _store(file: str | os.PathLike | None, key: str, ms: float) -> None:
    if file is None:
        return
    path = pathlib.Path(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    store.append_line(path, {"block": key, "ms": ms})
