"""Candidates in processes of their own."""

import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import wait
from typing import Any

from jaxkd import _check
from jaxkd.compress.search._controller import Tokens
from jaxkd.compress.search._run import Evaluate

_MINE: dict[str, Evaluate] = {}  # of this worker process: an evaluator cannot be sent


def pool(make: Callable[[], Evaluate], workers: int) -> ProcessPoolExecutor:
    """Start processes that evaluate candidates, each with an evaluator of its own.

    Results are observed in the order of the proposals, so that the search is the same
    whichever process is faster::

        with pool(make, workers=2) as executor:
            run(controller, in_pool, executor=executor, ahead=2, ...)

    On Linux the cores are shared out among the processes. A worker ends when the
    process that started it is gone, even if that was killed.

    Args:
      make: makes the evaluator: a function of a module (or a `functools.partial` of
        one), since it is sent to the workers. Data are loaded there once.
      workers: how many processes.

    Returns:
      An executor for `run`, to be used as a context.
    """
    _check.whole(1)("workers", workers)
    # A fork of a process in which XLA runs threads may hang: start anew.
    spawn = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(
        workers, spawn, _start, (make, spawn.Value("i", 0), workers)
    )


def in_pool(tokens: Tokens) -> Any:
    """Return the evaluation of a candidate by the worker it was sent to."""
    if "evaluate" not in _MINE:
        raise RuntimeError(
            "in_pool was called outside of the processes of `pool`: it is the "
            "evaluator of a search whose executor is that pool"
        )
    return _MINE["evaluate"](tokens)


def _start(make: Callable[[], Evaluate], counter: Any, workers: int) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with counter.get_lock():
        place, counter.value = counter.value, counter.value + 1
    if hasattr(os, "sched_setaffinity"):  # before XLA counts the cores it may use
        cores = sorted(os.sched_getaffinity(0))
        mine = cores[place % len(cores) :: max(1, min(workers, len(cores)))]
        os.sched_setaffinity(0, mine)
    _MINE["evaluate"] = make()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
