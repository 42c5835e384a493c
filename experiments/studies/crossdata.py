"""Does the gain carry over to other data? Students measured on sets they never saw.

The optical digits: the test images shifted by one pixel, and, where MNIST is at hand,
MNIST's test images reduced to 8x8. Both sets have the same ten classes, but other
writers and another way of scanning: MNIST's 20x20 box around the digit is cut out and
averaged over 8x8 equal areas.

CIFAR-10: the classes of CIFAR-100 that belong to one of CIFAR-10's. The two sets share
no class by construction, so only these are taken: the big cats count as cat (the same
family, Felidae), wolf and fox as dog (Canidae), bus and pickup truck as automobile or
truck, either of which is right, since CIFAR-10's description keeps pickup trucks out of
both. Left out are doubtful cousins (streetcar, tractor, tank, motorcycle, rocket,
cattle, camel, lizard), and CIFAR-100 has nothing for bird, deer, frog, horse and ship.
"""

import functools
import os
from typing import Any, NamedTuple

import numpy as np

from experiments import _pair as pair
from experiments.studies import _finding as f, _picture, _study as study
from experiments.studies._course import (
    Students,
    configured,
    course,
    knobs,
    novice,
    with_logits,
)
from experiments.studies._lab import Lab, Taught, teacher
from experiments.studies._probe import Metrics
from jaxkd import data, report

CIFAR100_AS_CIFAR10: dict[str, tuple[str, ...]] = {
    "leopard": ("cat",),
    "lion": ("cat",),
    "tiger": ("cat",),
    "fox": ("dog",),
    "wolf": ("dog",),
    "bus": ("automobile", "truck"),
    "pickup_truck": ("automobile", "truck"),
}
BOX = slice(4, 24)  # MNIST's digits lie in 20x20 of 28x28 pixels


class Elsewhere(NamedTuple):
    """A test set, and which answers are right on it.

    Attributes:
      name: of the table's row.
      data: the images, as large as those of the training set.
      right: whether a class answers a label, bool `[labels, classes]`.
    """

    name: str
    data: data.Dataset
    right: np.ndarray


def shifted(test: data.Dataset) -> data.Dataset:
    """The images moved by one pixel up, down, left and right; black comes in."""
    padded = np.pad(test.images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    height, width = test.images.shape[1:3]
    moved = [
        padded[:, y : y + height, x : x + width]
        for y, x in ((2, 1), (0, 1), (1, 2), (1, 0))
    ]
    n = 4 * len(test.images)
    return test.replace(
        image=np.concatenate(moved),
        label=np.tile(test.labels, 4),
        index=np.arange(n, dtype=np.int32),
    )


def reduced(mnist: data.Dataset) -> data.Dataset:
    """MNIST's digits averaged over 8x8 equal areas of their box, as bytes."""
    box = np.asarray(mnist.images)[:, BOX, BOX, 0].astype(np.float64)
    areas = shares(box.shape[1], 8)
    small = np.rint(areas @ box @ areas.T).astype(np.uint8)
    return mnist.replace(image=small[..., None])


def shares(n: int, m: int) -> np.ndarray:
    """How much of each of n pixels is in each of m equal intervals, rows of sum 1.

    >>> shares(3, 2).round(3).tolist()
    [[0.667, 0.333, 0.0], [0.0, 0.333, 0.667]]
    """
    edges, pixels = np.linspace(0, n, m + 1), np.arange(n)
    low = np.maximum(edges[:-1, None], pixels)
    high = np.minimum(edges[1:, None], pixels + 1)
    return np.maximum(high - low, 0) * m / n


def matching(cifar100: data.Dataset, classes: tuple[str, ...]) -> Elsewhere:
    """The images of CIFAR-100 whose class belongs to one of CIFAR-10's."""
    right = np.zeros((cifar100.num_classes, len(classes)), bool)
    for label, answers in CIFAR100_AS_CIFAR10.items():
        for answer in answers:
            right[cifar100.classes.index(label), classes.index(answer)] = True
    (kept,) = np.nonzero(right[cifar100.labels].any(-1))
    some = cifar100.replace(
        image=np.asarray(cifar100.images)[kept],
        label=np.asarray(cifar100.labels)[kept],
        index=np.asarray(cifar100.index)[kept],
    )
    return Elsewhere("CIFAR-100's matching classes", some, right)


def others(lab: Lab) -> list[Elsewhere]:
    """The test sets that this data set's students can be measured on."""
    test, of = lab.task.test, lab.config
    where: dict[str, Any] = {"archives": of.archives, "data_dir": of.data_dir}
    if lab.scale.dataset == "cifar10":
        with pair.refusing("no CIFAR-100 to compare with"):
            return [matching(data.load("cifar100", "test", **where), test.classes)]
    same = np.eye(test.num_classes, dtype=bool)
    found = [Elsewhere("digits, shifted", shifted(test), same)]
    # The short preset is to need nothing that is not there.
    if of.preset == "full" or of.archives or os.environ.get("JAXKD_ARCHIVES"):
        with pair.refusing("no MNIST to compare with"):
            mnist = data.load("mnist", "test", **where)
        found.append(Elsewhere("MNIST, 8x8", reduced(mnist), same))
    return found


def score(
    logits: Any, labels: np.ndarray, right: np.ndarray, teacher_logits: Any
) -> Metrics:
    """Accuracy, agreement with the teacher, and NLL of any right answer."""
    logits = np.asarray(logits, np.float64)
    answer, ok = logits.argmax(-1), right[labels]
    log_p = logits - np.logaddexp.reduce(logits, -1, keepdims=True)
    of_right = np.logaddexp.reduce(np.where(ok, log_p, -np.inf), -1)
    return {
        "accuracy": np.take_along_axis(ok, answer[:, None], -1).mean(),
        "agreement": np.mean(answer == np.asarray(teacher_logits).argmax(-1)),
        "nll": -of_right.mean(),
    }


def measured(
    place: Elsewhere, taught: Taught, groups: dict[str, Students]
) -> dict[str, Metrics]:
    """Teacher and students on one test set, by name; of students `[seeds]`."""
    resident = data.on_device(place.data)
    truth = taught.probe(taught.variables, resident).logits
    at = functools.partial(
        score, labels=place.data.labels, right=place.right, teacher_logits=truth
    )
    found = {"teacher": at(truth)}
    for name, students in groups.items():
        each = [at(seen.logits) for seen in students.seen(resident)]
        found[name] = {k: np.stack([m[k] for m in each]) for k in each[0]}
    return found


def run(lab: Lab) -> f.Finding:
    """Compares the gain at home with the gain elsewhere.

    Raises:
      SystemExit: for a data set without a partner.
    """
    if lab.scale.dataset not in ("digits", "cifar10"):
        raise SystemExit(
            f"crossdata: dataset must be digits or cifar10, got {lab.scale.dataset!r}: "
            "the others have no partner with the same classes and size"
        )
    places = others(lab)  # before anything is trained
    test = lab.task.test
    home = Elsewhere(f"{test.name}, as trained", test, np.eye(len(test.classes)) > 0)
    taught = teacher(lab)
    train, resident = course(lab, novice(lab)), with_logits(lab, taught)
    groups = {
        "plain": train("plain", knobs(), taught, resident=resident),
        "distilled": train("distilled", configured(lab), taught, resident=resident),
    }
    found = {p.name: measured(p, taught, groups) for p in (home, *places)}
    arms = [f.Arm(name, m["distilled"], m["plain"]) for name, m in found.items()]
    teachers = [float(m["teacher"]["accuracy"]) for m in found.values()]
    return f.Finding(
        rows(arms, [m["teacher"] for m in found.values()]),
        [sentence(arms), *described((home, *places))],
        functools.partial(
            _picture.comparison,
            arms=arms,
            teachers=teachers,
            x_label="measured on",
            title=study.title(lab),
        ),
        {
            place: {who: {k: np.asarray(v).tolist() for k, v in m.items()}}
            for place, by in found.items()
            for who, m in by.items()
        },
    )


def rows(arms: list[f.Arm], teachers: list[Metrics]) -> list[dict[str, str]]:
    """Three networks for each test set."""
    table = []
    for arm, of_teacher in zip(arms, teachers, strict=True):
        assert arm.plain is not None
        networks = {"teacher": of_teacher, "plain": arm.plain, "distilled": arm.metrics}
        for who, m in networks.items():
            teaches = who == "teacher"
            table.append(
                {
                    "measured on": arm.label,
                    "network": who,
                    "accuracy %": report.mean_sd(m["accuracy"], scale=100),
                    "gain, points": f.signed(f.gain(arm)) if who == "distilled" else "",
                    "agreement %": ""
                    if teaches
                    else report.mean_sd(m["agreement"], scale=100),
                    "NLL": report.mean_sd(m["nll"], digits=3),
                }
            )
    return table


def sentence(arms: list[f.Arm]) -> str:
    """The gain at home and elsewhere."""
    home, away = arms[0], arms[1:]
    parts = [
        f"{f.changes(f.gain(a))} on {a.label} ({f.accuracy(a):.2f}%)" for a in away
    ]
    return (
        f"On its own test set ({f.accuracy(home):.2f}%) distillation makes "
        f"{f.changes(f.gain(home))}; elsewhere {' and '.join(parts)}."
    )


def described(places: tuple[Elsewhere, ...]) -> list[str]:
    """How many images there are, and what guessing would give."""
    parts = []
    for place in places:
        chance = 100 * place.right[place.data.labels].mean()
        n = len(place.data.images)
        parts.append(f"{place.name} has {n:,} images (chance {chance:.1f}%)")
    return ["; ".join(parts) + "."]
