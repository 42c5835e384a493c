"""Whether a file computes what the network does: one judge for all formats."""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np


class Limits(NamedTuple):
    """How far a file may be from the network.

    Attributes:
      tolerance: of float files, relative to the largest output; None compares nothing.
      steps: of quantized files, in steps of the output.
    """

    tolerance: float | None
    steps: float


class Verdict(NamedTuple):
    """How far a file is from the network on the inputs.

    Attributes:
      difference: max |file - network|; None if they were not compared.
      steps: the same in steps of the output, or None for a file in float.
    """

    difference: float | None
    steps: float | None


def judge(
    path: str | os.PathLike,
    run: Callable[[Any], np.ndarray],
    wanted: np.ndarray,
    inputs: np.ndarray,
    limits: Limits,
    *,
    quantized: bool,
    step: float | None,
) -> Verdict:
    """Compare a written file with the network, output by output.

    Args:
      path: of the file that is to be written, for the message.
      run: the file, opened in its runtime.
      wanted: what the network gives for the inputs.
      inputs: images.
      limits: how far they may be apart.
      quantized: whether the file is judged in steps of its output.
      step: of the output's grid; of an output in float, its range / 255 counts.

    Returns:
      The difference.

    Raises:
      ValueError: if it is larger than the limit, or not a number.
    """
    if not np.isfinite(wanted).all():
        raise ValueError(
            f"{path} was not written: the network's own outputs are not finite on "
            "inputs; give inputs as the network was trained on"
        )
    got = run(inputs)
    if got.shape != wanted.shape:
        raise ValueError(
            f"{path} was not written: its outputs have shape {got.shape}, the "
            f"network's {wanted.shape}"
        )
    largest = float(np.max(np.abs(wanted), initial=0))
    difference = float(np.max(np.abs(got - wanted), initial=0))
    if quantized:
        step = step or float(np.ptp(wanted)) / 255 or 1.0
        found, most, unit, knob = difference / step, limits.steps, "steps", "steps"
        limit = most * step
    else:
        found, most = difference / (largest or 1.0), limits.tolerance or 0.0
        unit, knob = "of the largest output", "tolerance"
        limit = most * (largest or 1.0)
    if not found <= most:
        raise ValueError(
            f"{path} was not written: run by its own runtime, the file differs from "
            f"the network by {difference:.3g}, that is {_above(found, most)} {unit} "
            f"(largest output {largest:.3g}); at most {most:g} {unit} is accepted. "
            "Try another format, or export parts of the network to find the layer"
            f"{_many(got, wanted, limit)}"
            f"{_accepting(knob, found)}"
        )
    return Verdict(difference, found if quantized else None)


def _many(got: np.ndarray, wanted: np.ndarray, most: float) -> str:
    """On how many inputs the limit is passed: sums near a tie do it on few."""
    apart = np.abs(got - wanted).reshape(len(got), -1).max(1, initial=0)
    return f" ({np.sum(~(apart <= most))} of {len(got)} inputs are beyond the limit)"


def _above(found: float, most: float) -> str:
    """As few digits, three or more, as show that it is more than the limit.

    >>> _above(5.0004, 5.0), _above(7.25, 5.0)
    ('5.0004', '7.25')
    """
    texts = (f"{found:.{digits}g}" for digits in range(3, 18))
    return next((text for text in texts if not float(text) <= most), f"{found!r}")


def _accepting(knob: str, found: float) -> str:
    """How to pass a limit that would be met; no limit meets what is not finite."""
    if not np.isfinite(found):
        return ""
    limit = f"{1.05 * found:.2g}"
    return f"; if the difference is acceptable to you, pass {knob}={limit}"


def reference(f: Callable, batch: int | None) -> Callable[[np.ndarray], np.ndarray]:
    """Return `f` for any number of images, run in the batches that the file has.

    It is compiled once, with its constants as arguments: XLA would spend most of its
    time on computing with constants that are known to it.
    """
    compiled: dict[tuple, Any] = {}

    def call(images: np.ndarray) -> np.ndarray:
        if images.shape not in compiled:
            closed = jax.make_jaxpr(f)(images)
            run = jax.jit(lambda c, x: jax.core.eval_jaxpr(closed.jaxpr, c, x)[0])
            compiled[images.shape] = lambda x: np.asarray(run(closed.consts, x))
        return compiled[images.shape](images)

    return batched(call, batch)


def batched(run: Callable, batch: int | None) -> Callable:
    """Return the same for any number of images; `run` takes `batch` (None: any)."""
    if batch is None:
        return run

    def call(images: np.ndarray) -> np.ndarray:
        n = len(images)
        rows = np.arange(-(-n // batch) * batch) % n  # the last batch is filled up
        parts = [run(images[part]) for part in rows.reshape(-1, batch)]
        return np.concatenate(parts)[:n]

    return call
