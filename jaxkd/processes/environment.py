"""Where a process stands among the others, by what the environment says."""

from collections.abc import Mapping
from typing import NamedTuple

NAMES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


class Place(NamedTuple):
    """Where a process stands among the others.

    Attributes:
      address: of process 0, as "HOST:PORT".
      processes: how many there are.
      process: which of them this is, from 0.
    """

    address: str
    processes: int
    process: int

    def __str__(self) -> str:
        return f"process {self.process} of {self.processes}"


def place(environ: Mapping[str, str]) -> Place | None:
    """Where the environment puts this process; None where it says nothing.

    What the three variables leave open is looked up in the cluster, if jax knows it.

    Raises:
      ValueError: if the variables are incomplete or contradict one another.
      RuntimeError: if there seems to be a cluster, but it does not say enough.

    Example:
      >>> place({"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1",
      ...        "JAX_COORDINATOR_ADDRESS": "10.0.0.1:4000"})
      Place(address='10.0.0.1:4000', processes=2, process=1)
    """
    address, count, index = NAMES
    said = {name: environ[name] for name in NAMES if environ.get(name)}
    found = dict(said)
    if said.get(count) != "1" and len(said) < len(NAMES):
        found = {**_cluster(environ), **said}
    if not found:
        return None
    if found.get(count) == "1":
        found = {address: "", index: "0", **found}
    if missing := [name for name in NAMES if name not in found]:
        raise ValueError(
            f"{' and '.join(missing)} must be set beside {' and '.join(said)}: where "
            "process 0 is, as HOST:PORT; how many processes there are; and which of "
            "them this is, from 0"
        )
    n, i = _whole(count, found[count]), _whole(index, found[index])
    if i >= n:
        ours = " and ".join(said) or "neither"
        raise ValueError(
            f"{index} must be 0 to {count} - 1, got process {i} of {n} (set here: "
            f"{ours}; the rest is the cluster's)"
        )
    host, _, port = found[address].rpartition(":")
    if n > 1 and not (host and port.isdecimal()):
        raise ValueError(f"{address} must be HOST:PORT, got {found[address]!r}")
    return Place(found[address], n, i)


def is_first(environ: Mapping[str, str]) -> bool:
    """Return whether this process is the first, or alone, by the environment.

    For programs that one process does for all, without joining them. Where a cluster
    does not say enough, each process counts as alone.

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


def _whole(name: str, text: str) -> int:
    if not text.isdecimal():
        raise ValueError(f"{name} must be a whole number, got {text!r}")
    return int(text)


def _cluster(environ: Mapping[str, str]) -> dict[str, str]:
    """What jax finds out about the cluster; nothing if there is none."""
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
