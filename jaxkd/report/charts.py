"""The charts of a report, as SVG. Without matplotlib there are none."""

import importlib.util
import io
import itertools
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from jaxkd.report.page import GRID, INK, PALETTE

_MARKERS = "oPXD^v<>*p"


class Point(NamedTuple):
    """A stage or a file in the picture of accuracy against size.

    Attributes:
      group: the configuration.
      label: the stage and model, or the file's name.
      model: which model.
      file: whether it is a file.
      bytes: its size, of each run.
      accuracy: in percent, of each run.
    """

    group: str
    label: str
    model: str
    file: bool
    bytes: np.ndarray
    accuracy: np.ndarray


def available() -> bool:
    """Whether matplotlib is there."""
    try:
        return importlib.util.find_spec("matplotlib") is not None
    except ValueError:  # None in sys.modules: it has been ruled out
        return sys.modules.get("matplotlib") is not None


def panels(
    curves: Mapping[str, Sequence[tuple[np.ndarray, np.ndarray]]], x_label: str
) -> str | None:
    """Small charts side by side, each with a scale of its own.

    Args:
      curves: title -> the curve of each run, (x, y).
      x_label: what x is.
    """
    columns = len(curves) if len(curves) <= 5 else 4
    rows = -(-len(curves) // columns)

    def draw(figure: Any) -> None:
        figure.set_size_inches(0.2 + min(2.65, 11 / columns) * columns, 2.05 * rows)
        axes = figure.subplots(rows, columns, squeeze=False)
        for axis in axes.ravel()[len(curves) :]:
            axis.remove()
        for place, (axis, (title, lines)) in enumerate(
            zip(axes.ravel(), curves.items(), strict=False)
        ):
            _line(axis, lines)
            axis.set_title(title, fontsize=9.5, loc="left")
            _logarithmic(axis, np.concatenate([y for _, y in lines]))
            if place + columns >= len(curves):
                axis.set_xlabel(x_label)
            axis.xaxis.set_major_locator(_whole_numbers())

    return _svg(draw)


def lines(
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]],
    *,
    x_label: str,
    y_label: str,
    level: float | None = None,
) -> str | None:
    """Lines in one chart, with the legend beside it.

    Args:
      curves: label -> (x, y).
      x_label: what x is.
      y_label: what y is.
      level: where a dashed line crosses.
    """

    def draw(figure: Any) -> None:
        figure.set_size_inches(8.2, max(3.4, 0.6 + 0.22 * len(curves)))
        axis = figure.subplots()
        for place, (label, (x, y)) in enumerate(curves.items()):
            style = ("-", "--", ":")[place // len(PALETTE) % 3]
            marker = _MARKERS[place % len(_MARKERS)]
            color = PALETTE[place % len(PALETTE)]
            axis.plot(x, y, style, marker=marker, color=color, ms=5, label=label)
        if level is not None:
            axis.axhline(level, color=INK, linestyle="--", linewidth=0.9)
        axis.set(xlabel=x_label, ylabel=y_label)
        _legend(axis)

    return _svg(draw)


def scatter(
    x: np.ndarray, y: np.ndarray, *, best: int, x_label: str, y_label: str
) -> str | None:
    """Dots, of which one is the best, beside how the best grew with their number."""

    def draw(figure: Any) -> None:
        figure.set_size_inches(9.6, 3.3)
        left, right = figure.subplots(1, 2, sharey=True)
        left.plot(x, y, "o", color=PALETTE[0], alpha=0.75, ms=5, label="candidate")
        left.plot(x[best], y[best], "*", color=PALETTE[1], ms=13, label="chosen")
        left.set(xlabel=x_label, ylabel=y_label)
        left.xaxis.set_major_locator(_whole_numbers())
        left.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        left.legend(loc="best")
        number = np.arange(1, len(y) + 1)
        right.plot(number, y, "o", color=PALETTE[0], alpha=0.75, ms=5)
        top = np.fmax.accumulate(y)
        right.step(number, top, where="post", color=PALETTE[1], label="best so far")
        right.set(xlabel="candidate")
        right.xaxis.set_major_locator(_whole_numbers())
        right.legend(loc="best")

    return _svg(draw)


def sizes(points: Sequence[Point]) -> str | None:
    """Accuracy against bytes; the stages of a model are joined.

    Of one configuration each point has a colour; of several, each configuration has,
    and the marks tell the stages.
    """
    groups = list(dict.fromkeys(point.group for point in points))

    def draw(figure: Any) -> None:
        figure.set_size_inches(8.6, max(3.7, 0.7 + 0.22 * len(points)))
        axis = figure.subplots()
        for group in groups:
            _paths(axis, [p for p in points if p.group == group and not p.file])
        looks = _several_looks(points) if len(groups) > 1 else _looks(points)
        for point, (color, marker, _) in zip(points, looks, strict=True):
            _dot(axis, point, color, marker)
        axis.set_xscale("log")
        ticks = _byte_ticks([float(p.bytes.mean()) for p in points])
        axis.set_xlim(*_around([float(p.bytes.mean()) for p in points]))
        axis.set_xticks(ticks, [_bytes(tick) for tick in ticks])
        axis.minorticks_off()
        axis.set(xlabel="size", ylabel="test accuracy, %")
        entries = looks
        if len(groups) > 1:
            entries = [(PALETTE[i % len(PALETTE)], "", g) for i, g in enumerate(groups)]
            marks = {p.label: m for p, (_, m, _) in zip(points, looks, strict=True)}
            entries += [(INK, mark, label) for label, mark in marks.items()]
        for color, marker, label in entries:
            line = "none" if marker else "-"
            axis.plot(
                [], [], marker=marker, ls=line, lw=5, color=color, label=label, ms=7
            )
        _legend(axis)

    return _svg(draw)


def _line(axis: Any, curves: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
    """A line with its deviation, or as many lines where the epochs differ."""
    same = len({x.tobytes() for x, _ in curves}) == 1
    if not same or len(curves) == 1:
        for x, y in curves:
            dot = "o" if len(x) == 1 else None
            axis.plot(x, y, color=PALETTE[0], linewidth=1.4, marker=dot, ms=4)
        return
    x, y = curves[0][0], np.stack([y for _, y in curves])
    mean, sd = y.mean(0), y.std(0, ddof=1)
    axis.fill_between(x, mean - sd, mean + sd, color=PALETTE[0], alpha=0.22, lw=0)
    axis.plot(x, mean, color=PALETTE[0], linewidth=1.4)


def _whole_numbers() -> Any:
    from matplotlib import ticker

    return ticker.MaxNLocator(nbins=5, integer=True)


def _logarithmic(axis: Any, values: np.ndarray) -> None:
    """A scale on which all of a curve is seen that falls to a small part of itself."""
    from matplotlib import ticker

    known = values[np.isfinite(values)]
    if not len(known) or known.min() <= 0 or known.max() < 30 * known.min():
        return
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 3), numticks=7))
    axis.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    axis.yaxis.set_minor_locator(ticker.NullLocator())


def _paths(axis: Any, points: Sequence[Point]) -> None:
    """Arrows from each stage of a model to its next."""
    for model in dict.fromkeys(point.model for point in points):
        own = [p for p in points if p.model == model]
        for a, b in itertools.pairwise(own):
            axis.annotate(
                "",
                (b.bytes.mean(), b.accuracy.mean()),
                (a.bytes.mean(), a.accuracy.mean()),
                arrowprops={
                    "arrowstyle": "->",
                    "color": GRID,
                    "lw": 1.4,
                    "shrinkA": 5,
                    "shrinkB": 5,
                },
                zorder=1,
            )


def _looks(points: Sequence[Point]) -> list[tuple[str, str, str]]:
    """(colour, marker, label) of each point; files are squares."""
    looks, seen = [], {True: 0, False: 0}
    for point in points:
        turn, place = divmod(seen[point.file], len(PALETTE))
        seen[point.file] += 1
        marker = ("sDh" if point.file else "o^v")[turn % 3]
        looks.append((PALETTE[place], marker, point.label))
    return looks


def _several_looks(points: Sequence[Point]) -> list[tuple[str, str, str]]:
    """The colour is the configuration's, the marker the stage's or file's."""
    groups = list(dict.fromkeys(p.group for p in points))
    looks = []
    for point in points:
        labels = dict.fromkeys(p.label for p in points if p.file == point.file)
        marks = "sDhd8" if point.file else "o^vP*X<>p"
        marker = marks[list(labels).index(point.label) % len(marks)]
        color = PALETTE[groups.index(point.group) % len(PALETTE)]
        looks.append((color, marker, point.label))
    return looks


def _dot(axis: Any, point: Point, color: str, marker: str) -> None:
    several = len(point.accuracy) > 1
    axis.errorbar(
        point.bytes.mean(),
        point.accuracy.mean(),
        yerr=point.accuracy.std(ddof=1) if several else None,
        fmt=marker,
        color=color,
        ms=8,
        capsize=3,
        linestyle="none",
        zorder=3,
    )


def _around(values: Sequence[float]) -> tuple[float, float]:
    """Limits with some room, on a scale of powers."""
    low, high = max(min(values), 1.0), max(*values, 1.0)
    room = max(1.3, (high / low) ** 0.06)
    return low / room, high * room


def _byte_ticks(values: Sequence[float]) -> list[float]:
    """1, 2, 5, 10, ... around the values, of which no more than eight."""
    low, high = _around(values)
    every = [m * 10.0**e for e in range(0, 16) for m in (1, 2, 5)]
    inside = [tick for tick in every if low <= tick <= high]
    if len(inside) > 8:
        inside = [tick for tick in inside if f"{tick:.0e}"[0] == "1"]
    return inside or [float(np.median(values))]


def _bytes(value: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{value / size:g} {unit}"
    return f"{value:g} B"


def _legend(axis: Any) -> None:
    axis.legend(loc="upper left", bbox_to_anchor=(1.01, 1.02), borderaxespad=0)


@contextmanager
def _style() -> Iterator[None]:
    """The same, whatever the user's own settings are."""
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {
                "svg.fonttype": "none",
                "svg.hashsalt": "jaxkd",
                "text.parse_math": False,  # a name with dollars is a name
                "font.size": 9,
                "text.color": INK,
                "axes.labelcolor": INK,
                "axes.edgecolor": INK,
                "xtick.color": INK,
                "ytick.color": INK,
                "axes.spines.top": False,
                "axes.spines.right": False,
                "axes.linewidth": 0.7,
                "axes.grid": True,
                "axes.axisbelow": True,
                "grid.color": GRID,
                "grid.linewidth": 0.6,
                "legend.frameon": False,
                "figure.constrained_layout.use": True,
            }
        )
        yield


def _svg(draw: Callable[[Any], None]) -> str | None:
    """What is drawn, as an `<svg>` element; None without matplotlib."""
    if not available():
        return None
    from matplotlib.figure import Figure

    with _style():
        figure = Figure()
        draw(figure)
        content = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(content, format="svg", transparent=True, metadata=nothing)
    text = content.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    return text[text.index("<svg") :].strip()
