"""How long a call of an exported file takes."""

import os
import time
from collections.abc import Callable, Sequence

import numpy as np

from jaxkd import _check
from jaxkd.export import edges


def latency(
    paths: Sequence[str | os.PathLike],
    *,
    threads: int = 1,
    repeats: int = 50,
    warmup: int = 5,
) -> list[float]:
    """Median milliseconds of a call of each file, on one image or the file's batch.

    The files take turns, so that whatever else the machine does falls on all of them.
    Compare files of one runtime: XLA's CPU code, which runs StableHLO, is not made for
    phones.

    Args:
      paths: files of `stablehlo`, `tflite` or `onnx`, all in one call to compare them.
      threads: of each runtime; for StableHLO, 1 or None for XLA's own choice.
      repeats: timed calls of each file, >= 1.
      warmup: calls before them.

    Returns:
      Medians in milliseconds, in the order of `paths`.
    """
    from jaxkd.export._load import load

    _check.whole(1)("threads", threads)
    calls = []
    for path in paths:
        program = load(path, threads=threads)
        shape = (program.batch or 1, *program.image_shape)
        noise = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        image = edges.quantized(program.input, noise)
        calls.append(lambda run=program.run, image=image: run(image))
    return medians(calls, repeats=repeats, warmup=warmup)


def medians(
    calls: Sequence[Callable], *, repeats: int = 50, warmup: int = 5
) -> list[float]:
    """Median milliseconds of each call; they take turns.

    Args:
      calls: functions that return when the work is done.
      repeats: timed calls of each, >= 1.
      warmup: calls before them.
    """
    _check.whole(1)("repeats", repeats)
    _check.whole(0)("warmup", warmup)
    for call in calls:
        for _ in range(warmup):
            call()
    times = np.zeros((repeats, len(calls)))
    for i in range(repeats):
        for j, call in enumerate(calls):
            start = time.perf_counter()
            call()
            times[i, j] = time.perf_counter() - start
    return [float(t) * 1e3 for t in np.median(times, axis=0)]
