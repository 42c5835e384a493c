"""What teacher and student say about the test images, beside each other."""

import base64
import io
from typing import NamedTuple

import numpy as np
from PIL import Image

from jaxkd.report import confusion, softlabels
from jaxkd.report.blocks import Block, Heading, Raw, Text
from jaxkd.report.merging import Group, Merged, last, merged, student
from jaxkd.report.page import escape, marked
from jaxkd.report.reading import Run, classes, images, labels, logits
from jaxkd.report.tables import markdown

_CARDS = (6, 4, 2)  # of: teacher alone right, student alone right, both wrong


class Pair(NamedTuple):
    """The predictions of a run.

    Attributes:
      run: the run.
      labels: int `[n]`.
      teacher: logits `[n, classes]`, or None.
      student: logits `[n, classes]`.
    """

    run: Run
    labels: np.ndarray
    teacher: np.ndarray | None
    student: np.ndarray

    @property
    def names(self) -> list[str]:
        """The names of the classes."""
        return classes(self.run, self.student.shape[1])


def blocks(group: Group) -> list[Block]:
    """Confusion, examples and soft labels of runs of one configuration."""
    rows = merged(group)
    rows = [row for row in rows if row.kind != "export"]  # which changes no model
    taught, end = last(rows, group.teacher), last(rows, student(group, rows))
    end = end or (rows[-1] if rows else None)
    pairs = [] if end is None else _pairs(group, taught, end)
    if end is None or not pairs:
        return []
    made = confusion.blocks(
        [(p.labels, p.teacher, p.student) for p in pairs],
        pairs[0].names,
        (taught.model if taught else "", f"{end.model} after {end.stage}"),
    )
    first = pairs[0]
    whose = f" (seed {first.run.seed})" if group.runs[1:] else ""
    seen = images(first.run)
    if first.teacher is None or taught is None or end is taught or seen is None:
        return made
    names = (taught.model, end.model)
    seen = seen[: len(first.labels)]
    made += [Heading(f"Where they differ{whose}", 3), *_differing(first, seen, names)]
    made += [Heading(f"Soft labels{whose}", 3), *_soft_labels(first, seen, names)]
    return made


def softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Probabilities of the last axis."""
    z = logits / temperature
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def picture(image: np.ndarray, alt: str, size: int = 72) -> str:
    """An image `[h, w, c]` as an `<img>` of its own, its pixels unsmoothed."""
    channels = image.shape[-1]
    shown = image if channels in (3, 4) else image[..., 0]
    content = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(shown)).save(content, format="PNG")
    data = base64.b64encode(content.getvalue()).decode()
    height = max(1, round(size * image.shape[0] / image.shape[1]))
    return (
        f'<img class="pixels" src="data:image/png;base64,{data}" '
        f'alt="{escape(alt)}" width="{size}" height="{height}">'
    )


def kinds(pair: Pair) -> list[np.ndarray]:
    """Places where teacher and student differ, the surest first.

    Returns:
      Three: only the teacher is right, only the student is, neither is.
    """
    assert pair.teacher is not None
    t, s = softmax(pair.teacher), softmax(pair.student)
    ours, theirs = s.argmax(-1), t.argmax(-1)
    sure = -t.max(-1) * s.max(-1)
    right, other = theirs == pair.labels, ours == pair.labels
    masks = (right & ~other, ~right & other, ~right & ~other & (ours != theirs))
    order = np.argsort(sure, kind="stable")
    return [order[mask[order]] for mask in masks]


def _pairs(group: Group, taught: Merged | None, end: Merged) -> list[Pair]:
    """The predictions of each run that has them."""
    of = lambda merged: {id(run): row for run, row in merged.runs} if merged else {}
    theirs, ours, pairs = of(taught), of(end), []
    for run in group.runs:
        known = labels(run)
        answer = logits(run, ours.get(id(run), {}))
        teacher = logits(run, theirs.get(id(run), {}))
        if known is None or answer is None or end is taught:
            teacher = None
        if teacher is not None and answer is not None and teacher.shape != answer.shape:
            teacher = None
        if known is not None and answer is not None:
            pairs.append(Pair(run, known, teacher, answer))
    # Sums over runs are of runs that have the same.
    return [p for p in pairs if (p.teacher is None) == (pairs[0].teacher is None)]


def _differing(pair: Pair, seen: np.ndarray, names: tuple[str, str]) -> list[Block]:
    found = kinds(pair)
    said = (
        f"Of {len(pair.labels):,} test images {names[0]} alone is right on "
        f"{len(found[0]):,}, {names[1]} alone on {len(found[1]):,}; on "
        f"{len(found[2]):,} both are wrong and differ."
    )
    shown = [
        i
        for places, most in zip(found, _CARDS, strict=True)
        for i in places[places < len(seen)][:most]
    ]
    if not shown:
        return [Text(said)]
    surest = "Those on which the two are surest are shown, with their probabilities."
    cards = [_card(pair, int(i), seen[i], names) for i in shown]
    rows = [row for _, row in cards]
    listed = "".join(card for card, _ in cards)
    table = [{marked(k): marked(v) for k, v in row.items()} for row in rows]
    return [
        Text(f"{said} {surest}"),
        Raw(f'<ul class="cards">{listed}</ul>', markdown(table)),
    ]


def _card(
    pair: Pair, place: int, image: np.ndarray, names: tuple[str, str]
) -> tuple[str, dict[str, str]]:
    """An example as HTML, and as a row."""
    assert pair.teacher is not None
    label = int(pair.labels[place])
    row = {"test image": str(place), "label": pair.names[label]}
    html = f"<dt>label</dt><dd>{escape(pair.names[label])}</dd>"
    for name, answer in zip(names, (pair.teacher, pair.student), strict=True):
        p = softmax(answer[place])
        k = int(p.argmax())
        said = f"{pair.names[k]} ({100 * p[k]:.0f}\u00a0%)"
        # A mark as well, for whom the colours look alike.
        mark, kind = ("✓", "ok") if k == label else ("✗", "off")
        html += f'<dt>{escape(name)}</dt><dd class="{kind}">{mark} {escape(said)}</dd>'
        row[name] = f"{mark} {said}"
    alt = f"test image {place}, a {pair.names[label]}"
    shown = picture(image, alt)
    number = f'<dt>image</dt><dd class="soft">{place}</dd>'
    return f"<li>{shown}<dl>{html}{number}</dl></li>", row


def _soft_labels(pair: Pair, seen: np.ndarray, names: tuple[str, str]) -> list[Block]:
    assert pair.teacher is not None
    places = softlabels.chosen(
        softmax(pair.teacher)[: len(seen)], pair.labels[: len(seen)]
    )
    made: list[Block] = [
        Text(
            "What the teacher says beyond its first choice, which a higher temperature "
            "brings out. Images of which it is right: one it is sure of, an average "
            "one, and those it doubts most. Each panel has a scale of its own."
        ),
        softlabels.key(names),
    ]
    for place in places:
        label = pair.names[int(pair.labels[place])]
        steps = [
            (t, softmax(pair.teacher[place], t), softmax(pair.student[place], t))
            for t in softlabels.TEMPERATURES
        ]
        shown = picture(seen[place], f"test image {place}, a {label}", 84)
        made.append(
            softlabels.block(shown, f"image {place}: {label}", steps, pair.names, names)
        )
    return made
