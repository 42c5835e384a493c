"""Charts as SVG, for the report of runs and for experiments.

A chart is made of panels, and a panel of series. Colours are those of `style`: a page
that holds charts sets them as CSS variables, so that they follow its dark mode; `save`
writes them into the file.
"""

import dataclasses
import itertools
import math
import os
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from markupsafe import Markup, escape

# After Okabe and Ito, whose colours the colour-blind tell apart.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#b8578a", "#c98a00", "#3a9bd9", "#7a5195")
STYLE = {"ink": "#1c2024", "soft": "#5b6470", "grid": "#d3d7dc"} | {
    f"c{i}": color for i, color in enumerate(COLORS)
}
_SHAPES = {  # of markers, as polygons around (0, 0)
    "square": "-4,-4 4,-4 4,4 -4,4",
    "triangle": "0,-5 5,4 -5,4",
    "diamond": "0,-5.5 5.5,0 0,5.5 -5.5,0",
    "down": "0,5 5,-4 -5,-4",
    "left": "-5,0 4,5 4,-5",
    "right": "5,0 -4,5 -4,-5",
    "cross": "-5,-2 -2,-2 -2,-5 2,-5 2,-2 5,-2 5,2 2,2 2,5 -2,5 -2,2 -5,2",
    "hexagon": "-5,0 -2.5,-4.3 2.5,-4.3 5,0 2.5,4.3 -2.5,4.3",
    "star": "0,-9 2.5,-3 9,-3 4,1.5 6,8 0,4 -6,8 -4,1.5 -9,-3 -2.5,-3",
}
MARKERS = ("circle", *list(_SHAPES)[:-1])  # the star is for the best


@dataclasses.dataclass(frozen=True)
class Series:
    """Points of one colour.

    Attributes:
      label: its name in the legend, or "".
      x: `[n]`.
      y: `[n]`; what is not finite is left out.
      sd: the deviation of y, `[n]`, as a band or as error bars; or None.
      x_sd: the deviation of x, `[n]`; or None.
      draw: "line", "steps", "arrows" from each point to the next, or "points".
      marker: one of `MARKERS`, "dot", "star", or "" for none.
      color: a place in `COLORS`, or "ink" or "grid".
    """

    label: str
    x: Any
    y: Any
    sd: Any = None
    x_sd: Any = None
    draw: Literal["line", "steps", "arrows", "points"] = "line"
    marker: str = ""
    color: int | str = 0

    @property
    def paint(self) -> str:
        """The colour as CSS."""
        name = self.color if isinstance(self.color, str) else f"c{self.color % 7}"
        return f"var(--{name})"


@dataclasses.dataclass(frozen=True)
class Panel:
    """Axes with series.

    Attributes:
      series: drawn in this order; those with labels are in the legend beside the axes.
      title: above the axes.
      x_label: below them.
      y_label: above them, at the left.
      x_format: the text of a tick.
      log_x: whether x has a logarithmic scale.
      log_y: whether y has one; by default if the largest value is 30 times the
        smallest or more.
      level: where a dashed line crosses: y, or x if `rows` is given.
      rows: names of the rows y = 0, 1, ... from the top, instead of a scale.
      width: of the axes, in pixels.
      height: of the axes.
    """

    series: Sequence[Series]
    title: str = ""
    x_label: str = ""
    y_label: str = ""
    x_format: Callable[[float], str] = "{:,.6g}".format
    log_x: bool = False
    log_y: bool | None = False
    level: float | None = None
    rows: Sequence[str] = ()
    width: int = 460
    height: int = 240


def chart(panels: Sequence[Panel], alt: str, columns: int = 4) -> Markup:
    """Return panels side by side, as an `<svg>` element.

    Args:
      panels: at least one.
      alt: what is to be seen, in words.
      columns: how many panels stand in one line.
    """
    made, width, top = [], 0.0, 0.0
    for start in range(0, len(panels), columns):
        left, height = 0.0, 0.0
        for panel in panels[start : start + columns]:
            content, w, h = _panel(panel)
            made.append(f'<g transform="translate({left:g} {top:g})">{content}</g>')
            left, height = left + w, max(height, h)
        width, top = max(width, left), top + height
    return _svg("".join(made), width, top, alt)


def bars(
    panels: Mapping[str, Sequence[np.ndarray]], labels: Sequence[str], alt: str
) -> Markup:
    """Return small bar charts side by side, each with a scale of its own.

    Args:
      panels: the title of each -> shares by colour, each `[labels]`, from 0 to 1.
      labels: of the groups of bars.
      alt: what is to be seen, in words.
    """
    made, width, height, gap = [], 204, 80, 36
    long = max(map(len, labels)) > 2
    for place, (title, shares) in enumerate(panels.items()):
        left, bottom = 34 + place * (width + gap), 18 + height
        most = max(0.0, *(float(p.max()) for p in shares))
        top = next((t for t in (0.02, 0.05, 0.1, 0.2, 0.5) if t >= most - 1e-9), 1.0)
        made.append(_text(title, left, 10, size=10.5, color="ink"))
        for share in (0, 0.5, 1):
            y = bottom - share * height
            made.append(_line(left, y, left + width, y, "grid"))
            made.append(_text(f"{100 * share * top:g} %", left - 4, y + 3, "end"))
        step = width / len(labels)
        bar = min(9.0, 0.8 * step / len(shares))
        for i, label in enumerate(labels):
            middle = left + (i + 0.5) * step
            for color, p in enumerate(shares):
                tall = float(p[i]) / top * height
                x = middle + (color - len(shares) / 2) * bar
                made.append(
                    f'<rect x="{x:.1f}" y="{bottom - tall:.2f}" width="{bar:.1f}" '
                    f'height="{tall:.2f}" fill="var(--c{color})"/>'
                )
            text = label if len(label) <= 11 else f"{label[:10]}…"
            at = (middle + 3, bottom + 9) if long else (middle, bottom + 12)
            made.append(_text(text, *at, "end" if long else "middle", turn=long))
    bottom = 18 + height + (62 if long else 18)
    return _svg("".join(made), 34 + len(panels) * (width + gap), bottom, alt)


def save(path: str | os.PathLike, svg: str) -> None:
    """Write a chart as a file of its own, in a directory that is made if need be."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = re.sub(r"var\(--(\w+)\)", lambda found: STYLE[found[1]], svg)
    head = '<svg xmlns="http://www.w3.org/2000/svg" style="background:#ffffff" '
    path.write_text(text.replace("<svg ", head, 1) + "\n")


def curves(
    path: str | os.PathLike,
    panels: Mapping[str, Mapping[str, Any]],
    *,
    y_label: str,
    x_label: str = "epoch",
) -> None:
    """Draw panels of lines, each line a mean with its sample standard deviation.

    Args:
      path: the SVG file.
      panels: title -> {label: values}, values being `[epochs]` or `[epochs, seeds]`.
      y_label: what the values are.
      x_label: what they are drawn against.
    """
    drawn = [
        Panel([average(label, np.transpose(values), color=i) for i, (label, values) in
               enumerate(lines.items())], title, x_label, y_label)
        for title, lines in panels.items()
    ]  # fmt: skip
    save(path, chart(drawn, f"{y_label} by {x_label}: {', '.join(panels)}"))


def dots(
    path: str | os.PathLike,
    groups: Mapping[str, Any],
    *,
    x_label: str,
    line: float | None = None,
) -> None:
    """Draw one row a group: its values, their mean and sample standard deviation.

    Args:
      path: the SVG file.
      groups: label -> values, in order from the top.
      x_label: what the values are.
      line: where a dashed line crosses all rows, such as the baseline's mean.
    """
    series = []
    for row, values in enumerate(groups.values()):
        x = np.asarray(values, float).ravel()
        sd = [x.std(ddof=1)] if len(x) > 1 else None
        y = np.full(len(x), row)
        series.append(Series("", x, y, draw="points", marker="dot", color="soft"))
        series.append(
            Series("", [x.mean()], [row], x_sd=sd, draw="points", marker="circle")
        )
    height = 26 * len(groups) + 10
    panel = Panel(series, "", x_label, rows=list(groups), level=line, height=height)
    means = (f"{k} {np.mean(values):.2f}" for k, values in groups.items())
    save(path, chart([panel], f"{x_label}: {', '.join(means)}"))


def average(label: str, values: Any, x: Any = None, **looks: Any) -> Series:
    """Return the mean of lines and their sample standard deviation.

    Args:
      label: of the series.
      values: `[n]` or `[lines, n]`.
      x: `[n]`; by default 1, 2, ...
      **looks: further fields of `Series`.
    """
    values = np.atleast_2d(np.asarray(values, float))
    sd = values.std(0, ddof=1) if len(values) > 1 else None
    x = np.arange(1, values.shape[1] + 1) if x is None else x
    return Series(label, x, values.mean(0), sd, **looks)


def size_ticks(value: float) -> str:
    """Return a number of bytes as text.

    >>> size_ticks(20_000), size_ticks(1.5e6)
    ('20 kB', '1.5 MB')
    """
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{value / size:g} {unit}"
    return f"{value:g} B"


def _panel(panel: Panel) -> tuple[str, float, float]:
    """The panel, its width and its height, the texts around the axes included."""
    x_values = _finite([_spread(s.x, s.x_sd) for s in panel.series])
    y_values = _finite([_spread(s.y, s.sd) for s in panel.series])
    if panel.level is not None:
        (x_values if panel.rows else y_values).append(panel.level)
    log_y = panel.log_y
    if log_y is None:
        log_y = min(y_values, default=0) > 0 and max(y_values) >= 30 * min(y_values)
    x_scale, x_ticks = _scale(x_values, panel.log_x, panel.width // 60)
    y_scale, y_ticks = _scale(y_values, bool(log_y), 5)
    y_texts = {y: f"{y:,.6g}" for y in y_ticks}
    if panel.rows:
        last = len(panel.rows) - 1
        y_scale = lambda y: (last - y + 0.5) / (last + 1)
        y_texts = dict(enumerate(panel.rows))
    left = 16 + max((6.0 * len(text) for text in y_texts.values()), default=0)
    top = 10 + 16 * bool(panel.title) + 16 * bool(panel.y_label)
    right, bottom = left + panel.width, top + panel.height
    at_x = lambda x: left + panel.width * x_scale(x)
    at_y = lambda y: bottom - panel.height * y_scale(y)

    made = []
    if panel.title:
        made.append(_text(panel.title, left, 12, size=12, color="ink"))
    if panel.y_label:
        made.append(_text(panel.y_label, left, top - 6))
    for y, text in y_texts.items():
        made.append(_line(left, at_y(y), right, at_y(y), "grid"))
        made.append(_text(text, left - 5, at_y(y) + 3.5, "end"))
    for x in x_ticks:
        made.append(_line(at_x(x), top, at_x(x), bottom, "grid"))
        made.append(_text(panel.x_format(x), at_x(x), bottom + 13, "middle"))
    made.append(_line(left, bottom, right, bottom, "ink"))
    made.append(_text(panel.x_label, (left + right) / 2, bottom + 28, "middle"))
    if panel.level is not None:
        x, y = at_x(panel.level), at_y(panel.level)
        x1, y1, x2, y2 = (x, top, x, bottom) if panel.rows else (left, y, right, y)
        made.append(_line(x1, y1, x2, y2, "ink", 0.8, "5 3"))
    made += [_series(series, at_x, at_y) for series in panel.series]

    legend = [series for series in panel.series if series.label]
    for i, series in enumerate(legend):
        y = top + 8 + 17 * i
        made.append(
            _marker(series.marker, right + 20, y, series.paint)
            if series.marker
            else _line(right + 12, y, right + 28, y, series.paint[6:-1], 2.5)
        )
        made.append(_text(series.label, right + 34, y + 4, size=11, color="ink"))
    beside = max((44 + 6.2 * len(series.label) for series in legend), default=0)
    return "".join(made), right + 14 + beside, max(bottom + 38, top + 17 * len(legend))


def _series(
    series: Series, at_x: Callable[[float], float], at_y: Callable[[float], float]
) -> str:
    nothing = np.zeros(len(series.x))
    sds = [
        nothing if sd is None else np.asarray(sd, float)
        for sd in (series.sd, series.x_sd)
    ]
    rows = zip(series.x, series.y, *sds, strict=True)
    points = [p for p in rows if math.isfinite(p[0]) and math.isfinite(p[1])]
    at = [(at_x(x), at_y(y)) for x, y, _, _ in points]
    join = lambda xy: " ".join(f"{x:.1f},{y:.1f}" for x, y in xy)
    paint, made = series.paint, []
    if series.draw == "line" and series.sd is not None:
        edge = [(at_x(x), at_y(y + sd)) for x, y, sd, _ in points]
        edge += [(at_x(x), at_y(y - sd)) for x, y, sd, _ in reversed(points)]
        made.append(f'<polygon points="{join(edge)}" fill="{paint}" opacity="0.2"/>')
    if series.draw == "points" and (series.sd is not None or series.x_sd is not None):
        for x, y, sd, x_sd in points:
            ends = (at_x(x - x_sd), at_y(y - sd), at_x(x + x_sd), at_y(y + sd))
            made.append(_line(*ends, paint[6:-1], 1.3))
    if series.draw == "steps":
        at = [p for a, b in itertools.pairwise(at) for p in (a, (b[0], a[1]))] + at[-1:]
    if series.draw == "arrows":
        made += [_arrow(*a, *b, paint) for a, b in itertools.pairwise(at)]
    elif series.draw != "points":
        made.append(
            f'<polyline points="{join(at)}" fill="none" stroke="{paint}" '
            'stroke-width="1.6"/>'
        )
    # A line of one point would not be seen.
    marker = series.marker or ("circle" if len(at) == 1 else "")
    made += [_marker(marker, x, y, paint) for x, y in at if marker]
    return "".join(made)


def _marker(marker: str, x: float, y: float, paint: str) -> str:
    if marker in ("circle", "dot"):
        radius = 4.2 if marker == "circle" else 2.2
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{paint}"/>'
    return (
        f'<polygon points="{_SHAPES[marker]}" fill="{paint}" '
        f'transform="translate({x:.1f} {y:.1f})"/>'
    )


def _arrow(x1: float, y1: float, x2: float, y2: float, paint: str) -> str:
    """Return an arrow that ends shortly before its goal."""
    length = math.hypot(x2 - x1, y2 - y1)
    if length < 16:
        return ""
    dx, dy = (x2 - x1) / length, (y2 - y1) / length
    x, y = x2 - 7 * dx, y2 - 7 * dy
    head = f"{x:.1f},{y:.1f}"
    for side in (1, -1):
        head += f" {x - 7 * dx - 3 * side * dy:.1f},{y - 7 * dy + 3 * side * dx:.1f}"
    return _line(x1 + 7 * dx, y1 + 7 * dy, x, y, paint[6:-1], 1.4) + (
        f'<polygon points="{head}" fill="{paint}"/>'
    )


def _scale(
    values: Sequence[float], logarithmic: bool, most: int
) -> tuple[Callable[[float], float], list[float]]:
    """Return a function from values to 0 ... 1, with a margin, and its ticks."""
    wrap = (lambda v: math.log10(max(v, 1e-300))) if logarithmic else float
    low, high = min(values, default=0.0), max(values, default=1.0)
    a, b = wrap(low), wrap(high)
    margin = 0.05 * (b - a) or max(0.05 * abs(a), 0.1)
    a, b = a - margin, b + margin
    if logarithmic:
        whole = range(math.floor(a), math.ceil(b) + 1)
        for parts in ((1, 2, 5), (1, 3), (1,)):
            ticks = [part * 10.0**e for e in whole for part in parts]
            ticks = [tick for tick in ticks if a <= math.log10(tick) <= b]
            if len(ticks) <= most:
                break
        ticks = ticks[:: math.ceil(len(ticks) / most) or 1] or [low]
    else:
        raw = (b - a) / most
        unit = 10.0 ** math.floor(math.log10(raw))
        step = next(unit * m for m in (1, 2, 2.5, 5, 10) if unit * m >= raw * 0.999)
        first = math.ceil(a / step)
        ticks = [round(i * step, 12) for i in range(first, math.floor(b / step) + 1)]
    return lambda v: (wrap(v) - a) / (b - a), ticks


def _spread(values: Any, sd: Any) -> np.ndarray:
    values = np.asarray(values, float)
    return values if sd is None else np.concatenate([values - sd, values + sd])


def _finite(arrays: Sequence[np.ndarray]) -> list[float]:
    return [float(v) for array in arrays for v in array if math.isfinite(v)]


def _line(
    x1: float, y1: float, x2: float, y2: float, color: str, width: float = 0.8,
    dash: str = "none",
) -> str:  # fmt: skip
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" '
        f'stroke="var(--{color})" stroke-width="{width}" stroke-dasharray="{dash}"/>'
    )


def _text(
    text: str, x: float, y: float, anchor: str = "start", *, size: float = 10,
    color: str = "soft", turn: bool = False,
) -> str:  # fmt: skip
    turned = f' transform="rotate(-50 {x:.1f} {y:.1f})"' if turn else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" '
        f'fill="var(--{color})"{turned}>{escape(text)}</text>'
    )


def _svg(content: str, width: float, height: float, alt: str) -> Markup:
    return Markup(
        f'<svg role="img" aria-label="{escape(alt)}" viewBox="0 0 {width:.0f} '
        f'{height:.0f}" width="{width:.0f}" height="{height:.0f}" '
        f'font-family="system-ui, sans-serif">{content}</svg>'
    )
