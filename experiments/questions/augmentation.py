"""Does augmentation help the student to learn from the teacher? Several kinds.

Under a random view the teacher runs live and sees what the students see. Each kind has
its own plain students, on the same augmented images with the labels alone. The teacher
was trained without augmentation.

    python -m experiments.questions.augmentation --archives DIR
    python -m experiments.questions.augmentation --preset short
"""

import dataclasses

import tyro

from experiments.questions import common
from jaxkd.data import augment


@dataclasses.dataclass(frozen=True)
class Config(common.Config):
    """Every field can be given on the command line."""

    mixup: float = 0.4  # alpha of its Beta distribution


# What keeps the label: no mirrored digits. Shifts and mirrors act on the bytes, so that
# the border is black; cutout (its size) and mixup act on what the networks see.
ON_BYTES = {
    "digits": {"shift 1": augment.jitter(1)},
    "mnist": {"shift 2": augment.jitter(2)},
    "fashion_mnist": {"shift 2": augment.jitter(2), "flip": augment.flip()},
    "cifar10": {"crop 4": augment.crop(4), "flip": augment.flip()},
}
CUTOUT = {"digits": 3, "mnist": 8, "fashion_mnist": 8, "cifar10": 8}


def views(dataset: str, plain: augment.View, mixup: float) -> dict[str, augment.View]:
    """Make the augmentations, each from bytes to what the networks see."""
    size = CUTOUT[dataset]
    return {
        **{name: augment.chain(v, plain) for name, v in ON_BYTES[dataset].items()},
        f"cutout {size}": augment.chain(plain, augment.cutout(size)),
        "mixup": augment.chain(plain, augment.mixup(mixup)),
    }


def main(config: Config) -> dict[str, float]:
    """Compare the augmentations with none; return the mean accuracies by name."""
    config = common.sized(config)
    spec = common.kd(config)
    setup = common.prepare("augmentation", config, [spec])
    taught = common.teach(setup)
    tried: dict[str, dict] = {"unaugmented": {}}
    for name, view in views(str(config.dataset), setup.view, config.mixup).items():
        tried[name] = {"view": view}
    arms = {}
    for name, how in tried.items():
        plain = common.students(setup, f"plain, {name}", taught, **how)
        distilled = common.students(setup, name, taught, spec=spec, **how)
        arms[name] = common.Arm(distilled.metrics, plain.metrics, taught.metrics)
    gains = [f"{name} {arm.gain}" for name, arm in arms.items()]
    notes = [
        f"With and without augmentation, {common.highest(arms, 'unaugmented')}.",
        f"What distillation gains under each, in points: {', '.join(gains)}.",
    ]
    return common.write(setup, "augmentation", arms, notes)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
