"""MNIST: a 784-1200-1200-10 teacher, a 784-200-200-10 student, alone and distilled.

The teacher is trained first, on its labels. The students start from the same weights
and see the same batches; the distilled ones minimise .1 cross-entropy + .9 KL at T=5.

    python -m experiments.mnist --archives DIR
    python -m experiments.mnist --dataset fashion_mnist

Needs the data set's official archives: in DIR, or from the network. Measured results
are in experiments/README.md.
"""

import dataclasses
from typing import Any, Literal

import numpy as np
import optax
import tyro

from experiments import common
from jaxkd import data, distill, losses, models, report, train
from jaxkd.data import augment


@dataclasses.dataclass(frozen=True)
class Config(common.Config):
    """Every field can be given on the command line."""

    seeds: int = 5  # number of students, from seeds 0, 1, ...
    # digits come with the package: to try it out quickly
    dataset: Literal["mnist", "fashion_mnist", "digits"] = "mnist"
    train_images: int | None = None  # number of training images; None is all
    temperature: float = 5.0
    hard_weight: float = 0.1  # of the labels
    soft_weight: float = 0.9  # of the teacher
    learning_rate: float = 1e-3
    batch_size: int = 64
    teacher_epochs: int = 10
    epochs: int = 10
    teacher: Literal["cached", "live"] = "cached"


def main(config: Config) -> dict[str, float]:
    """Run the experiment; return the mean accuracies by name."""
    images, test = common.load(config, config.dataset, config.train_images)
    mean, sd = data.channel_statistics(images)
    if config.dataset == "mnist":
        mean, sd = np.array([0.1307]), np.array([0.3081])  # the usual ones
    view = augment.chain(augment.to_float(), augment.normalise(mean, sd))
    teacher = models.mlp([1200, 1200], classes=10)
    student = models.mlp([200, 200], classes=10)
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
    common.rehearse(student, data.on_device(images), teacher, spec=spec, **how)
    directory, log = common.start("mnist", config)
    how |= {"test": test, "log": log, "save_epochs": 5}

    taught = train.learn(
        teacher,
        images,
        seeds=1,
        epochs=config.teacher_epochs,
        checkpoints=directory / "teacher",
        name="teacher",
        **how,
    )
    how |= {"seeds": config.seeds, "epochs": config.epochs}
    alone = train.learn(
        student, images, checkpoints=directory / "alone", name="alone", **how
    )
    teaches: Any = (teacher, taught.seed(0))
    seen = data.on_device(images)
    if config.teacher == "cached":
        frozen = distill.frozen(teacher)
        logits = train.cache_teacher(frozen, taught.seed(0), images, view=view)
        teaches, seen["teacher"] = "cached", logits
    distilled = train.learn(
        student,
        seen,
        spec=spec,
        teacher=teaches,
        checkpoints=directory / "distilled",
        name="distilled",
        **how,
    )

    runs = {
        "teacher": (teacher, taught),
        "student alone": (student, alone),
        "student distilled": (student, distilled),
    }
    common.curves(directory, {"student": {"alone": alone, "distilled": distilled}})
    common.write_report(
        directory,
        f"mnist: {test.name}, {len(test.images):,} {test.split} images",
        {common.LAST: common.table(runs, test, view)},
        [
            "Distillation changes the accuracy by "
            f"{report.gain(distilled.final(), alone.final())} points "
            "(paired seeds, ± standard error)."
        ],
    )
    return {name: float(run.final().mean()) for name, (_, run) in runs.items()}


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
