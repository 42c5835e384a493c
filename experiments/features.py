"""Feature, relational and logit methods under one budget, beside the student alone.

By default what a CPU can do: a resnet20 that has seen all of CIFAR-100 teaches a
resnet8 on a fifth of it. With `--preset full` the protocol is `experiments.cifar100`'s.
No method's weight was tuned here: they are the published ones of `jaxkd.recipes`, for
240 epochs. First stages come on top of the budget, an eighth of it.

    python -m experiments.features
    python -m experiments.features --preset full --teacher resnet56 --student resnet20
    python -m experiments.features --resume runs/features/TIME

Results are kept method by method, so that a run that was cut short goes on. Needs
CIFAR-100's official archive. Measured results are in experiments/README.md.
"""

import dataclasses
from typing import Literal

import tyro

from experiments import _contest as contests, _protocol as protocol


@dataclasses.dataclass(frozen=True)
class Config:
    """Every field can be given on the command line."""

    teacher: str = "resnet20"
    student: str = "resnet8"
    methods: tuple[str, ...] = (
        "kd",
        "dkd",
        "crd",
        "hint",
        "at",
        "fsp",
        "sp",
        "rkd",
        "vid",
        "reviewkd",
        "simkd",
    )
    preset: Literal["full", "short"] = "short"
    dataset: str = "cifar100"
    archives: str | None = None  # folder of the official archives
    data_dir: str | None = None  # where prepared data are kept
    seeds: int = 3  # of the students
    epochs: int | None = None  # of the students; None is the preset's
    teacher_epochs: int | None = None
    learning_rate: float | None = None
    batch_size: int | None = None
    train_images: int | None = None  # of the students; None is the preset's
    teacher_images: int | None = None
    evaluate_on: Literal["test", "validation"] = "test"
    every_epoch: bool = False  # whether to test after each, or only after the last
    out: str = "runs"
    resume: str | None = None  # the directory of a run that was cut short

    def protocols(self) -> tuple[protocol.Protocol, protocol.Protocol]:
        """The student's and the teacher's."""
        return protocol.chosen(self)


def main(config: Config) -> list[contests.Result]:
    """Runs the experiment; returns what was found for each method, the best first."""
    return contests.contest("features", config, config.methods)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
