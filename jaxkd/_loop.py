"""What loops over a training share: a flag for interrupts, an error for NaN."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def check_finite(metrics: dict[str, np.ndarray], *, first_step: int, name: str) -> None:
    """Refuse to go on with a state that is no longer a number.

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
    """Turn the first Ctrl-C or SIGTERM into a flag; the second acts as usual.

    Schedulers send SIGTERM some time before they kill a job: what it has computed can
    be saved until then.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread can handle signals
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def handle(number: int, frame: Any) -> None:
        restore()
        stop.set()

    for number in SIGNALS:
        signal.signal(number, handle)
    try:
        yield stop
    finally:
        restore()


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Let SIGTERM raise KeyboardInterrupt, as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
