"""What should the student match? KL, or squared error on logits or probabilities.

The weights of the two terms are the same for all. The losses differ in scale: KL is
taken at the configured temperature and at 1, the squared errors as they are.

    python -m experiments.questions.objective --archives DIR
    python -m experiments.questions.objective --preset short
"""

import dataclasses

import tyro

from experiments.questions import common
from jaxkd import distill, losses


@dataclasses.dataclass(frozen=True)
class Config(common.Config):
    """Every field can be given on the command line."""


def main(config: Config) -> dict[str, float]:
    """Compare the objectives; return the mean accuracies by name."""
    config = common.sized(config)
    usual = common.kd(config)
    squared = lambda loss: {
        "ce": usual["ce"],
        "mse": (config.soft_weight, distill.on_logits(loss)),
    }
    kl = f"KL, T={config.temperature:g}"
    specs: dict[str, distill.Spec] = {
        kl: usual,
        "KL, T=1": common.kd(dataclasses.replace(config, temperature=1.0)),
        "MSE, logits": squared(losses.logit_mse),
        "MSE, probabilities": squared(losses.probability_mse),
    }
    setup = common.prepare("objective", config, specs.values())
    taught = common.teach(setup)
    plain = common.students(setup, "plain", taught).metrics
    arms = {}
    for name, spec in specs.items():
        distilled = common.students(setup, name, taught, spec=spec)
        arms[name] = common.Arm(distilled.metrics, plain, taught.metrics)
    rest = [f"{n} {common.lead(arms[n], arms[kl])}" for n in arms if n != kl]
    note = (
        f"Of the objectives, {common.highest(arms, kl)}; in points against {kl}: "
        f"{'; '.join(rest)}."
    )
    return common.write(setup, "objective", arms, [note])


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
