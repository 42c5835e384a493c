"""CIFAR-10: a large and a small convolutional network, alone and distilled.

The first pair: TeacherNet (conv 128, 64, pool, 64, 32, pool, dense 512, dropout .1) and
StudentNet (conv 16, pool, 16, pool, dense 256, dropout .1); the second, `--pair wide`:
conv 64, pool, 128, pool, dense 512, and conv 32, pool, 64, pool, dense 128.

The students start from the same weights and see the same batches; the distilled ones
minimise .75 cross-entropy + .25 KL at T=2. There is no augmentation, so that the
teacher's logits are computed once (`--teacher live` runs it in every step).

    python -m experiments.cifar10_cnn --archives DIR
    python -m experiments.cifar10_cnn --pair wide --seeds 5

Needs the official archive: in DIR, or from the network. Measured results are in
experiments/README.md.
"""

import dataclasses
from typing import Literal

import jax
import tyro

from experiments import _pair as pair
from jaxkd import data, models
from jaxkd.data import augment

PAIRS = {"teachernet": ("teacher", "student"), "wide": ("wide", "narrow")}


@dataclasses.dataclass(frozen=True)
class Config:
    """Every field can be given on the command line."""

    pair: Literal["teachernet", "wide"] = "teachernet"
    archives: str | None = None  # folder of the official archives
    data_dir: str | None = None  # where prepared data are kept
    temperature: float = 2.0
    hard_weight: float = 0.75
    soft_weight: float = 0.25
    learning_rate: float = 1e-3
    batch_size: int = 128
    teacher_epochs: int = 10
    epochs: int = 10
    seeds: int = 3  # of the students
    teacher: Literal["cached", "live"] = "cached"
    train_images: int | None = None  # only so many of them; None is all
    evaluate_on: Literal["test", "validation"] = "test"
    out: str = "runs"

    @property
    def dataset(self) -> str:
        """The one data set that these networks are for."""
        return "cifar10"


def main(config: Config) -> dict[str, float]:
    """Runs the experiment; returns the mean accuracies by name."""
    train_set, test_set = pair.splits(config)
    view = augment.chain(
        augment.to_float(), augment.normalise(*data.channel_statistics(train_set))
    )
    teacher, student = PAIRS[config.pair]
    return pair.compare(
        "cifar10_cnn",
        config,
        teacher=models.cnn(**models.CNNS[teacher]),
        student=models.cnn(**models.CNNS[student]),
        task=pair.task(train_set, test_set, view),
        # vmap makes grouped convolutions of seeds, which XLA:CPU runs slowly.
        together=jax.default_backend() != "cpu",
    )


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
