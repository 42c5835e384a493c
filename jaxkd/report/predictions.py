"""What teacher and student predict on the test images, beside each other."""

import base64
import dataclasses
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from jaxkd.report import charts
from jaxkd.report.merging import RunGroup
from jaxkd.report.reading import RunRecord

TEMPERATURES = (1, 2, 5, 10)
_BARS = 10  # classes in a panel of soft labels
_MOST_CLASSES = 20  # of a confusion matrix with its counts written out
_MOST_CONFUSIONS = 8
_CARDS = (6, 4, 2)  # of: teacher alone right, student alone right, both wrong
_BLUE, _ORANGE = np.array([0, 114, 178]), np.array([213, 94, 0])


@dataclasses.dataclass(frozen=True)
class Answers:
    """The predictions of a run.

    Attributes:
      run: the run.
      labels: int `[n]`.
      teacher: logits `[n, classes]`, or None.
      student: logits `[n, classes]`.
    """

    run: RunRecord
    labels: np.ndarray
    teacher: np.ndarray | None
    student: np.ndarray

    @property
    def classes(self) -> list[str]:
        """The names of the classes; numbers where there are no names."""
        n, names = self.student.shape[1], self.run.facts.data.get("classes") or []
        return [str(x) for x in (names if len(names) == n else range(n))]


def sections(group: RunGroup) -> dict[str, Any]:
    """Return what the template shows of predictions: confusion, cards, soft labels."""
    answers = compare(group)
    if not answers or group.student is None:
        return {}
    model = group.student.model
    changes = [r.stage for r in group.rows if r.model == model and r.kind != "export"]
    student = f"{model} after {(changes or [group.student.stage])[-1]}"
    teacher = group.teacher.model if group.teacher else ""
    made: dict[str, Any] = {"confusion": _confusions(answers, teacher, student)}
    first, names = answers[0], (teacher, model)
    if first.teacher is not None and first.run.images is not None:
        seen = first.run.images[: len(first.labels)]
        made["disagreements"] = _disagreements(first, seen, names)
        made["soft_labels"] = _soft_labels(first, seen, names)
    return made


def compare(group: RunGroup) -> list[Answers]:
    """Return the predictions of each run that has them; all with a teacher, or none."""
    taught, end = group.teacher, group.student
    if end is None:
        return []
    answers = []
    for place, run in enumerate(group.runs):
        ours = run.logits(end.runs.get(place))
        theirs = None
        if taught is not None and taught is not end:
            theirs = run.logits(taught.runs.get(place))
        if ours is not None and run.labels is not None:
            fits = theirs is not None and theirs.shape == ours.shape
            answers.append(Answers(run, run.labels, theirs if fits else None, ours))
    return [a for a in answers if (a.teacher is None) == (answers[0].teacher is None)]


def softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Return probabilities, over the last axis."""
    z = logits / temperature
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def confusion_matrix(
    logits: np.ndarray, labels: np.ndarray, classes: int
) -> np.ndarray:
    """Return how many images of each label get each prediction, `[label, prediction]`.

    >>> logits = np.array([[1.0, 0.0], [3.0, 2.0]])
    >>> confusion_matrix(logits, np.array([0, 1]), 2).tolist()
    [[1, 0], [1, 0]]
    """
    counts = np.zeros((classes, classes), int)
    np.add.at(counts, (labels, logits.argmax(-1)), 1)
    return counts


def disagreements(answers: Answers) -> list[np.ndarray]:
    """Return places where teacher and student differ, the surest first.

    Returns:
      Three: only the teacher is right, only the student is, neither is.
    """
    assert answers.teacher is not None
    t, s = softmax(answers.teacher), softmax(answers.student)
    theirs, ours = t.argmax(-1), s.argmax(-1)
    right, other = theirs == answers.labels, ours == answers.labels
    masks = (right & ~other, ~right & other, ~right & ~other & (ours != theirs))
    order = np.argsort(-t.max(-1) * s.max(-1), kind="stable")
    return [order[mask[order]] for mask in masks]


def by_entropy(p: np.ndarray, labels: np.ndarray) -> list[int]:
    """Return images the teacher is right on: the surest, the median, two doubtful ones.

    Args:
      p: its probabilities, `[n, classes]`.
      labels: `[n]`.

    Returns:
      Up to four places, in the order of the entropy of p.
    """
    entropy = -np.sum(p * np.log(np.maximum(p, 1e-30)), -1)
    order = np.argsort(entropy, kind="stable")
    order = order[(p.argmax(-1) == labels)[order]]
    if not len(order):
        return []
    # The second doubtful one is of another class, if there is one.
    others = [i for i in order[:-1] if labels[i] != labels[order[-1]]]
    picks = [order[0], order[len(order) // 2], *others[-1:], order[-1]]
    return [int(i) for i in dict.fromkeys(picks)]


def _confusions(
    answers: Sequence[Answers], teacher: str, student: str
) -> dict[str, Any]:
    classes = answers[0].classes
    total = lambda which: np.sum(
        [confusion_matrix(getattr(a, which), a.labels, len(classes)) for a in answers],
        axis=0,
    )
    matrices = {} if answers[0].teacher is None else {teacher: total("teacher")}
    matrices[student] = total("student")
    wrong = matrices[student] * ~np.eye(len(classes), dtype=bool)
    places = np.argsort(-wrong.ravel(), kind="stable")[:_MOST_CONFUSIONS]
    pairs = [divmod(int(i), len(classes)) for i in places if wrong.ravel()[i]]
    return {
        "summed": f", summed over {len(answers)} seeds" if answers[1:] else "",
        "classes": classes,
        "right": {m: f"{np.trace(c):,} of {c.sum():,}" for m, c in matrices.items()},
        "matrices": {m: c.tolist() for m, c in matrices.items()}
        if len(classes) <= _MOST_CLASSES
        else {},
        "pictures": {m: _heat(c) for m, c in matrices.items()}
        if len(classes) > _MOST_CLASSES
        else {},
        "frequent": [
            {"label": classes[a], "taken for": classes[b]}
            | {model: f"{counts[a, b]:,}" for model, counts in matrices.items()}
            for a, b in pairs
        ],
    }


def _heat(counts: np.ndarray) -> dict[str, Any]:
    """A confusion matrix as a picture: blue is right, orange wrong, white never."""
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    strength = np.sqrt(share)[..., None]  # a root shows single confusions too
    color = np.where(np.eye(len(counts), dtype=bool)[..., None], _BLUE, _ORANGE)
    pixels = np.rint(255 + strength * (color - 255)).astype(np.uint8)
    scale = max(1, 480 // len(counts))
    pixels = np.kron(pixels, np.ones((scale, scale, 1), np.uint8))
    return {"src": _data_uri(pixels), "side": len(pixels)}


def _data_uri(image: np.ndarray) -> str:
    """Return a PNG of an image `[h, w, c]`."""
    shown = image if image.shape[-1] in (3, 4) else image[..., 0]
    content = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(shown)).save(content, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


def _picture(answers: Answers, seen: np.ndarray, place: int) -> dict[str, Any]:
    label = answers.classes[int(answers.labels[place])]
    ratio = seen.shape[1] / seen.shape[2]
    alt = f"test image {place}, a {label}"
    return {"src": _data_uri(seen[place]), "alt": alt, "ratio": ratio, "label": label}


def _disagreements(
    answers: Answers, seen: np.ndarray, names: tuple[str, str]
) -> dict[str, Any]:
    found, cards = disagreements(answers), []
    assert answers.teacher is not None
    both = (answers.teacher, answers.student)
    for places, most in zip(found, _CARDS, strict=True):
        for place in map(int, places[places < len(seen)][:most]):
            cards.append({"place": place, "picture": _picture(answers, seen, place)})
            cards[-1]["guesses"] = [
                _guess(name, logits[place], answers, place)
                for name, logits in zip(names, both, strict=True)
            ]
    return {"counts": [len(places) for places in found], "cards": cards,
            "images": len(answers.labels), "names": names}  # fmt: skip


def _guess(name: str, logits: Any, answers: Answers, place: int) -> dict[str, Any]:
    p = softmax(logits)
    k = int(p.argmax())
    text = f"{answers.classes[k]} ({100 * p[k]:.0f} %)"
    return {"model": name, "text": text, "right": k == answers.labels[place]}


def _soft_labels(
    answers: Answers, seen: np.ndarray, names: tuple[str, str]
) -> dict[str, Any]:
    teacher = answers.teacher
    assert teacher is not None
    n, classes = len(seen), answers.classes
    images = []
    for place in by_entropy(softmax(teacher[:n]), answers.labels[:n]):
        both = (teacher[place], answers.student[place])
        # All classes, or the ones the teacher finds likeliest.
        shown = np.argsort(-both[0], kind="stable")[:_BARS]
        shown = np.arange(len(classes)) if len(classes) <= _BARS else shown
        panels, alt = {}, []
        for t in TEMPERATURES:
            p, q = softmax(both[0], t), softmax(both[1], t)
            entropy = float(-np.sum(p * np.log(np.maximum(p, 1e-30))))
            panels[f"T = {t}, entropy {entropy:.2f} nats"] = (p[shown], q[shown])
            k = int(p.argmax())
            alt.append(
                f"at temperature {t} {names[0]} gives {classes[k]} {100 * p[k]:.0f} %, "
                f"{names[1]} {100 * q[k]:.0f} %"
            )
        picture = _picture(answers, seen, place)
        title = f"image {place}: {picture['label']}"
        labels = [classes[k] for k in shown]
        svg = charts.bars(panels, labels, f"{title}: {'; '.join(alt)}")
        if len(shown) < len(classes):
            title += f"; the classes {names[0]} finds likeliest"
        images.append({"picture": picture, "title": title, "svg": svg})
    return {"names": names, "images": images}
