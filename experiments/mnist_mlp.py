"""MNIST: a 784-1200-1200-10 teacher, a 784-200-200-10 student, alone and distilled.

The teacher is trained first, on its labels. The students start from the same weights
and see the same batches; the distilled ones minimise .1 cross-entropy + .9 KL at T=5.

    python -m experiments.mnist_mlp --archives DIR
    python -m experiments.mnist_mlp --dataset fashion_mnist

Needs the data set's official archives: in DIR, or from the network. Measured results
are in experiments/README.md.
"""

import dataclasses
from typing import Literal

import tyro

from experiments import _pair as pair
from jaxkd import data, models
from jaxkd.data import augment

# MNIST's own; Fashion-MNIST is standardised by the statistics of its training set.
MEAN, SD = (0.1307,), (0.3081,)


@dataclasses.dataclass(frozen=True)
class Config:
    """Every field can be given on the command line."""

    dataset: Literal["mnist", "fashion_mnist"] = "mnist"
    archives: str | None = None  # folder of the official archives
    data_dir: str | None = None  # where prepared data are kept
    temperature: float = 5.0
    hard_weight: float = 0.1
    soft_weight: float = 0.9
    learning_rate: float = 1e-3
    batch_size: int = 64
    teacher_epochs: int = 10
    epochs: int = 10
    seeds: int = 5  # of the students, by vmap
    teacher: Literal["cached", "live"] = "cached"
    train_images: int | None = None  # only so many of them; None is all
    evaluate_on: Literal["test", "validation"] = "test"
    out: str = "runs"


def main(config: Config) -> dict[str, float]:
    """Runs the experiment; returns the mean accuracies by name."""
    train_set, test_set = pair.splits(config)
    own = config.dataset == "mnist"
    statistics = (MEAN, SD) if own else data.channel_statistics(train_set)
    view = augment.chain(augment.to_float(), augment.normalise(*statistics))
    return pair.compare(
        "mnist_mlp",
        config,
        teacher=models.mlp(**models.MLPS["teacher"]),
        student=models.mlp(**models.MLPS["student"]),
        task=pair.task(train_set, test_set, view),
        together=True,
    )


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
