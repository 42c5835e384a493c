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
    # Terms before their sum: a total that is NaN is only the consequence.
    for metric in sorted(metrics, key=lambda m: (m == "loss", m == "norm/grad")):
        bad = np.argwhere(~np.isfinite(metrics[metric]))
        if len(bad):
            where = tuple(bad[bad[:, -1].argmin()])
            *seed, step = where
            of_seed = f" of seed {seed[0]}" if seed else ""
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
