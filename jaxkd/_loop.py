"""What loops over a training share: a flag for Ctrl-C, an error for NaN."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np


def check_finite(metrics: dict[str, np.ndarray], *, first_step: int, name: str) -> None:
    """Refuses to go on with a state that is no longer a number.

    Args:
      metrics: of some steps, `[..., steps]`; before the steps perhaps seeds.
      first_step: the number of the first of them.
      name: of the run.

    Raises:
      FloatingPointError: for the first value that is not finite, naming term and step.
    """
    found = []
    for metric, values in metrics.items():
        bad = np.argwhere(~np.isfinite(values))
        if len(bad):
            where = tuple(bad[bad[:, -1].argmin()].tolist())
            # The first step, and of one step terms before the sums that follow them.
            found.append(
                (where[-1], metric == "loss", metric == "norm/grad", metric, where)
            )
    if found:
        step, *_, metric, where = min(found)
        of_seed = f" of seed {where[0]}" if len(where) > 1 else ""
        raise FloatingPointError(
            f"{name}: {metric} is {metrics[metric][where]} at step "
            f"{first_step + step}{of_seed}; lower the learning rate, or look at "
            "this term's inputs"
        )


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """Turns the first Ctrl-C into a flag; the second one interrupts as usual."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread can handle signals
        return
    before = signal.getsignal(signal.SIGINT)

    def handle(number: int, frame: Any) -> None:
        signal.signal(signal.SIGINT, before)
        stop.set()

    signal.signal(signal.SIGINT, handle)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
