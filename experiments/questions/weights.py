"""How much should the labels weigh? Students at several mixtures of the two terms.

The soft term's weight is one minus the labels', at the configured temperature.

    python -m experiments.questions.weights --archives DIR
    python -m experiments.questions.weights --preset short
"""

import dataclasses

import tyro

from experiments.questions import common


@dataclasses.dataclass(frozen=True)
class Config(common.Config):
    """Every field can be given on the command line."""

    label_weights: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)


def main(config: Config) -> dict[str, float]:
    """Compare the mixtures; return the mean accuracies by name."""
    config = common.sized(config)
    specs = {}
    for hard in config.label_weights:
        of = dataclasses.replace(config, hard_weight=hard, soft_weight=1 - hard)
        specs[f"{hard:g} / {1 - hard:.3g}"] = common.kd(of)
    setup = common.prepare("weights", config, specs.values())
    taught = common.teach(setup)
    plain = common.students(setup, "plain", taught).metrics
    arms = {}
    for name, spec in specs.items():
        distilled = common.students(setup, name, taught, spec=spec)
        arms[name] = common.Arm(distilled.metrics, plain, taught.metrics)
    names = dict(zip(config.label_weights, arms, strict=True))
    least, most = names[min(names)], names[max(names)]
    note = (
        f"Of the weights (labels / teacher), {common.highest(arms, most)}; the gains "
        f"over the plain student go from {arms[least].gain} at {least} to "
        f"{arms[most].gain} at {most}."
    )
    return common.write(setup, "labels / teacher", arms, [note])


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
