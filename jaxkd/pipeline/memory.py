"""Whether a program can fit the memory of this machine, found out by tracing it."""

import functools
import math
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend import core


def traced(f: Callable[..., Any], *args: Any) -> Any:
    """Trace a function and return the shapes of its results, as `jax.eval_shape` does.

    Raises:
      ValueError: if its arguments and the largest array it computes are together more
        than the memory of the device. XLA may merge operations and never make that
        array, but not where so much of it is read later; what passes may still be
        too large, since several arrays live at once.
    """
    program, shapes = jax.make_jaxpr(f, return_shape=True)(*args)
    given = sum(map(size_of, program.in_avals))
    arrays = [*arrays_in(program.jaxpr), *program.out_avals]
    largest = max(arrays, key=size_of)
    needed = given + size_of(largest)
    if needed > memory():
        raise ValueError(
            f"needs at least {needed / 2**30:,.1f} GiB, {largest.str_short()} among "
            f"it; this machine has {memory() / 2**30:,.1f} GiB: make the batch, the "
            "network or a number of a loss smaller"
        )
    return shapes


def arrays_in(jaxpr: Any) -> Iterator[Any]:
    """Yield the type of every array that a program and those in it compute."""
    for equation in jaxpr.eqns:
        yield from (variable.aval for variable in equation.outvars)
        for inner in core.jaxprs_in_params(equation.params):
            yield from arrays_in(inner)


def size_of(array: Any) -> int:
    """Bytes of an array of this type; a key counts as 8."""
    item = getattr(array.dtype, "itemsize", 8)
    return math.prod(array.shape) * item


@functools.cache
def memory() -> int:
    """Bytes of the first device's memory; of the machine's, if the device has none."""
    stats = jax.devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"]
    try:
        found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not on Windows
        return 2**40
    try:  # a container may have less
        return min(found, int(pathlib.Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # there is none, or it is "max"
        return found
