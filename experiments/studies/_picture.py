"""Pictures of the studies: means with error bars, side by side."""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.studies._finding import Arm, gain
from jaxkd import report

PLAIN, DISTILLED, TEACHER = "tab:gray", "tab:blue", "tab:red"


def figure(panels: int, width: float = 5.0) -> tuple[Any, Any] | None:
    """A figure and its axes, or None without matplotlib, the extra `plots`."""
    pyplot = report.pyplot()
    if pyplot is None:
        return None

    made, axes = pyplot.subplots(1, panels, figsize=(width * panels, 4), squeeze=False)
    for axis in axes[0]:
        axis.grid(alpha=0.3)
    return made, axes[0]


def save(made: Any, named: Any, title: str, path: pathlib.Path) -> bool:
    """Writes the figure, the legend of one axis beside its title; closes it."""
    from matplotlib import pyplot

    # Above the axes: inside, it would hide what is drawn at their edges.
    handles, labels = named.get_legend_handles_labels()
    made.suptitle(title, x=0.01, ha="left")
    made.tight_layout()
    made.legend(handles, labels, loc="upper right", ncols=len(labels), frameon=False)
    made.savefig(path, dpi=120)
    pyplot.close(made)
    return True


def bars(axis: Any, x: Any, values: Sequence[Any], **style: Any) -> None:
    """Means with the standard deviation over seeds; values are `[seeds]` each."""
    table = [np.asarray(v, float) for v in values]
    mean = [v.mean() for v in table]
    sd = [v.std(ddof=1) for v in table]
    axis.errorbar(x, mean, sd, marker="o", capsize=3, linestyle="none", **style)


def labelled(axis: Any, labels: Sequence[str], x_label: str) -> None:
    """Names below the places 0, 1, ..., slanted where they are long."""
    crowded = sum(map(len, labels)) + 2 * len(labels) > 44
    angle = {"rotation": 30, "ha": "right"} if crowded else {}
    axis.set_xticks(range(len(labels)), labels, **angle)
    axis.set_xlim(-0.6, len(labels) - 0.4)
    axis.set_xlabel(x_label)


def comparison(
    path: pathlib.Path,
    arms: Sequence[Arm],
    teachers: Sequence[float],
    x_label: str,
    title: str,
) -> bool:
    """Accuracy, gain and agreement of distilled students beside their plain ones.

    Args:
      path: the PNG.
      arms: with their plain students.
      teachers: the teacher's accuracy for each arm.
      x_label: what distinguishes the arms.
      title: above the picture.

    Returns:
      Whether it could be drawn.
    """
    blank = figure(3)
    if blank is None:
        return False
    made, (left, middle, right) = blank
    x = np.arange(len(arms))
    plain = [arm.plain or {} for arm in arms]
    for axis, metric in ((left, "accuracy"), (right, "agreement")):
        own = [100 * arm.metrics[metric] for arm in arms]
        bars(axis, x + 0.1, own, color=DISTILLED, label="distilled")
        others = [100 * p[metric] for p in plain]
        bars(axis, x - 0.1, others, color=PLAIN, label="plain")
    left.hlines(
        100 * np.asarray(teachers), x - 0.3, x + 0.3, color=TEACHER, label="teacher"
    )
    mean, error = np.transpose([gain(arm) for arm in arms])
    middle.axhline(0, color="black", linewidth=0.8)
    middle.errorbar(
        x, mean, error, marker="o", capsize=3, linestyle="none", color=DISTILLED
    )
    left.set(ylabel="test accuracy, %", title="mean ± standard deviation")
    middle.set(ylabel="gain over plain, points", title="paired, ± standard error")
    right.set(ylabel="agreement with teacher, %", title="mean ± standard deviation")
    for axis in (left, middle, right):
        labelled(axis, [arm.label for arm in arms], x_label)
    return save(made, left, title, path)
