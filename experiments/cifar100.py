"""CIFAR-100: any teacher of the zoo, any student, any method, one protocol.

RepDistiller's: 240 epochs of SGD at batch 64, crops and flips, the accuracy after the
last epoch. The teacher is trained once and kept under OUT/teachers; the students alone
and taught start from the same weights and see the same batches. Weights of the methods
are the published ones. On an accelerator networks compute in bfloat16 and seeds are
trained together; `--preset short` is for a CPU.

    python -m experiments.cifar100 --teacher resnet32x4 --student resnet8x4 --method dkd
    python -m experiments.cifar100 --teacher resnet56 --student resnet20 --method kd
    python -m experiments.cifar100 --method mymodule:myfunction --preset short

Methods are the names of `jaxkd.recipes`, with options after a colon ("dkd:beta=2.0");
"mymodule:myfunction" is one of yours, of the same type. Needs CIFAR-100's official
archive. Hyper-parameters are to be chosen with `--evaluate-on validation`. Measured
results are in experiments/README.md.
"""

import dataclasses
from typing import Literal

import tyro

from experiments import _contest as contests, _protocol as protocol


@dataclasses.dataclass(frozen=True)
class Config:
    """Every field can be given on the command line."""

    teacher: str = "resnet56"
    student: str = "resnet20"
    method: str = "kd"
    preset: Literal["full", "short"] = "full"
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
    every_epoch: bool = True  # whether to test after each, or only after the last
    out: str = "runs"
    resume: str | None = None  # the directory of a run that was cut short

    def protocols(self) -> tuple[protocol.Protocol, protocol.Protocol]:
        """The student's and the teacher's."""
        return protocol.chosen(self)


def main(config: Config) -> list[contests.Result]:
    """Runs the experiment; returns what was found for each method."""
    return contests.contest("cifar100", config, (config.method,))


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
