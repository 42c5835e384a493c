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
    are for tests and small runs: see `_in_one_order`, which also turns jax's persistent
    compilation cache off.

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
    _in_one_order()
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


def _in_one_order() -> None:
    """Makes processes whose devices are CPUs run collectives in the same order.

    gloo tells collectives apart by nothing but their order. Where two processes start
    them in different orders, they wait for one another for ever, the runtime aborts
    because the sizes differ, or the results are wrong. XLA's CPU client runs the
    operations of one program concurrently, and what it keeps in order is not enough:

    - In a program from the persistent compilation cache, the collectives inside of a
      loop or a `lax.cond` are not ordered with those outside of it. (With jax 0.10.2
      and 0.12, TF_CPP_VMODULE=execution_graph=2 logs these edges where a program is
      compiled, and not where it is read.) So nothing is read: the cache is off.
    - In any program, a collective waits for the start of a loop or a `lax.cond` before
      it, not for the end. So the client has one thread.
    """
    platforms = jax.config.jax_platforms  # type: ignore[attr-defined]
    plugins = importlib.util.find_spec("libtpu") or metadata.entry_points(
        group="jax_plugins"
    )
    if platforms == "cpu" or (not platforms and not plugins):
        os.environ.setdefault("PJRT_NPROC", "1")
        jax.config.update("jax_enable_compilation_cache", False)
