"""Does a better teacher make a better student? Teachers trained for more epochs.

The students are the same and see the same; only the cached logits differ. The plain
students are trained once, and compared with each teacher.

    python -m experiments.questions.teacher --archives DIR
    python -m experiments.questions.teacher --preset short
"""

import dataclasses

import tyro

from experiments.questions import common


@dataclasses.dataclass(frozen=True)
class Config(common.Config):
    """Every field can be given on the command line."""

    teachers_tried: tuple[int, ...] = ()  # in epochs; by default the preset's


def main(config: Config) -> dict[str, float]:
    """Compare the students of each teacher; return the mean accuracies by name."""
    config = common.sized(config)
    spec = common.kd(config)
    setup = common.prepare("teacher", config, [spec])
    teachers = {f"{n} epochs": common.teach(setup, n) for n in config.teachers_tried}
    plain = common.students(setup, "plain", next(iter(teachers.values())))
    arms = {}
    for name, taught in teachers.items():
        distilled = common.students(setup, name, taught, spec=spec)
        beside = common.measure(plain.answers, taught.answers[0], setup.test)
        arms[name] = common.Arm(distilled.metrics, beside, taught.metrics)
    accuracy = {name: 100 * arms[name].teacher["accuracy"].item() for name in arms}
    by_accuracy = [
        f"{name} ({accuracy[name]:.2f}%) {arms[name].gain}"
        for name in sorted(arms, key=lambda name: accuracy[name])
    ]
    notes = [
        f"Judged by their students, {common.highest(arms, next(iter(arms)))}.",
        "What the students gain, in points, from the worst teacher to the best: "
        f"{'; '.join(by_accuracy)}.",
    ]
    return common.write(setup, "teacher trained", arms, notes)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
