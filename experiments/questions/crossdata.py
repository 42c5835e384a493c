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

    python -m experiments.questions.crossdata --archives DIR
    python -m experiments.questions.crossdata --preset short
"""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import tyro

from experiments import common as experiments
from experiments.questions import common
from jaxkd import data
from jaxkd.types import Outputs


@dataclasses.dataclass(frozen=True)
class Config(common.Config):
    """Every field can be given on the command line."""

    # by default the digits in short, else cifar10
    dataset: Literal["digits", "cifar10"] | None = None


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

# The images, and whether a class is right for a label, bool `[labels, classes]`.
Place = tuple[data.Dataset, np.ndarray]


def shifted(test: data.Dataset) -> data.Dataset:
    """Move the images by one pixel up, down, left and right; black comes in."""
    padded = np.pad(test.images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    height, width = test.images.shape[1:3]
    moved = [
        padded[:, y : y + height, x : x + width]
        for y, x in ((2, 1), (0, 1), (1, 2), (1, 0))
    ]
    n = np.arange(4 * len(test.images), dtype=np.int32)
    label = np.tile(test.labels, 4)
    return test.replace(image=np.concatenate(moved), label=label, index=n)


def reduced(mnist: data.Dataset) -> data.Dataset:
    """Average MNIST's digits over 8x8 equal areas of their box, as bytes."""
    box = np.asarray(mnist.images)[:, BOX, BOX, 0].astype(np.float64)
    n = box.shape[1]
    edges, pixels = np.linspace(0, n, 9), np.arange(n)
    low = np.maximum(edges[:-1, None], pixels)
    high = np.minimum(edges[1:, None], pixels + 1)
    shares = np.maximum(high - low, 0) * 8 / n  # of each pixel in each area
    small = np.rint(shares @ box @ shares.T).astype(np.uint8)
    return mnist.replace(image=small[..., None])


def matching(cifar100: data.Dataset, classes: Sequence[str]) -> Place:
    """Choose the images of CIFAR-100 whose class belongs to one of CIFAR-10's."""
    right = np.zeros((cifar100.num_classes, len(classes)), bool)
    for label, answers in CIFAR100_AS_CIFAR10.items():
        for answer in answers:
            right[cifar100.classes.index(label), classes.index(answer)] = True
    kept = np.flatnonzero(right[cifar100.labels].any(-1))
    columns = {name: np.asarray(a)[kept] for name, a in cifar100.columns.items()}
    return cifar100.replace(**columns), right


def others(config: Config, test: data.Dataset) -> dict[str, Place]:
    """Load the test sets that this data set's students can be measured on."""
    where: dict[str, Any] = {"archives": config.archives, "data_dir": config.data_dir}
    with experiments.refusing("no data to compare with"):
        if config.dataset == "cifar10":
            found = data.load("cifar100", "test", **where)
            return {"CIFAR-100's matching classes": matching(found, test.classes)}
        same = np.eye(test.num_classes, dtype=bool)
        places = {"digits, shifted": (shifted(test), same)}
        # The short preset needs no archives.
        if config.preset == "full" or config.archives or os.getenv("JAXKD_ARCHIVES"):
            mnist = data.load("mnist", "test", **where)
            places["MNIST, 8x8"] = reduced(mnist), same
        return places


def score(
    own: Sequence[Outputs], teacher: Outputs, place: Place
) -> dict[str, np.ndarray]:
    """Measure accuracy, agreement with the teacher, and NLL of any right answer."""
    logits = np.array([seed.logits for seed in own], np.float64)
    answer, right = logits.argmax(-1), place[1][place[0].labels]
    log_p = logits - np.logaddexp.reduce(logits, -1, keepdims=True)
    log_right = np.logaddexp.reduce(np.where(right, log_p, -np.inf), -1)
    return {
        "accuracy": right[np.arange(answer.shape[-1]), answer].mean(-1),
        "agreement": np.mean(answer == np.asarray(teacher.logits).argmax(-1), -1),
        "nll": -log_right.mean(-1),
    }


def main(config: Config) -> dict[str, float]:
    """Compare the gain at home with the gain elsewhere; return the accuracies."""
    config = common.sized(config, full="cifar10")
    spec = common.kd(config)
    setup = common.prepare("crossdata", config, [spec])
    test = setup.test
    home = {f"{test.name}, as trained": (test, np.eye(test.num_classes, dtype=bool))}
    places = home | others(config, test)  # before anything is trained
    taught = common.teach(setup)
    plain = common.students(setup, "plain", taught)
    distilled = common.students(setup, "distilled", taught, spec=spec)
    arms, notes = {}, []
    for name, place in places.items():
        images, right = place
        a, b, c = (
            common.answer(its.net, its.run, images, setup.view)
            for its in (distilled, plain, taught)
        )
        arms[name] = common.Arm(*(score(its, c[0], place) for its in (a, b, c)))
        notes.append(
            f"{name}: {len(images.images):,} images, of which guessing gets "
            f"{100 * right[images.labels].mean():.1f}%; distillation changes the "
            f"accuracy by {arms[name].gain} points."
        )
    return common.write(setup, "measured on", arms, notes)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
