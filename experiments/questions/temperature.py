"""How soft should the targets be? Students at several temperatures.

One teacher, one plain student, and a student for each temperature, all from the same
weights and batches. KL is multiplied by T squared, so that the soft term weighs about
the same at each.

    python -m experiments.questions.temperature --archives DIR
    python -m experiments.questions.temperature --preset short
"""

import dataclasses

import tyro

from experiments.questions import common


@dataclasses.dataclass(frozen=True)
class Config(common.Config):
    """Every field can be given on the command line."""

    temperatures: tuple[float, ...] = (1.0, 2.0, 5.0, 10.0, 20.0)


def main(config: Config) -> dict[str, float]:
    """Compare the temperatures; return the mean accuracies by name."""
    config = common.sized(config)
    specs = {
        f"T={t:g}": common.kd(dataclasses.replace(config, temperature=t))
        for t in config.temperatures
    }
    setup = common.prepare("temperature", config, specs.values())
    taught = common.teach(setup)
    plain = common.students(setup, "plain", taught).metrics
    arms = {}
    for name, spec in specs.items():
        distilled = common.students(setup, name, taught, spec=spec)
        arms[name] = common.Arm(distilled.metrics, plain, taught.metrics)
    lowest = f"T={min(config.temperatures):g}"
    note = (
        f"Of the temperatures, {common.highest(arms, lowest)}; it gains "
        f"{arms[common.best(arms)].gain} points over the plain student."
    )
    return common.write(setup, "temperature", arms, [note])


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
