"""Many examples, some at a time, so that what is held on the way is a chunk's size."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

CHUNK = 2**24  # numbers, 64 MiB of float32; fewer are not worth a loop
MOST_CHUNKS = 16  # more would save little, and ask for more examples on each device


def in_chunks(function: Callable[..., Any], x: Array, *others: Any) -> Any:
    """`function(x, *others)`, by chunks of the examples if there are many numbers.

    A chunk takes as many examples from each group of neighbours, so that what is
    sharded over devices stays where it is as long as each device has whole groups.

    Args:
      function: of arrays `[*batch, ...]`, to arrays `[*batch, ...]`; each example is on
        its own.
      x: `[*batch, n]`, the largest argument.
      *others: `[*batch, ...]`, or None.
    """
    *batch, _ = x.shape
    chunks = _chunks(x.shape)
    if chunks == 1:
        return function(x, *others)
    axis = _axis(batch, chunks)
    groups = _groups(batch[axis], chunks)
    members = batch[axis] // groups
    size = -(-members // chunks)

    def grouped(x):
        return x.reshape(*batch[:axis], groups, members, *x.shape[axis + 1 :])

    def ungrouped(y):
        return y.reshape(*batch, *y.shape[len(batch) + 1 :])

    def empty(y):
        return jnp.zeros((*y.shape[: axis + 1], members, *y.shape[axis + 2 :]), y.dtype)

    def chunk(i):
        cut = lambda x: jax.lax.dynamic_slice_in_dim(x, i * size, size, axis + 1)
        return function(*jax.tree.map(cut, whole))

    def step(i, done):
        put = jax.lax.dynamic_update_slice_in_dim
        return jax.tree.map(lambda x, y: put(x, y, i * size, axis + 1), done, chunk(i))

    whole = jax.tree.map(grouped, (x, *others))
    done = jax.tree.map(empty, jax.eval_shape(chunk, 0))
    # A slice that would end too late is moved back: the last chunk does some examples
    # again where they do not divide evenly.
    done = jax.lax.fori_loop(0, -(-members // size), step, done)
    return jax.tree.map(ungrouped, done)


def _chunks(shape: tuple[int, ...]) -> int:
    """Return how many chunks to make of so many numbers."""
    return min(MOST_CHUNKS, -(-math.prod(shape) // CHUNK), max(shape[:-1], default=1))


def _axis(batch: list[int], chunks: int) -> int:
    """Return the batch axis to cut: the last that is long enough, or else the longest.

    The last, because of sequences' `[batch, time]` it is the first that is sharded.
    """
    return max(range(len(batch)), key=lambda axis: (min(batch[axis], chunks), axis))


def _groups(length: int, chunks: int) -> int:
    """Return the most groups that leave every chunk a member of each.

    A power of two, because the number of devices is usually one.
    """
    return math.gcd(length, 2 ** ((length // chunks).bit_length() - 1))
