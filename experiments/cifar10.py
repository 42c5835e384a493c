"""CIFAR-10: a large and a small convolutional network, alone and distilled.

The first pair: TeacherNet (conv 128, 64, pool, 64, 32, pool, dense 512, dropout .1) and
StudentNet (conv 16, pool, 16, pool, dense 256, dropout .1); the second, `--pair wide`:
conv 64, pool, 128, pool, dense 512, and conv 32, pool, 64, pool, dense 128.

The students start from the same weights and see the same batches; the distilled ones
minimise .75 cross-entropy + .25 KL at T=2. There is no augmentation, so that the
teacher's logits are computed once (`--teacher live` runs it in every step).

    python -m experiments.cifar10 --archives DIR
    python -m experiments.cifar10 --pair wide --seeds 5

Needs the official archive: in DIR, or from the network. Measured results are in
experiments/README.md.
"""

import dataclasses
from typing import Any, Literal

import optax
import tyro

from experiments import common
from jaxkd import data, distill, losses, models, report, train
from jaxkd.data import augment

PAIRS = {"teachernet": ("teacher", "student"), "wide": ("wide", "narrow")}


@dataclasses.dataclass(frozen=True)
class Config(common.Config):
    """Every field can be given on the command line."""

    pair: Literal["teachernet", "wide"] = "teachernet"
    dataset: Literal["cifar10", "digits"] = "cifar10"  # digits: to try it out quickly
    train_images: int | None = None  # number of training images; None is all
    temperature: float = 2.0
    hard_weight: float = 0.75  # of the labels
    soft_weight: float = 0.25  # of the teacher
    learning_rate: float = 1e-3
    batch_size: int = 128
    teacher_epochs: int = 10
    epochs: int = 10
    teacher: Literal["cached", "live"] = "cached"


def main(config: Config) -> dict[str, float]:
    """Run the experiment; return the mean accuracies by name."""
    images, test = common.load(config, config.dataset, config.train_images)
    view = augment.chain(
        augment.to_float(), augment.normalise(*data.channel_statistics(images))
    )
    teacher, student = (models.cnn(**models.CNNS[name]) for name in PAIRS[config.pair])
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
    directory, log = common.start("cifar10", config)
    # vmap makes grouped convolutions of seeds, which XLA:CPU runs slowly.
    how |= {"together": False, "test": test, "log": log}

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
        f"{config.pair}: {test.name}, {len(test.images):,} {test.split} images",
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
