"""From how many epochs on a cached teacher pays: scoring once against a live teacher.

    python -m experiments.bench.cache
    python -m experiments.bench.cache --experiments resnet50-resnet18 --dtype bfloat16

Random bytes in the shape of a data set, `steps * batch_size` of them, a view without
augmentation. Three things take turns: the teacher scores all the images, an epoch with
the live teacher, an epoch with the stored logits; times are medians. One JSON line an
experiment, and a table in the end:

  live_s, cached_s: an epoch; live_over_cached: the median of the paired ratios.
  score_s: the compiled teacher over all images, as `train.cache_teacher` runs it.
  crossover: score_s / (live_s - cached_s), the median over the turns: so many epochs
    with stored logits save what scoring costs. 1, whatever the size of the data, if
    scoring is as fast as the teacher inside a step; null: never.
  pays_from_epochs: the first whole number of epochs at which caching is faster.
  cache_teacher_s: one whole call of `train.cache_teacher`, once: compilation,
    fingerprints and writing to disk included, which matter for few images.
  live_compile_s, cached_compile_s: tracing and compilation of an epoch, from nothing.
  crossover_from_nothing: like crossover, with these three.
  score_images_per_s, score_mfu: of scoring, 2 FLOPs a multiply-accumulate.
  cache_mib: float32 logits of all images.
"""

import dataclasses
import math
import pathlib
import tempfile
import time
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments.bench import cases, hardware, step_speed
from jaxkd import cost, distill, train
from jaxkd.evaluate import predict

COLUMNS = {
    "experiment": "experiment",
    "images": "images",
    "live_s": "live epoch s",
    "cached_s": "cached epoch s",
    "live_over_cached": "live/cached",
    "score_s": "scoring s",
    "crossover": "crossover",
    "pays_from_epochs": "pays from",
    "cache_teacher_s": "cache_teacher s",
    "crossover_from_nothing": "crossover from nothing",
    "error": "error",
}


@dataclasses.dataclass(frozen=True)
class Config:
    """What to measure."""

    preset: Literal["own", "cifar", "imagenet", "all", "short"] = "short"
    experiments: tuple[str, ...] = ()  # any by name, instead of the preset's
    dtype: Literal["float32", "bfloat16"] = "float32"  # what networks compute in
    batch_size: int | None = None  # of training; None is the experiment's
    score_batch_size: int = 500
    steps: int | None = None  # of an epoch; None is the experiment's
    repeats: int = 5
    peak: float | None = None  # FLOP/s of the device, for the MFU


def crossover(
    score: list[float], live: list[float], cached: list[float]
) -> float | None:
    """How many epochs' savings scoring costs; None where a cached epoch saves nothing.

    The median over the turns of score / (live - cached); a turn without a saving counts
    as infinite.

    >>> crossover([2.0, 3.0, 9.0], [5.0, 5.0, 5.0], [3.0, 3.0, 3.0])
    1.5
    >>> crossover([2.0], [3.0], [3.0]) is None
    True
    """
    saved = np.subtract(live, cached)
    each = np.where(saved > 0, score / np.where(saved > 0, saved, 1), np.inf)
    found = float(np.median(each))
    return found if math.isfinite(found) else None


def pays_from(epochs: float | None) -> int | None:
    """The first whole number of epochs above the crossover; at least one.

    >>> pays_from(0.4), pays_from(1.0), pays_from(2.3)
    (1, 2, 3)
    """
    return None if epochs is None else max(1, math.floor(epochs) + 1)


def whole_call(s: step_speed.Setting, teacher: distill.Teacher, size: int) -> float:
    """Seconds of `train.cache_teacher`, with its compilation and its files."""
    with hardware.cold(), tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "logits"
        start = time.perf_counter()
        train.cache_teacher(
            teacher, s.variables, s.dataset, view=s.view, path=path, batch_size=size
        )
        return time.perf_counter() - start


def scoring(
    s: step_speed.Setting, teacher: distill.Teacher, size: int
) -> step_speed.Block:
    """What takes the compiled teacher over all images."""
    size = min(size, len(s.dataset.index))

    @jax.jit
    def logits(variables: Any, resident: Any) -> jax.Array:
        return predict(teacher, variables, resident, view=s.view, batch_size=size)

    def run() -> None:
        np.asarray(logits(s.variables, s.resident))  # to the host, as it is kept there

    return run


def measure(case: dict[str, Any], config: Config) -> dict[str, Any]:
    """What was found for an experiment."""
    dtype = jnp.dtype(config.dtype)
    live, cached = (step_speed.setting(case, t, dtype) for t in ("live", "cached"))
    epochs = {"live": step_speed.ready(live, "scan")}
    epochs["cached"] = step_speed.ready(cached, "scan")
    _, net = cases.networks(case, dtype)
    teacher, size = distill.frozen(net), config.score_batch_size
    blocks = {name: epoch.run for name, epoch in epochs.items()}
    blocks["score"] = scoring(live, teacher, size)
    seconds = step_speed.alternate(blocks, config.repeats)
    once = whole_call(live, teacher, size)
    compiling = {name: e.trace_s + e.compile_s for name, e in epochs.items()}
    found = crossover(seconds["score"], seconds["live"], seconds["cached"])
    extra = once + compiling["cached"] - compiling["live"]
    all_in = crossover([extra] * config.repeats, seconds["live"], seconds["cached"])
    n, middle = len(live.dataset.index), {k: np.median(v) for k, v in seconds.items()}
    rate = n / middle["score"]
    peak = config.peak or hardware.peak(hardware.kind())
    work = 2 * cost.of(case["teacher"](), case["shape"]).macs * rate
    return {
        "live_s": _rounded(middle["live"]),
        "cached_s": _rounded(middle["cached"]),
        "live_over_cached": _rounded(
            np.median(np.divide(seconds["live"], seconds["cached"])), 3
        ),
        "score_s": _rounded(middle["score"]),
        "crossover": _rounded(found, 3),
        "pays_from_epochs": pays_from(found),
        "cache_teacher_s": _rounded(once, 2),
        "live_compile_s": _rounded(compiling["live"], 2),
        "cached_compile_s": _rounded(compiling["cached"], 2),
        "crossover_from_nothing": _rounded(all_in, 3),
        "score_images_per_s": _rounded(rate, 1),
        "score_mfu": _rounded(None if peak is None else work / peak),
        "cache_mib": _rounded(cached.resident["teacher"].nbytes / hardware.MIB),
        "images": n,
    }


def _rounded(value: float | None, digits: int = 4) -> float | None:
    return None if value is None else round(float(value), digits)


def main(config: Config) -> list[dict[str, Any]]:
    """Prints and returns one row an experiment that has a teacher."""
    rows = []
    for experiment, case in cases.chosen(config).items():
        if "cached" not in case["teachers"]:
            continue
        found: dict[str, Any] = {}
        failures: dict[str, str] = {}
        with hardware.fitting(failures, "error"):
            found = measure(case, config)
        row = {"experiment": experiment, **found, **failures}
        rows.append(cases.line(row, case, config))
    cases.table(rows, COLUMNS)
    return rows


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
