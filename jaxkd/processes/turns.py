"""Who does what first, and who waits for whom."""

from collections.abc import Callable
from typing import TypeVar

import jax
from jax.experimental import multihost_utils

from jaxkd.processes.peers import client

T = TypeVar("T")


def barrier(name: str) -> None:
    """Waits until all processes are here. However long: see `start` for lost ones.

    Args:
      name: the same in all of them; it may be used again.
    """
    if jax.process_count() == 1:
        return
    service = client()
    if service is None:  # on a TPU pod without `start`
        multihost_utils.sync_global_devices(name)
    else:
        service.wait_at_barrier(f"jaxkd/{name}", timeout_in_ms=2**31 - 1)


def once(work: Callable[[], object], name: str = "once") -> None:
    """The first process does it; the others wait for that.

    Args:
      work: what concerns the first process alone, e.g. writes a file. What it needs of
        arrays that lie on several hosts must have been fetched (`mesh.fetch`).
      name: as for `barrier`.
    """
    if jax.process_index() == 0:
        work()
    barrier(name)


def in_turn(work: Callable[[], T], name: str = "in_turn") -> T:
    """The first process does it; then the others do it too, and find its results.

    Where hosts have no disk in common, each finds nothing and does it all: that is
    slower, but right as well. What `work` computes must lie on the process's own
    devices (see `mesh.fetch`), since the processes do not do it together.

    Args:
      work: what stores its results and, called again, reads them.
      name: as for `barrier`.

    Returns:
      What `work` returned in this process.
    """
    first = jax.process_index() == 0
    if not first:
        barrier(name)
    result = work()
    if first:
        barrier(name)
    return result
