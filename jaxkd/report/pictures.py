"""Pictures of an experiment, as PNG files: curves and dots."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np


def curves(
    path: str | os.PathLike,
    panels: Mapping[str, Mapping[str, Any]],
    *,
    y_label: str,
    x_label: str = "epoch",
) -> bool:
    """Draws one panel of lines beside another, each line a mean with its deviation.

    Args:
      path: the PNG.
      panels: title -> {label: values}, values being `[epochs]` or `[epochs, seeds]`.
      y_label: what the values are.
      x_label: what they are drawn against.

    Returns:
      Whether it could be drawn: False without matplotlib (the extra `plots`).
    """
    plot = pyplot()
    if plot is None:
        return False
    figure, axes = plot.subplots(
        1, len(panels), figsize=(5.2 * len(panels), 3.8), squeeze=False
    )
    for axis, (title, lines) in zip(axes[0], panels.items(), strict=True):
        for label, values in lines.items():
            values = np.asarray(values, float)
            values = values[:, None] if values.ndim == 1 else values
            x, mean = np.arange(1, len(values) + 1), values.mean(1)
            axis.plot(x, mean, label=label)
            if values.shape[1] > 1:
                sd = values.std(1, ddof=1)
                axis.fill_between(x, mean - sd, mean + sd, alpha=0.2)
        axis.set(title=title, xlabel=x_label, ylabel=y_label)
        axis.grid(alpha=0.3)
        axis.legend(loc="lower right")
    save(figure, path)
    return True


def dots(
    path: str | os.PathLike,
    groups: Mapping[str, Any],
    *,
    x_label: str,
    line: float | None = None,
) -> bool:
    """Draws one row a group: its values, their mean and sample standard deviation.

    Args:
      path: the PNG.
      groups: label -> values, in order from the top.
      x_label: what the values are.
      line: where a dashed line crosses all rows, such as the baseline's mean.

    Returns:
      Whether it could be drawn: False without matplotlib (the extra `plots`).
    """
    plot = pyplot()
    if plot is None:
        return False
    figure, axis = plot.subplots(figsize=(6.4, 1.2 + 0.32 * len(groups)))
    for row, values in enumerate(groups.values()):
        values = np.asarray(values, float).ravel()
        axis.plot(values, np.full(len(values), row), ".", color="0.6", ms=5)
        sd = values.std(ddof=1) if len(values) > 1 else 0.0
        axis.errorbar(values.mean(), row, xerr=sd, fmt="o", color="C0", capsize=3)
    if line is not None:
        axis.axvline(line, color="0.4", linestyle="--", linewidth=1)
    axis.set_yticks(range(len(groups)), list(groups))
    axis.invert_yaxis()
    axis.set(xlabel=x_label)
    axis.grid(axis="x", alpha=0.3)
    save(figure, path)
    return True


def pyplot() -> Any:
    """matplotlib's, drawing into files; None without the extra `plots`."""
    try:
        import matplotlib
    except ImportError:
        return None
    matplotlib.use("agg")
    from matplotlib import pyplot

    return pyplot


def save(figure: Any, path: str | os.PathLike) -> None:
    """Writes a figure, its directory made if need be, and closes it."""
    figure.tight_layout()
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot().close(figure)
