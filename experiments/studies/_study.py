"""The table and the picture that most studies share."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

from experiments.studies import _finding as f, _nets, _picture
from experiments.studies._lab import Lab, Taught
from experiments.studies._probe import Metrics


class Line(NamedTuple):
    """A row before it is formatted: a teacher, plain students, or distilled ones."""

    arm: f.Arm
    teaches: bool = False


def finding(
    lab: Lab,
    kind: str,
    arms: Sequence[f.Arm],
    taught: Taught | Sequence[Taught],
    sentences: list[str],
) -> f.Finding:
    """Distilled students beside their plain ones, under their teacher or teachers.

    Args:
      lab: where it was measured.
      kind: what distinguishes the arms; the first column.
      arms: each with its plain students; what several share is shown once.
      taught: the teacher, or one for each arm.
      sentences: what was found.
    """
    teachers = [taught] * len(arms) if isinstance(taught, Taught) else list(taught)
    lines = table(arms, [t.metrics for t in teachers])
    draw = functools.partial(
        _picture.comparison,
        arms=arms,
        teachers=[float(t.metrics["accuracy"]) for t in teachers],
        x_label=kind,
        title=title(lab),
    )
    make = {True: f.teacher_row, False: f.columns}
    rows = [make[line.teaches](kind, line.arm) for line in lines]
    return f.Finding(rows, sentences, draw, f.numbers([line.arm for line in lines]))


def table(arms: Sequence[f.Arm], teachers: Sequence[Metrics]) -> list[Line]:
    """Each arm under its teacher and its plain students, which may be shared by all."""
    one_plain = len({id(arm.plain) for arm in arms}) == 1
    one_teacher = len({id(metrics) for metrics in teachers}) == 1
    lines: list[Line] = []
    shown: set[int] = set()

    def once(metrics: Metrics, label: str, alone: bool, teaches: bool) -> None:
        if id(metrics) not in shown:
            shown.add(id(metrics))
            name = label if alone else f"{arm.label}, {label}"
            lines.append(Line(f.Arm(name, metrics), teaches))

    for arm, teacher in zip(arms, teachers, strict=True):
        assert arm.plain is not None
        once(teacher, "teacher", one_teacher, True)
        once(arm.plain, "plain", one_plain, False)
        lines.append(Line(arm))
    return lines


def title(lab: Lab) -> str:
    """What was trained on what, for the picture and the report."""
    name = lab.scale.dataset
    student, teacher = _nets.STUDENTS[name], _nets.TEACHERS[name]
    return (
        f"{lab.config.study}: {lab.task.test.name}, {_nets.title(teacher)} "
        f"teaches {_nets.title(student)}, {lab.scale.seeds} seeds"
    )


def regime(lab: Lab) -> str:
    """Who has seen what, which every gain depends on."""
    mine, whole = len(lab.task.train.images), len(lab.whole.train.images)
    shares = (
        "both see the same images"
        if mine == whole
        else "part of what it passes on it learnt from images that they never see"
    )
    return (
        f"The teacher has seen {whole:,} images, the students {mine:,}: {shares}. "
        f"Measured on {len(lab.task.test.images):,} {lab.task.test.split} images."
    )
