"""Does distillation save time? Students trained for fewer and for more epochs.

Each number of epochs has its own plain students, trained for as many.

    python -m experiments.questions.epochs --archives DIR
    python -m experiments.questions.epochs --preset short
"""

import dataclasses

import tyro

from experiments.questions import common


@dataclasses.dataclass(frozen=True)
class Config(common.Config):
    """Every field can be given on the command line."""

    epochs_tried: tuple[int, ...] = ()  # by default the preset's


def main(config: Config) -> dict[str, float]:
    """Compare the numbers of epochs; return the mean accuracies by name."""
    config = common.sized(config)
    spec = common.kd(config)
    setup = common.prepare("epochs", config, [spec])
    taught = common.teach(setup)
    arms = {}
    for n in sorted(config.epochs_tried):
        name = f"{n} epochs"
        plain = common.students(setup, f"plain, {name}", taught, epochs=n)
        distilled = common.students(setup, name, taught, spec=spec, epochs=n)
        arms[name] = common.Arm(distilled.metrics, plain.metrics, taught.metrics)
    plains = {name: arm._replace(distilled=arm.plain) for name, arm in arms.items()}
    short, long = next(iter(arms)), next(reversed(arms))
    best, best_plain = common.best(arms), common.best(plains)
    notes = [
        f"Distilled for {short}, the student has "
        f"{common.lead(arms[short], plains[long])} points of accuracy against the "
        f"plain one trained for {long}.",
        f"With the best number of epochs for each, {best} distilled and {best_plain} "
        f"plain, it is {common.lead(arms[best], plains[best_plain])} points.",
    ]
    return common.write(setup, "students trained", arms, notes)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
