"""Does the gain carry over to other data? Students measured on sets they never saw.

CIFAR-10's students are measured on the classes of CIFAR-100 that belong to one of
CIFAR-10's. The two sets share no class by construction, so only these are taken: big
cats count as cat (the same family, Felidae), wolf and fox as dog (Canidae), bus and
pickup truck as automobile or truck, either of which is right, since CIFAR-10's
description keeps pickup trucks out of both. Left out are doubtful cousins (streetcar,
tractor, tank, motorcycle, rocket, cattle, camel, lizard), and CIFAR-100 has nothing for
bird, deer, frog, horse and ship.

The optical digits' students are measured on the test images shifted by one pixel.

    python -m experiments.crossdata --archives DIR
    python -m experiments.crossdata --dataset digits --student-images 200

The other eight questions of when distillation helps are in `experiments.questions`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import jax
import numpy as np
import optax
import tyro

from experiments import common
from jaxkd import data, distill, evaluate, losses, models, report, train
from jaxkd.data import augment

CIFAR100_AS_CIFAR10: dict[str, tuple[str, ...]] = {
    "leopard": ("cat",),
    "lion": ("cat",),
    "tiger": ("cat",),
    "fox": ("dog",),
    "wolf": ("dog",),
    "bus": ("automobile", "truck"),
    "pickup_truck": ("automobile", "truck"),
}

# The images, and whether a class is right for a label, bool `[labels, classes]`.
Place = tuple[data.Dataset, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Config(common.Config):
    """Every field can be given on the command line."""

    dataset: Literal["cifar10", "digits"] = "cifar10"
    seeds: int = 5
    student_images: int | None = 3000  # None is all
    teacher_images: int | None = None  # None is 15,000 of CIFAR-10, all digits
    epochs: int = 10  # of the students
    teacher_epochs: int = 5
    batch_size: int = 64
    teacher_batch_size: int = 128
    temperature: float = 5.0
    hard_weight: float = 0.1  # of the labels
    soft_weight: float = 0.9  # of the teacher
    learning_rate: float = 1e-3


def main(config: Config) -> dict[str, dict[str, list[float]]]:
    """Compare the gain at home with the gain elsewhere; return the accuracies."""
    # The data, and where the networks are measured.
    images, test = common.load(config, config.dataset)
    cifar = config.dataset == "cifar10"
    seen = common.some(images, config.student_images)
    whole = common.some(images, config.teacher_images or (15_000 if cifar else None))
    scale = augment.normalise(*data.channel_statistics(images))
    view = augment.chain(augment.to_float(), scale)
    same = np.eye(test.num_classes, dtype=bool)
    places: dict[str, Place] = {f"{test.name}, as trained": (test, same)}
    if cifar:
        (other,) = common.read(config, "cifar100", "test")
        places["CIFAR-100's matching classes"] = matching(other, test.classes)
    else:
        places["digits, shifted"] = shifted(test), same

    # The networks and the objective.
    if cifar:
        teacher, student = (models.cnn(**models.CNNS[k]) for k in ("wide", "narrow"))
    else:
        teacher, student = (models.mlp([n, n], classes=10) for n in (128, 16))
    kd = distill.on_logits(losses.kd, temperature=config.temperature)
    spec: distill.Spec = {
        "ce": (config.hard_weight, distill.on_labels(losses.cross_entropy)),
        "kd": (config.soft_weight, kd),
    }
    how: dict[str, Any] = {
        "tx": optax.adam(config.learning_rate),
        "view": view,
        "batch_size": config.batch_size,
    }
    common.rehearse(student, data.on_device(seen), teacher, spec=spec, **how)
    directory, log = common.start("crossdata", config)
    how |= {"together": not cifar, "log": log, "save_epochs": 10}

    # The teacher, and its students.
    taught = train.learn(
        teacher,
        whole,
        seeds=1,
        epochs=config.teacher_epochs,
        checkpoints=directory / "teacher",
        name="teacher",
        **how | {"batch_size": config.teacher_batch_size},
    )
    frozen, variables = distill.frozen(teacher), taught.seed(0)
    logits = train.cache_teacher(frozen, variables, seen, view=view)
    how |= {"seeds": config.seeds, "epochs": config.epochs}
    plain = train.learn(
        student, seen, checkpoints=directory / "plain", name="plain", **how
    )
    distilled = train.learn(
        student,
        {**data.on_device(seen), "teacher": logits},
        spec=spec,
        teacher="cached",
        checkpoints=directory / "distilled",
        name="distilled",
        **how,
    )

    # Each network at each place: an answer is right if it is one of the right classes.
    def answers(net: models.Net, run: train.Run, of: data.Dataset) -> np.ndarray:
        columns = data.on_device(of)
        one = lambda v: evaluate.predict(distill.frozen(net), v, columns, view=view)
        return np.asarray(jax.jit(lambda v: jax.lax.map(one, v))(run.variables))

    results: dict[str, dict[str, list[float]]] = {}
    for name, (of, right) in places.items():
        found = {
            "teacher": answers(teacher, taught, of),
            "plain": answers(student, plain, of),
            "distilled": answers(student, distilled, of),
        }
        results[name] = {
            who: right[of.labels[None], logits.argmax(-1)].mean(-1).tolist()
            for who, logits in found.items()
        }

    # The table.
    rows = [
        {
            "measured on": f"{name}, {len(places[name][0].images):,} images",
            "guessing %": f"{100 * places[name][1][places[name][0].labels].mean():.1f}",
            **{who: report.mean_sd(of[who], scale=100) for who in of},
            "gain": report.gain(of["distilled"], of["plain"]),
        }
        for name, of in results.items()
    ]
    title = f"crossdata: students of {config.dataset}, {config.seeds} seeds"
    common.write_report(directory, title, {common.LAST: rows})
    return results


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


def matching(cifar100: data.Dataset, classes: Sequence[str]) -> Place:
    """Choose the images of CIFAR-100 whose class belongs to one of CIFAR-10's."""
    right = np.zeros((cifar100.num_classes, len(classes)), bool)
    for label, answers in CIFAR100_AS_CIFAR10.items():
        for answer in answers:
            right[cifar100.classes.index(label), classes.index(answer)] = True
    kept = np.flatnonzero(right[cifar100.labels].any(-1))
    columns = {name: np.asarray(a)[kept] for name, a in cifar100.columns.items()}
    return cifar100.replace(**columns), right


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
