"""What a run of the experiment is made of."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Config:
    """Every field can be given on the command line."""

    dataset: Literal["mnist", "digits"] = "mnist"  # digits: to try it out quickly
    archives: str | None = None  # folder of the official archives
    data_dir: str | None = None  # where prepared data are kept
    teacher_units: int = 1200  # in each of two hidden layers, as everywhere below
    units: int = 800
    small_units: int = 30
    middle_units: int = 300
    max_norm: float = 3.5  # of the weights into each hidden unit of the teacher
    jitter: int = 2  # pixels, of the teacher's images
    input_dropout: float = 0.1  # of the teacher; of its hidden units, half are dropped
    temperature: float = 20.0  # of the 800-unit students
    small_temperatures: tuple[float, ...] = (1.0, 2.5, 4.0, 8.0, 20.0)
    middle_temperatures: tuple[float, ...] = (8.0, 20.0, 40.0)
    jittered_students: bool = False  # some more, who see what the teacher saw
    hard_weight: float = 0.1  # of the labels
    soft_weight: float = 0.9  # of the teacher
    learning_rate: float = 1e-3  # at first; it falls to 0 along half a cosine
    # The teacher's learning rate falls to 0 as often as there are numbers here.
    teacher_learning_rates: tuple[float, ...] = (1e-3,)
    batch_size: int = 128
    teacher_batch_size: int = 256
    teacher_epochs: tuple[int, ...] = (150,)
    epochs: int = 40  # of the 800-unit students
    small_epochs: int = 20  # of the others
    seeds: int = 3  # of every student but the smallest
    small_seeds: int = 6  # of those
    train_images: int | None = None  # only so many of them; None is all
    evaluate_on: Literal["test", "validation"] = "test"
    reuse: str | None = None  # directory of an earlier run
    out: str = "runs"
