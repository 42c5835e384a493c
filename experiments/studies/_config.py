"""What the command line says, and the two presets it starts from."""

import dataclasses
from typing import Literal

import tyro

from experiments import _pair as pair

Study = Literal[
    "temperature",
    "weights",
    "teacher",
    "capacity",
    "objective",
    "augmentation",
    "epochs",
    "cost",
    "crossdata",
]
Name = Literal["digits", "mnist", "fashion_mnist", "cifar10"]


@dataclasses.dataclass(frozen=True)
class Scale:
    """How large a study is. A preset, after the options that were given.

    Attributes:
      dataset: what teacher and students learn.
      seeds: of the students; one teacher.
      epochs: of the students.
      teacher_epochs: of the teacher.
      student_images: training images of the students, 0 for all.
      teacher_images: training images of the teacher, 0 for all; the students' are
        among them.
      batch_size: of the students.
      teacher_batch_size: of the teacher.
      epochs_tried: what the study `epochs` compares.
      teachers_tried: what the study `teacher` compares, in epochs.
    """

    dataset: Name
    seeds: int
    epochs: int
    teacher_epochs: int
    student_images: int
    teacher_images: int
    batch_size: int
    teacher_batch_size: int
    epochs_tried: tuple[int, ...]
    teachers_tried: tuple[int, ...]


_FULL = Scale(
    dataset="fashion_mnist",
    seeds=5,
    epochs=20,
    teacher_epochs=10,
    student_images=6000,
    teacher_images=0,
    batch_size=64,
    teacher_batch_size=256,
    epochs_tried=(5, 10, 20),
    teachers_tried=(1, 5, 10, 20),
)
_DIGITS = dataclasses.replace(
    _FULL,
    dataset="digits",
    epochs=100,
    teacher_epochs=40,
    student_images=200,
    batch_size=20,
    teacher_batch_size=50,
    epochs_tried=(25, 50, 100),
    teachers_tried=(5, 10, 20, 40),
)
_CIFAR10 = dataclasses.replace(
    _FULL,
    dataset="cifar10",
    epochs=10,
    teacher_epochs=5,
    student_images=3000,
    teacher_images=15000,
    teacher_batch_size=128,
    epochs_tried=(5, 10, 20),
    teachers_tried=(2, 5, 10),
)
_SHORT = dataclasses.replace(
    _DIGITS,
    seeds=3,
    teacher_epochs=20,
    teacher_images=1000,
    teachers_tried=(5, 10, 20),
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Every field can be given on the command line; what is None is the preset's."""

    study: tyro.conf.Positional[Study]
    preset: Literal["full", "short"] = "full"
    dataset: Name | None = None
    seeds: int | None = None  # of the students, at least 2
    epochs: int | None = None  # of the students
    teacher_epochs: int | None = None
    student_images: int | None = None  # training images of the students, 0 for all
    teacher_images: int | None = None  # training images of the teacher, 0 for all
    batch_size: int | None = None
    teacher_batch_size: int | None = None
    epochs_tried: tuple[int, ...] | None = None  # by the study `epochs`
    teachers_tried: tuple[int, ...] | None = None  # by `teacher`, in epochs
    temperatures: tuple[float, ...] = (1.0, 2.0, 5.0, 10.0, 20.0)  # by `temperature`
    label_weights: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)  # by `weights`
    temperature: float = 5.0  # in the other studies
    hard_weight: float = 0.1  # of the labels
    soft_weight: float = 0.9  # of the teacher
    learning_rate: float = 1e-3  # of Adam
    evaluate_on: Literal["test", "validation"] = "test"
    archives: str | None = None  # folder of the official archives
    data_dir: str | None = None  # where prepared data are kept
    out: str = "runs"  # trained teachers are kept there too, and used again


def preset(name: str, study: str, dataset: Name | None = None) -> Scale:
    """The scale of a preset: `full` has one for each data set, `short` for all."""
    if name == "short":
        return dataclasses.replace(_SHORT, dataset=dataset or "digits")
    default: Name = "cifar10" if study == "crossdata" else "fashion_mnist"
    chosen = dataset or default
    other = {"digits": _DIGITS, "cifar10": _CIFAR10}
    return other.get(chosen, dataclasses.replace(_FULL, dataset=chosen))


def resolve(config: Config) -> Scale:
    """The preset with what the command line says instead.

    Raises:
      SystemExit: if a number cannot work.
    """
    names = [field.name for field in dataclasses.fields(Scale)]
    given = {n: v for n in names if (v := getattr(config, n)) is not None}
    with pair.refusing("cannot train"):
        scale = dataclasses.replace(
            preset(config.preset, config.study, config.dataset), **given
        )
        _check(config, scale)
    return scale


def _check(config: Config, scale: Scale) -> None:
    """Numbers that are traced later are checked here, where they have values."""
    if scale.seeds < 2:
        raise ValueError(
            f"seeds must be >= 2, got {scale.seeds}: one has no standard error"
        )
    positive = {
        "epochs": scale.epochs,
        "teacher_epochs": scale.teacher_epochs,
        "epochs_tried": min(scale.epochs_tried, default=0),
        "teachers_tried": min(scale.teachers_tried, default=0),
        "temperature": config.temperature,
        "temperatures": min(config.temperatures, default=0),
        "learning_rate": config.learning_rate,
        "hard_weight + soft_weight": config.hard_weight + config.soft_weight,
    }
    for name, value in positive.items():
        if not 0 < value < float("inf"):
            raise ValueError(f"{name} must be finite and > 0, got {value}")
    weights = (config.hard_weight, config.soft_weight)
    if min(weights) < 0:
        raise ValueError(f"hard_weight and soft_weight must be >= 0, got {weights}")
    inside = config.label_weights
    if not inside or not all(0 <= w <= 1 for w in inside):
        raise ValueError(f"label_weights must be in [0, 1], got {inside}")


def help_text() -> str:
    """The presets in words, from the values that are used."""
    scales = {
        "full": _FULL,
        "full, digits": _DIGITS,
        "full, cifar10 (crossdata's default)": _CIFAR10,
        "short": _SHORT,
    }
    lines = []
    for name, scale in scales.items():
        values = dataclasses.asdict(scale).items()
        lines.append(f"{name}: " + ", ".join(f"{k} {v}" for k, v in values))
    return "\n\n".join(lines)
