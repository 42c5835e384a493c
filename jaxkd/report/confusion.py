"""Confusion matrices of teacher and student."""

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from jaxkd.report.blocks import Block, Heading, Raw, Table, Text
from jaxkd.report.page import escape, marked
from jaxkd.report.tables import markdown

_MOST = 20  # classes of a matrix with its counts written out
_TOP = 8  # confusions in the table of the most frequent
_RIGHT, _WRONG = np.array([0, 114, 178]), np.array([213, 94, 0])

Predictions = tuple[np.ndarray, np.ndarray | None, np.ndarray]


def blocks(
    runs: Sequence[Predictions], names: Sequence[str], models: tuple[str, str]
) -> list[Block]:
    """The matrices beside each other, and the most frequent confusions.

    Args:
      runs: (labels, the teacher's logits or None, the student's) of each; summed.
      names: of the classes.
      models: how teacher and student are called.
    """
    summed = f", summed over {len(runs)} seeds" if len(runs) > 1 else ""
    counted = lambda which: np.sum(
        [matrix(run[which], run[0], len(names)) for run in runs], axis=0
    )
    matrices: dict[str, np.ndarray] = {}
    if all(teacher is not None for _, teacher, _ in runs):
        matrices[models[0]] = counted(1)
    matrices[models[1]] = counted(2)
    draw = _counts if len(names) <= _MOST else _heat
    figures = "".join(
        f"<figure>{draw(counts, names, model)}</figure>"
        for model, counts in matrices.items()
    )
    said = "; ".join(
        f"{model}: {np.trace(c):,} of {c.sum():,} right"
        for model, c in matrices.items()
    )
    rows = _frequent(matrices, names)
    text = "Rows are labels, columns predictions"
    made: list[Block] = [
        Heading("Confusion", 3),
        Text(f"{text}{summed}. {said}."),
        Raw(f'<div class="beside">{figures}</div>', _plain(matrices, names)),
    ]
    if rows:
        made.append(Table(rows, "The most frequent confusions of the last.", 2))
    return made


def matrix(logits: np.ndarray | None, labels: np.ndarray, classes: int) -> np.ndarray:
    """How many images of each label get each prediction, `[label, prediction]`.

    >>> matrix(np.array([[1.0, 0.0], [3.0, 2.0]]), np.array([0, 1]), 2).tolist()
    [[1, 0], [1, 0]]
    """
    assert logits is not None
    counts = np.zeros((classes, classes), int)
    np.add.at(counts, (labels, logits.argmax(-1)), 1)
    return counts


def _frequent(
    matrices: dict[str, np.ndarray], names: Sequence[str]
) -> list[dict[str, str]]:
    """Of the last matrix, with the counts of the others."""
    wrong = [*matrices.values()][-1].copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong.ravel(), kind="stable")[:_TOP]
    places = [divmod(int(i), len(names)) for i in order if wrong.ravel()[i]]
    return [
        {
            "label": names[a],
            "taken for": names[b],
            **{model: f"{counts[a, b]:,}" for model, counts in matrices.items()},
        }
        for a, b in places
    ]


def _counts(counts: np.ndarray, names: Sequence[str], model: str) -> str:
    """A table whose cells are shaded by their share of the row."""
    long = max(map(len, names)) > 2
    head = "".join(
        f'<th scope="col" class="name"><span>{escape(name)}</span></th>'
        for name in names
    )
    body = ""
    for a, row in enumerate(counts):
        cells = "".join(_cell(int(n), row.sum(), a == b) for b, n in enumerate(row))
        body += f'<tr><th scope="row">{escape(names[a])}</th>{cells}</tr>'
    return (
        f'<div class="wide"><table class="confusion{" long" if long else ""}">'
        f"<caption>{escape(model)}</caption>"
        f'<thead><tr><th scope="col"><span class="soft">label</span></th>{head}</tr>'
        f"</thead><tbody>{body}</tbody></table></div>"
    )


def _cell(count: int, total: int, right: bool) -> str:
    if not count:
        return '<td class="none">0</td>'
    share = 0.12 + 0.88 * count / total
    kind = ("right" if right else "wrong") + (" strong" if share > 0.6 else "")
    return f'<td class="{kind}" style="--share:{share:.2f}">{count}</td>'


def _heat(counts: np.ndarray, names: Sequence[str], model: str) -> str:
    """A picture: blue is right, orange wrong, white never."""
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    # Single confusions are to be seen too: a root lifts small shares.
    strength = np.sqrt(share)[..., None]
    color = np.where(np.eye(len(counts), dtype=bool)[..., None], _RIGHT, _WRONG)
    pixels = np.rint(255 + strength * (color - 255)).astype(np.uint8)
    scale = max(1, 480 // len(counts))
    pixels = np.kron(pixels, np.ones((scale, scale, 1), np.uint8))
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, format="PNG", optimize=True)
    data = base64.b64encode(content.getvalue()).decode()
    alt = (
        f"confusion matrix of {model}: {np.trace(counts):,} of {counts.sum():,} "
        f"images lie on the diagonal of {len(names)} classes"
    )
    side = len(pixels)
    return (
        f'<img src="data:image/png;base64,{data}" alt="{escape(alt)}" '
        f'width="{side}" height="{side}"><figcaption>{escape(model)}</figcaption>'
    )


def _plain(matrices: dict[str, np.ndarray], names: Sequence[str]) -> str:
    """In Markdown: small matrices alone."""
    if len(names) > _MOST:
        return "Matrices of so many classes are in report.html."
    made = []
    for model, counts in matrices.items():
        rows = [
            {"label": marked(name), **{marked(f"→ {n}"): f"{k}" for n, k in pairs}}
            for name, row in zip(names, counts, strict=True)
            for pairs in [list(zip(names, row, strict=True))]
        ]
        made.append(f"{marked(model)}:\n\n{markdown(rows)}")
    return "\n".join(made)
