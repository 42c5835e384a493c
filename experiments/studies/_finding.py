"""From measurements to a table, a sentence and a picture."""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.studies._probe import Metrics
from jaxkd import report


class Arm(NamedTuple):
    """A row of the table: students of several seeds.

    Attributes:
      label: what is special about them.
      metrics: theirs, `[seeds]`.
      plain: those of the students that they are compared with, of the same seeds and
        epochs but labels alone; None for a plain row.
    """

    label: str
    metrics: Metrics
    plain: Metrics | None = None


class Finding(NamedTuple):
    """What a study hands back.

    Attributes:
      rows: of the table.
      sentences: what was found, the answer first.
      draw: writes the picture to a path; False without matplotlib.
      numbers: of `results.json`, by seed.
    """

    rows: report.Rows
    sentences: list[str]
    draw: Callable[[pathlib.Path], bool]
    numbers: dict[str, Any]


def paired(a: Any, b: Any) -> tuple[float, float]:
    """Mean of a - b over paired seeds in points (percent), and its standard error.

    >>> mean, error = paired([0.5, 0.7], [0.4, 0.5])
    >>> f"{mean:.1f} ± {error:.1f}"
    '15.0 ± 5.0'
    """
    difference = 100 * (np.asarray(a, float) - np.asarray(b, float))
    error = difference.std(ddof=1) / np.sqrt(len(difference))
    return float(difference.mean()), float(error)


def gain(arm: Arm) -> tuple[float, float]:
    """The paired gain of an arm over its plain students, in points of accuracy."""
    assert arm.plain is not None
    return paired(arm.metrics["accuracy"], arm.plain["accuracy"])


def signed(difference: tuple[float, float]) -> str:
    """E.g. "+1.20 ± 0.10"."""
    return "{:+.2f} ± {:.2f}".format(*difference)


def changes(difference: tuple[float, float]) -> str:
    """A difference in words; within one standard error it is called none.

    >>> changes((0.12, 0.05))
    'a gain of 0.12 ± 0.05 points'
    >>> changes((-0.12, 0.05))
    'a loss of 0.12 ± 0.05 points'
    >>> changes((0.02, 0.05))
    'no difference (+0.02 ± 0.05 points)'
    """
    mean, error = difference
    if not apart(difference):
        return f"no difference ({signed(difference)} points)"
    return f"a {'gain' if mean > 0 else 'loss'} of {abs(mean):.2f} ± {error:.2f} points"


def accuracy(arm: Arm) -> float:
    """Its mean over seeds, in percent."""
    return 100 * float(np.mean(arm.metrics["accuracy"]))


def versus(a: Arm, b: Arm) -> tuple[float, float]:
    """The paired difference of two arms, in points of accuracy."""
    return paired(a.metrics["accuracy"], b.metrics["accuracy"])


def best_of(arms: Sequence[Arm], reference: Arm) -> str:
    """Which arm is best, and by how much over the reference; or that none is.

    The best arm is chosen by the accuracies that it is then compared by, which flatters
    it; the sentence says among how many it was chosen, and which are no worse.
    """
    best = max(arms, key=accuracy)
    if best is reference:
        rest = [arm for arm in arms if arm is not reference]
        second = max(rest, key=accuracy)
        difference = versus(best, second)
        against = f"the next, {second.label}"
    else:
        difference = versus(best, reference)
        against = reference.label
    mean, error = difference
    if not mean > error:
        return (
            f"none of {len(arms)} stands out: the highest, {best.label}, is no better "
            f"than {against} ({signed(difference)} points)"
        )
    said = (
        f"{best.label} is best of {len(arms)}, by {mean:.2f} ± {error:.2f} points over "
        f"{against}"
    )
    equals = [a.label for a in arms if a is not best and not apart(versus(best, a))]
    return f"{said} (no different: {', '.join(equals)})" if equals else said


def apart(difference: tuple[float, float]) -> bool:
    """Whether a difference is more than one standard error."""
    mean, error = difference
    return abs(mean) > error


def columns(kind: str, arm: Arm) -> dict[str, str]:
    """The row of an arm; gains are paired, ± standard error, the rest ± deviation."""
    m = arm.metrics
    return {
        kind: arm.label,
        "test accuracy %": report.mean_sd(m["accuracy"], scale=100),
        "gain, points": "" if arm.plain is None else signed(gain(arm)),
        "agreement %": report.mean_sd(m["agreement"], scale=100),
        "NLL": report.mean_sd(m["nll"], digits=3),
        "ECE %": report.mean_sd(m["ece"], scale=100),
        "CKA": report.mean_sd(m["cka"], digits=3),
    }


def teacher_row(kind: str, arm: Arm) -> dict[str, str]:
    """The row of a teacher, who is not compared with itself."""
    return {**columns(kind, arm), "agreement %": "", "CKA": ""}


def numbers(arms: Sequence[Arm]) -> dict[str, Any]:
    """Every measurement by arm, metric and seed."""
    return {
        arm.label: {name: np.asarray(v).tolist() for name, v in arm.metrics.items()}
        for arm in arms
    }
