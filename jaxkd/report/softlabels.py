"""Soft labels as bars: the same logits at several temperatures."""

from collections.abc import Sequence

import numpy as np

from jaxkd.report.blocks import Raw
from jaxkd.report.page import escape, marked
from jaxkd.report.tables import markdown

TEMPERATURES = (1, 2, 5, 10)
_CLASSES = 10  # bars in a panel
_WIDTH, _HEIGHT, _GAP, _LEFT, _TOP = 204, 80, 36, 30, 18  # of a panel, in units

_TOPS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)  # where the scale of a panel may end

Step = tuple[float, np.ndarray, np.ndarray]


def chosen(p: np.ndarray, labels: np.ndarray) -> list[int]:
    """Images the teacher is right on: the surest, the median, the two most doubtful.

    Args:
      p: its probabilities, `[n, classes]`.
      labels: `[n]`.

    Returns:
      Up to four places, the surest first, by the entropy of p.
    """
    entropy = -np.sum(p * np.log(np.maximum(p, 1e-30)), -1)
    order = np.argsort(entropy, kind="stable")
    order = order[(p.argmax(-1) == labels)[order]]
    if not len(order):
        return []
    last = order[-1]
    # The second doubt is one about another class, if there is any.
    others = [i for i in order[:-1] if labels[i] != labels[last]]
    picks = [order[0], order[len(order) // 2], *others[-1:], last]
    return [int(i) for i in dict.fromkeys(picks)]


def key(names: tuple[str, str]) -> Raw:
    """Which colour is whose."""
    teacher, student = (escape(name) for name in names)
    html = (
        f'<p><span class="key t"></span>{teacher}'
        f'<span class="key s"></span>{student}</p>'
    )
    return Raw(html, f"Probabilities in %, {marked(names[0])} / {marked(names[1])}.")


def block(
    image: str,
    title: str,
    steps: Sequence[Step],
    classes: Sequence[str],
    names: tuple[str, str],
) -> Raw:
    """The bars of one image.

    Args:
      image: the image as HTML.
      title: what it is.
      steps: (temperature, teacher's probabilities, student's) of each panel.
      classes: the names of the classes.
      names: how teacher and student are called.
    """
    shown = _shown(steps[0][1], len(classes))
    labels = [classes[k] for k in shown]
    rows = []
    for temperature, p, q in steps:
        row = {"temperature": f"{temperature:g}"}
        row |= {
            marked(classes[k]): f"{100 * p[k]:.1f} / {100 * q[k]:.1f}" for k in shown
        }
        rows.append(row)
    said = "; ".join(
        f"at temperature {t:g} {names[0]} gives {classes[int(p.argmax())]} "
        f"{100 * p.max():.0f} %, {names[1]} {100 * q[int(p.argmax())]:.0f} %"
        for t, p, q in steps
    )
    panels = [(t, p[shown], q[shown], _entropy(p)) for t, p, q in steps]
    drawn = _svg(panels, labels, f"{title}: {said}")
    rest = f"; the classes {names[0]} finds likeliest"
    rest = "" if len(shown) == len(classes) else rest
    html = (
        f'<section class="soft-labels">{image}<div><p>{escape(title + rest)}</p>'
        f"{drawn}</div></section>"
    )
    return Raw(html, f"{marked(title + rest)}\n\n{markdown(rows)}")


def _shown(p: np.ndarray, classes: int) -> list[int]:
    """All classes, or the likeliest."""
    if classes <= _CLASSES:
        return list(range(classes))
    return [int(k) for k in np.argsort(-p, kind="stable")[:_CLASSES]]


def _entropy(p: np.ndarray) -> float:
    return float(-np.sum(p * np.log(np.maximum(p, 1e-30))))


def _svg(
    panels: Sequence[tuple[float, np.ndarray, np.ndarray, float]],
    labels: Sequence[str],
    alt: str,
) -> str:
    long = max(map(len, labels)) > 2
    bottom = 62 if long else 16
    width = _LEFT + len(panels) * (_WIDTH + _GAP)
    height = _TOP + _HEIGHT + bottom
    drawn = "".join(
        _panel(panel, labels, _LEFT + i * (_WIDTH + _GAP), long)
        for i, panel in enumerate(panels)
    )
    return (
        f'<svg role="img" aria-label="{escape(alt)}" viewBox="-4 0 {width} {height}" '
        f'width="{width}" height="{height}">{drawn}</svg>'
    )


def _panel(
    panel: tuple[float, np.ndarray, np.ndarray, float],
    labels: Sequence[str],
    left: float,
    long: bool,
) -> str:
    """One temperature, with a scale of its own: two bars for each class."""
    temperature, p, q, entropy = panel
    top = next(v for v in _TOPS if v >= max(p.max(), q.max()) - 1e-9)
    step = _WIDTH / len(labels)
    bar = min(9.0, 0.4 * step)
    made = [
        f'<text x="{left}" y="10" font-size="10.5" fill="var(--ink)">T = '
        f'{temperature:g}<tspan fill="var(--soft)">, entropy {entropy:.2f} nats</tspan>'
        "</text>"
    ]
    for share in (0, 0.5, 1):
        y = _y(share)
        made.append(
            f'<line x1="{left}" x2="{left + _WIDTH}" y1="{y:.1f}" y2="{y:.1f}" '
            f'stroke="var(--grid)" stroke-width="{0.6 if share else 1}"/>'
            f'<text x="{left - 4}" y="{y + 3:.1f}" text-anchor="end" font-size="9" '
            f'fill="var(--soft)">{100 * share * top:g}\u00a0%</text>'
        )
    for i, label in enumerate(labels):
        middle = left + (i + 0.5) * step
        for color, x, value in (("c0", middle - bar, p[i]), ("c1", middle, q[i])):
            made.append(
                f'<rect x="{x:.1f}" y="{_y(value / top):.2f}" width="{bar:.1f}" '
                f'height="{value / top * _HEIGHT:.2f}" fill="var(--{color})"/>'
            )
        made.append(_label(label, middle, long))
    return "".join(made)


def _y(share: float) -> float:
    return _TOP + _HEIGHT * (1 - share)


def _label(text: str, x: float, long: bool) -> str:
    short = text if len(text) <= 11 else f"{text[:10]}…"
    y = _TOP + _HEIGHT + (9 if long else 12)
    if not long:
        where = f'x="{x:.1f}" y="{y}" text-anchor="middle"'
    else:
        where = (
            f'x="{x + 3:.1f}" y="{y}" text-anchor="end" '
            f'transform="rotate(-50 {x + 3:.1f} {y})"'
        )
    return f'<text {where} font-size="9" fill="var(--soft)">{escape(short)}</text>'
