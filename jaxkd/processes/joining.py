"""The start of a process among others."""

import importlib.util
import os
from importlib import metadata

import jax

from jaxkd.processes import peers
from jaxkd.processes.environment import NAMES, place


def start(*, timeout: int = 300, port: int = 0) -> None:
    """Joins this process with the others that the environment names.

    To be called once, before anything that uses a device. It returns when all processes
    are there. Collectives of CPU devices go through gloo, as jax does by default; they
    are for tests and small runs (see `_one_after_another`).

    Args:
      timeout: how many seconds to wait for the others.
      port: of process 0, besides the coordinator's, by which the processes notice one
        another's end; 0 takes a free one.

    Raises:
      ValueError: if the variables are incomplete or contradict one another.
      RuntimeError: if devices are in use already, or a process cannot be reached.
    """
    here = place(os.environ)
    if here is None or here.processes == 1:
        return
    _one_after_another()
    words = peers.last_words(
        f"{here}: not all of them were at {here.address} within {timeout} s. Were all "
        f"started with the same {NAMES[0]} and {NAMES[1]}? Do they reach that port?"
    )
    try:
        jax.distributed.initialize(
            here.address,
            here.processes,
            here.process,
            initialization_timeout=timeout,
            heartbeat_timeout_seconds=peers.HEARTBEAT,
            shutdown_timeout_seconds=peers.LEAVING,
        )
        links = peers.connect(here, port)
    except BaseException:
        peers.silence(words)  # the exception says it
        raise
    peers.watch(here, links, words)


def _one_after_another() -> None:
    """Leaves XLA's CPU client one thread, where devices are CPUs.

    With more, it runs collectives at once that do not depend on one another, such as
    those inside and outside of a `lax.cond`. gloo then mistakes one for the other: the
    runtime aborts where their sizes differ, and would compute nonsense where not.
    """
    platforms = jax.config.jax_platforms  # type: ignore[attr-defined]
    plugins = importlib.util.find_spec("libtpu") or metadata.entry_points(
        group="jax_plugins"
    )
    if platforms == "cpu" or (not platforms and not plugins):
        os.environ.setdefault("PJRT_NPROC", "1")
