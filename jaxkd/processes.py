"""Several processes that run one program: join, wait for one another, take turns.

Every process runs the same script on its own devices, and starts with::

    from jaxkd import mesh, processes
    processes.start()            # before anything that uses a device
    devices = mesh.make()        # over the devices of all processes

`start` reads the environment, and does nothing for a process that is alone:

    JAX_COORDINATOR_ADDRESS=HOST:PORT   of process 0, with a free port
    JAX_NUM_PROCESSES=N  JAX_PROCESS_ID=0 ... N-1

Under Slurm (`srun`), Open MPI (`mpirun`), Kubernetes and on TPU pods none of them is
needed: jax knows these clusters. `jax.process_count()` and `jax.process_index()` return
how many processes there are and which one this is.

All processes call `log.start` and `checkpoint.writer`, and the first one writes. `once`
does that for other files. `in_turn` is for work that finds its own results on the disk,
such as a teacher's stored scores::

    score = lambda: cache.score(teacher, variables, train, view=view, path=path)
    scores = processes.in_turn(score)  # `data.load`, which may download, likewise

If a process fails, is killed, hangs, or loses its network, jax's coordination service
ends all the others with a code other than 0. Measured with two processes on CPUs, each
in a network of its own for the last row (jax 0.10.2, `HEARTBEAT` 10 s instead of 45):

    ===============================  =========  ==================================
    one process                      the other  its message
    ===============================  =========  ==================================
    fails (with code 1) or is        < 1 s, 1   Gloo AllGather failed: Connection
      killed, in a collective                     reset by peer
    0 is killed, in no collective    < 1 s, -6  PollForError: Socket closed
    1 is killed, in no collective    8 s, -6    heartbeat timeout
    1 is killed before a barrier     8 s, 1     Barrier failed: heartbeat timeout
    hangs, or its link is down       10 s, -6   0: heartbeat timeout;
                                                  1: Heartbeat: Deadline Exceeded
    ===============================  =========  ==================================

(-6 is an abort by jax's runtime, whose message says that another task died.) Whatever
was saved is whole: the run resumes from its last checkpoint, with any number of
processes.
"""

import atexit
import importlib.util
import os
import sys
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import NamedTuple, TypeVar

import jax

NAMES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
HEARTBEAT = 45  # seconds after which a silent process counts as lost
LEAVING = 600  # seconds that a process which is done waits for the others

T = TypeVar("T")


class ProcessId(NamedTuple):
    """Which process this is, of how many.

    Attributes:
      address: of process 0, as "HOST:PORT".
      processes: how many there are.
      process: the number of this one, from 0.
    """

    address: str
    processes: int
    process: int

    def __str__(self) -> str:
        return f"process {self.process} of {self.processes}"


def place(environ: Mapping[str, str]) -> ProcessId | None:
    """Return which process this is by the environment; None where it does not tell.

    Variables that are not set are looked up in the cluster, if jax knows it.

    Raises:
      ValueError: if the variables are incomplete or contradict one another.
      RuntimeError: if there seems to be a cluster, but its description is not enough.

    Example:
      >>> place({"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1",
      ...        "JAX_COORDINATOR_ADDRESS": "10.0.0.1:4000"})
      Place(address='10.0.0.1:4000', processes=2, process=1)
    """
    address, count, index = NAMES
    given = {name: environ[name] for name in NAMES if environ.get(name)}
    found = dict(given)
    if given.get(count) != "1" and len(given) < len(NAMES):
        found = {**_cluster(environ), **given}
    if not found:
        return None
    if found.get(count) == "1":
        found = {address: "", index: "0", **found}
    if missing := [name for name in NAMES if name not in found]:
        raise ValueError(
            f"{' and '.join(missing)} must be set beside {' and '.join(given)}: where "
            "process 0 is, as HOST:PORT; how many processes there are; and which of "
            "them this is, from 0"
        )
    n, i = _whole(count, found[count]), _whole(index, found[index])
    if i >= n:
        ours = " and ".join(given) or "neither"
        raise ValueError(
            f"{index} must be 0 to {count} - 1, got process {i} of {n} (set here: "
            f"{ours}; the rest is the cluster's)"
        )
    host, _, port = found[address].rpartition(":")
    if n > 1 and not (host and port.isdecimal()):
        raise ValueError(f"{address} must be HOST:PORT, got {found[address]!r}")
    return ProcessId(found[address], n, i)


def is_first(environ: Mapping[str, str]) -> bool:
    """Return whether this process is the first, or alone, by the environment.

    For programs that one process runs for all, without joining them. Where a cluster's
    description is not enough, each process counts as alone.

    Raises:
      ValueError: if the variables are incomplete or contradict one another.

    Example:
      >>> is_first({"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1",
      ...           "JAX_COORDINATOR_ADDRESS": "10.0.0.1:4000"})
      False
    """
    try:
        here = place(environ)
    except RuntimeError:
        return True
    return here is None or here.process == 0


def start(*, timeout: int = 300) -> None:
    """Join this process with the others that the environment names.

    Call it once, before anything that uses a device. It returns when all processes have
    joined. Collectives of CPU devices go through gloo, as jax does by default; they are
    for tests and small runs: see `_keep_order_of_collectives`, which also turns jax's
    persistent compilation cache off.

    Args:
      timeout: how many seconds to wait for the others.

    Raises:
      ValueError: if the variables are incomplete or contradict one another.
      RuntimeError: if devices are in use already.
    """
    here = place(os.environ)
    if here is None or here.processes == 1:
        return
    _keep_order_of_collectives()
    # Where the others do not come in time jax's runtime may abort: no exception could
    # tell then what to look at.
    print(f"jaxkd: {here} waits {timeout} s for all at {here.address}", file=sys.stderr)
    jax.distributed.initialize(
        here.address,
        here.processes,
        here.process,
        initialization_timeout=timeout,
        heartbeat_timeout_seconds=HEARTBEAT,
        shutdown_timeout_seconds=LEAVING,
    )
    # Handlers run last in, first out: this one before jax's, which waits for all.
    atexit.register(_leave_if_failed)


def _leave_if_failed() -> None:
    """End a process that failed at once, since jax's own end waits for the others."""
    if getattr(sys, "last_value", None) is None:
        return
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(1)


def barrier(name: str) -> None:
    """Wait until all processes are here, however long that takes.

    Args:
      name: the same in all of them; it may be used again.
    """
    if jax.process_count() == 1:
        return
    from orbax.checkpoint import multihost  # seconds to import

    if multihost.is_jax_distributed_client_initialized():
        wait = multihost.get_barrier_sync_fn()
        wait(key=f"jaxkd/{name}", timeout_ms=2**31 - 1)
    else:  # on a TPU pod without `start`
        multihost.sync_global_processes(name)


def once(work: Callable[[], object], name: str = "once") -> None:
    """Let the first process do something while the others wait.

    Args:
      work: what concerns the first process alone, e.g. writes a file. What it needs of
        arrays that lie on several hosts must have been fetched (`mesh.fetch`).
      name: as for `barrier`.
    """
    if jax.process_index() == 0:
        work()
    barrier(name)


def in_turn(work: Callable[[], T], name: str = "in_turn") -> T:
    """Let the first process do something, then the others, who find its results.

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


def _whole(name: str, text: str) -> int:
    if not text.isdecimal():
        raise ValueError(f"{name} must be a whole number, got {text!r}")
    return int(text)


def _cluster(environ: Mapping[str, str]) -> dict[str, str]:
    """Return what jax finds out about the cluster; nothing if there is none."""
    from jax._src.clusters import ClusterEnv  # as jax.distributed.initialize does

    kinds = [kind for kind in ClusterEnv._cluster_types if not kind.opt_in_only_method]
    kind = next((kind for kind in kinds if kind.is_env_present()), None)
    if kind is None:
        return {}
    try:
        count = kind.get_process_count()
        found = {NAMES[1]: str(count), NAMES[2]: str(kind.get_process_id())}
        if count > 1 and not environ.get(NAMES[0]):
            found[NAMES[0]] = kind.get_coordinator_address(
                timeout_secs=300,
                override_coordinator_port=environ.get("JAX_COORDINATOR_PORT"),
            )
    except Exception as error:
        raise RuntimeError(
            f"this looks like a cluster ({kind.__name__}), but its description is not "
            f"enough: {error!r}; set {', '.join(NAMES)}, or {NAMES[1]}=1 for a process "
            "that is alone"
        ) from error
    return found


def _keep_order_of_collectives() -> None:
    """Make processes whose devices are CPUs run collectives in the same order.

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
