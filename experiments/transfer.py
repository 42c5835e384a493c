"""Few images of a new task: train from scratch, fine-tune, distil, or both at once.

A large and a small network learn a source task with all its images. Then there are n
images of a target task, n small, and five ways to a classifier:

* teacher: the large network, fine-tuned on these n images;
* from scratch: the small network, on their labels alone;
* fine-tuned: the small network, from its own source weights and with a new head;
* distilled: from scratch, but taught by the teacher as well;
* fused: fine-tuned and distilled at once.

All see the same n images, for the same number of steps. The seeds differ in the
images, in the fresh weights and in the order of the batches; there is one pair of
source networks for all. The new head learns at `learning_rate`, copied layers at
`body_rate`.

    python -m experiments.transfer
    python -m experiments.transfer --task mnist --archives DIR
    python -m experiments.transfer --task cifar --sizes 100 500 2500

Tasks: "digits" goes from the digits 0-4 to 5-9 (they come with the package), "mnist"
from Fashion-MNIST to MNIST, "cifar" from CIFAR-10 to ten classes of CIFAR-100 that
CIFAR-10 has not. The last two need the official archives: in DIR, or from the network.
"""

import dataclasses
from typing import Any, Literal

import jax
import numpy as np
import optax
import tyro

from experiments import common
from jaxkd import data, distill, evaluate, losses, models, report, train, transfer
from jaxkd.data import augment

NEW_IN_CIFAR100 = [
    "bed", "bicycle", "bottle", "bridge", "elephant", "mushroom", "rose", "skyscraper",
    "tiger", "whale",
]  # fmt: skip
# Source and target, each with its classes if not all; target sizes; source epochs.
TASKS: dict[str, Any] = {
    "digits": (("digits", [*"01234"]), ("digits", [*"56789"]),
               (10, 25, 50, 100, 250, 500), 20),
    "mnist": (("fashion_mnist", None), ("mnist", None),
              (50, 100, 250, 500, 1000, 2500), 2),
    "cifar": (("cifar10", None), ("cifar100", NEW_IN_CIFAR100),
              (50, 100, 250, 500, 1000, 2500), 4),
}  # fmt: skip
PAIRS = (  # that are compared
    ("fine-tuned", "from scratch"),
    ("distilled", "from scratch"),
    ("fused", "distilled"),
    ("fused", "fine-tuned"),
)


@dataclasses.dataclass(frozen=True)
class Config(common.Config):
    """Every field can be given on the command line; None is the task's own."""

    task: Literal["digits", "mnist", "cifar"] = "digits"
    sizes: tuple[int, ...] | None = None  # numbers of target images
    source_epochs: int | None = None
    source_images: int | None = None  # number of source images; None is all
    steps: int = 400  # updates on the target, whatever its size
    learning_rate: float = 1e-3  # of fresh weights
    body_rate: float = 1e-3  # of copied weights
    temperature: float = 4.0
    hard_weight: float = 0.1  # of the labels
    soft_weight: float = 0.9  # of the teacher
    batch_size: int = 50


def main(config: Config) -> dict[str, float]:
    """Run the experiment; return the mean accuracies by way and size."""
    # Source and target, both in units of the source's channel statistics.
    before, after, sizes, epochs = TASKS[config.task]
    sizes, epochs = config.sizes or sizes, config.source_epochs or epochs
    on_tests = dataclasses.replace(config, evaluate_on="test")
    source, source_test = (
        data.select_classes(part, before[1]) if before[1] else part
        for part in common.load(on_tests, before[0], config.source_images)
    )
    target, test = (
        data.select_classes(part, after[1]) if after[1] else part
        for part in common.load(config, after[0])
    )
    view = augment.chain(
        augment.to_float(), augment.normalise(*data.channel_statistics(source))
    )

    # The networks, objective and optimisers.
    wide: dict[str, Any] = {"stages": ((32,), (64,)), "hidden": (128,)}
    narrow: dict[str, Any] = {"stages": ((8,), (16,)), "hidden": (32,)}
    if config.task == "cifar":
        narrow = {"stages": ((16,), (32,)), "hidden": (64,)}
    nets = {
        "large": models.cnn(**wide, classes=test.num_classes),
        "small": models.cnn(**narrow, classes=test.num_classes),
    }
    kd = distill.on_logits(losses.kd, temperature=config.temperature)
    spec: distill.Spec = {
        "ce": (config.hard_weight, distill.on_labels(losses.cross_entropy)),
        "kd": (config.soft_weight, kd),
    }
    fresh = optax.adam(config.learning_rate)
    heads = {"student/head/*": config.learning_rate}
    tuning = transfer.layer_wise(optax.adam, heads, default=config.body_rate)

    def few(n: int, seed: int) -> dict[str, Any]:
        """Choose n images of the target, repeated until all sizes have one shape."""
        rows = np.arange(2 * max(sizes)) % n
        chosen = data.on_device(data.subset(target, n, seed=seed))
        return {name: column[rows] for name, column in chosen.items()}

    how: dict[str, Any] = {"view": view, "batch_size": config.batch_size}
    with common.refusing("cannot choose images"):
        first, *_ = [few(n, seed=0) for n in sizes]
    common.rehearse(nets["small"], first, nets["large"], spec=spec, tx=fresh, **how)
    directory, log = common.start("transfer", config)
    how["log"] = log

    # The source networks.
    found: dict[str, dict[int, list[float]]] = {}
    sources, reached = {}, {}
    for size, shape in (("large", wide), ("small", narrow)):
        run = train.learn(
            models.cnn(**shape, classes=source.num_classes),
            source,
            tx=fresh,
            epochs=epochs,
            test=source_test,
            checkpoints=directory / f"source_{size}",
            name=f"source, {size}",
            **how | {"batch_size": 128},
        )
        sources[size], reached[size] = run.variables, float(run.final())

    # The five ways, for each number of images and each seed.
    columns = data.on_device(test)
    score = {k: evaluate.scorer(net, columns, view=view) for k, net in nets.items()}

    def learn(way: str, images: Any, size: str, *, copy: bool, **using: Any) -> Any:
        """Train one network on the target, note its accuracy, return its variables."""
        name, key = f"{way}, {n}, seed {seed}", jax.random.key(seed)
        given = {"key": key, "tx": tuning if copy else fresh, **how, **using}
        if copy:
            new = train.learn(nets[size], images, epochs=0, **given).variables
            given["start"], _ = transfer.copy(
                sources[size], new, exclude="head/*", strict=True
            )
        run = train.learn(
            nets[size],
            images,
            epochs=-(-config.steps // (len(images["label"]) // config.batch_size)),
            checkpoints=directory / name.replace(", ", "_").replace(" ", "_"),
            name=name,
            **given,
        )
        accuracy = float(score[size](run.state)["accuracy"])
        found.setdefault(way, {}).setdefault(n, []).append(accuracy)
        return run.variables

    answers = jax.jit(
        lambda variables, images: evaluate.predict(
            distill.frozen(nets["large"]), variables, images, view=view
        )
    )
    for n in sizes:
        for seed in range(config.seeds):
            images = few(n, seed)
            teacher = learn("teacher", images, "large", copy=True)
            learn("from scratch", images, "small", copy=False)
            learn("fine-tuned", images, "small", copy=True)
            taught = {**images, "teacher": answers(teacher, images)}
            by_both: dict[str, Any] = {"spec": spec, "teacher": "cached"}
            learn("distilled", taught, "small", copy=False, **by_both)
            learn("fused", taught, "small", copy=True, **by_both)

    # The tables.
    accuracy = [
        {"target images": f"{n:,}"}
        | {way: report.mean_sd(of[n], scale=100) for way, of in found.items()}
        for n in sizes
    ]
    gains = [
        {"target images": f"{n:,}"}
        | {f"{a} - {b}": report.gain(found[a][n], found[b][n]) for a, b in PAIRS}
        for n in sizes
    ]
    common.write_report(
        directory,
        f"transfer: {config.task}, {len(test.images):,} {test.split} images, "
        f"{config.seeds} seeds",
        {common.LAST: accuracy, "Paired differences in points ± standard error": gains},
        [
            f"The {size} source network reaches {100 * value:.2f} % on its own task."
            for size, value in reached.items()
        ],
    )
    return {f"source, {size}": value for size, value in reached.items()} | {
        f"{way}, {n}": float(np.mean(of[n])) for way, of in found.items() for n in sizes
    }


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
