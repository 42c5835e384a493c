"""How small may the student be? Students down to one hidden layer, and to none.

Each size has its own plain student. What the head of the linear student sees is the
image itself: its CKA compares pixels with the teacher's features.

    python -m experiments.questions.capacity --archives DIR
    python -m experiments.questions.capacity --preset short
"""

import dataclasses

import tyro

from experiments.questions import common
from jaxkd import cost, models


@dataclasses.dataclass(frozen=True)
class Config(common.Config):
    """Every field can be given on the command line."""


# From the usual student down to one hidden layer and none.
HIDDEN = {
    "digits": [(16, 16), (16,), (4,), ()],
    "mnist": [(200, 200), (50, 50), (200,), (50,), (10,), ()],
    "fashion_mnist": [(200, 200), (50, 50), (200,), (50,), (10,), ()],
    "cifar10": [(128,), ()],
}
NETS = {
    dataset: {
        "-".join(map(str, hidden)) or "linear": models.mlp(hidden, classes=10)
        for hidden in sizes
    }
    for dataset, sizes in HIDDEN.items()
}
NETS["cifar10"] = {
    "conv 32-64, 128": models.cnn(**models.CNNS["narrow"]),
    "conv 16-32, 64": models.cnn([[16], [32]], hidden=[64], classes=10),
    "conv 8-16, 32": models.cnn([[8], [16]], hidden=[32], classes=10),
    **NETS["cifar10"],
}


def main(config: Config) -> dict[str, float]:
    """Compare the sizes; return the mean accuracies by name."""
    config = common.sized(config)
    spec = common.kd(config)
    setup = common.prepare("capacity", config, [spec])
    taught = common.teach(setup)
    arms = {}
    for title, net in NETS[str(config.dataset)].items():
        size = cost.of(net, setup.test.images.shape[1:]).parameters
        name = f"{title} ({size:,})"
        plain = common.students(setup, f"plain, {title}", taught, net=net)
        distilled = common.students(setup, title, taught, net=net, spec=spec)
        arms[name] = common.Arm(distilled.metrics, plain.metrics, taught.metrics)
    gains = [f"{name} {arm.gain}" for name, arm in arms.items()]
    note = f"What distillation gains, by size, in points: {'; '.join(gains)}."
    return common.write(setup, "student (parameters)", arms, [note])


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
