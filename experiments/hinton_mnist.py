"""MNIST at full size, as in section 3 of Hinton, Vinyals & Dean (2015).

A 784-1200-1200-10 teacher with dropout, max-norm and jittered images; 784-800-800-10
students without any of these, alone and distilled; students of 30 and of 300 units a
layer at several temperatures. `experiments.hinton_missing` has the students whose
transfer set lacks classes.

    python -m experiments.hinton_mnist --archives DIR
    python -m experiments.hinton_mnist --evaluate-on validation --teacher-epochs 20

The teacher is kept under OUT/teachers, for other students. Needs the official archives:
in DIR, or from the network. Measured results are in experiments/README.md.

References:
  G. Hinton, O. Vinyals, J. Dean, Distilling the Knowledge in a Neural Network, 2015,
  https://arxiv.org/abs/1503.02531, section 3.
"""

import dataclasses
import pathlib
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from experiments import common
from jaxkd import data, distill, log, losses, models, report, train
from jaxkd.data import augment


@dataclasses.dataclass(frozen=True)
class Config(common.Config):
    """Every field can be given on the command line."""

    dataset: Literal["mnist", "digits"] = "mnist"  # digits: to try it out quickly
    teacher_units: int = 1200  # in each of two hidden layers, as everywhere below
    max_norm: float = 3.5  # of the weights into each hidden unit of the teacher
    jitter: int = 2  # pixels, of the teacher's images
    input_dropout: float = 0.1  # of the teacher; of its hidden units, half are dropped
    teacher_epochs: int = 150
    teacher_batch_size: int = 256
    learning_rate: float = 1e-3  # at first; it falls to 0 along half a cosine
    units: int = 800  # of the students
    temperature: float = 20.0
    epochs: int = 40
    batch_size: int = 128
    hard_weight: float = 0.1  # of the labels
    soft_weight: float = 0.9  # of the teacher
    small_units: int = 30
    small_temperatures: tuple[float, ...] = (1.0, 2.5, 4.0, 8.0, 20.0)
    small_seeds: int = 6
    middle_units: int = 300
    middle_temperatures: tuple[float, ...] = (8.0, 20.0, 40.0)
    small_epochs: int = 20  # of the small and the middle students


def main(config: Config) -> dict[str, float]:
    """Run the experiment; return the mean test errors by network."""
    images, test = common.load(config, config.dataset)
    view, n = augment.to_float(), len(images.images)
    temperatures = {*config.small_temperatures, *config.middle_temperatures}
    common.rehearse(
        mlp(config.units),
        data.on_device(images),
        mlp(config.teacher_units),
        spec=objective(config, min(temperatures | {config.temperature})),
        tx=falling(config.learning_rate, config.epochs * (n // config.batch_size)),
        view=view,
        batch_size=config.batch_size,
    )
    with common.refusing("cannot train"):
        max_norm(config.max_norm)
        data.epoch(jax.random.key(0), n, config.teacher_batch_size)
    directory, write = common.start("hinton_mnist", config)
    net, run = teacher(config, images, test, write)
    frozen, variables = distill.frozen(net), run.seed(0)
    logits = train.cache_teacher(frozen, variables, images, view=view)

    # The students: 800 units as in the paper, then fewer at several temperatures.
    students: list[tuple[str, int, float | None, int, int]] = [
        ("alone", config.units, None, config.seeds, config.epochs),
        ("distilled", config.units, config.temperature, config.seeds, config.epochs),
    ]
    for units, tried, seeds in (
        (config.small_units, config.small_temperatures, config.small_seeds),
        (config.middle_units, config.middle_temperatures, config.seeds),
    ):
        for t in (None, *tried) if tried else ():
            name = f"{units} units " + ("alone" if t is None else f"T={t:g}")
            students.append((name, units, t, seeds, config.small_epochs))
    runs = {"teacher": run}
    for name, units, t, seeds, epochs in students:
        steps = epochs * (n // config.batch_size)
        runs[name] = train.learn(
            mlp(units),
            {**data.on_device(images), "teacher": logits},
            spec=None if t is None else objective(config, t),
            teacher=None if t is None else "cached",
            view=view,
            tx=falling(config.learning_rate, steps),
            batch_size=config.batch_size,
            epochs=epochs,
            seeds=seeds,
            # One after another is the faster for wide networks, vmap for narrow ones.
            together=units < 500,
            test=test,
            checkpoints=directory / name.replace(" ", "_"),
            save_epochs=10,
            log=write,
            name=name,
        )

    # The table.
    published = {"teacher": "67", "alone": "146", "distilled": "74"}
    n = len(test.labels)
    wrong = {k: np.rint(n * (1 - run.final())) for k, run in runs.items()}
    rows = [
        {
            "network": name,
            "test errors": report.mean_sd(errors, digits=1),
            "test error %": report.mean_sd(errors, scale=100 / n),
            "seeds": str(errors.size),
            "published": published.get(name, ""),
        }
        for name, errors in wrong.items()
    ]
    report.dots(directory / "errors.svg", wrong, x_label="test errors")
    title = f"hinton_mnist: {test.name}, {n:,} {test.split} images"
    common.write_report(directory, title, {common.LAST: rows})
    return {network: float(errors.mean()) for network, errors in wrong.items()}


def mlp(units: int, **dropout: float) -> models.Net:
    """Build a network of two hidden layers."""
    return models.mlp([units, units], classes=10, **dropout)


def falling(rate: float, steps: int) -> optax.GradientTransformation:
    """Make Adam with a learning rate that falls to 0."""
    return optax.adam(optax.cosine_decay_schedule(rate, max(steps, 1)))


def objective(config: Config, temperature: float) -> distill.Spec:
    """Make cross-entropy with the labels and KL from the softened teacher."""
    kd = distill.on_logits(losses.kd, temperature=temperature)
    return {
        "ce": (config.hard_weight, distill.on_labels(losses.cross_entropy)),
        "kd": (config.soft_weight, kd),
    }


def teacher(
    config: Config, images: data.Dataset, test: data.Dataset, write: log.Log
) -> tuple[models.Net, train.Run]:
    """Train the teacher, or read the one that is kept."""
    net = mlp(config.teacher_units, dropout=0.5, input_dropout=config.input_dropout)
    n, size, epochs = (
        len(images.images),
        config.teacher_batch_size,
        config.teacher_epochs,
    )
    name = f"{config.dataset}-{n}-mlp{config.teacher_units}-{epochs}-epochs"
    adam = falling(config.learning_rate, epochs * (n // size))
    bound = optax.masked(max_norm(config.max_norm), hidden_kernels)
    with common.refusing("cannot train"):
        return net, train.learn(
            net,
            images,
            view=augment.chain(augment.jitter(config.jitter), augment.to_float()),
            tx=optax.chain(adam, bound),
            batch_size=size,
            epochs=epochs,
            seeds=1,
            test=test,
            test_view=augment.to_float(),
            checkpoints=pathlib.Path(config.out) / "teachers" / name,
            save_epochs=10,
            identity={"jitter": config.jitter},
            log=write,
            name="teacher",
        )


def max_norm(limit: float) -> optax.GradientTransformation:
    """Keep the norm of the weights into each unit, `[inputs, units]`, at most `limit`.

    To be the last of a chain: it scales back onto the sphere what the update leads to.
    """
    if not 0 < limit < float("inf"):
        raise ValueError(f"max_norm must be finite and > 0, got {limit}")

    def bounded(update: jax.Array, weights: jax.Array) -> jax.Array:
        moved = weights + update
        norm = jnp.sqrt(jnp.sum(moved**2, axis=0, keepdims=True))
        return moved * (limit / jnp.maximum(norm, limit)) - weights

    return optax.stateless(
        lambda updates, params: jax.tree.map(bounded, updates, params)
    )


def hidden_kernels(params: Any) -> Any:
    """Return a tree of booleans: true at the kernels of the hidden layers."""

    def chosen(keys: Any, _: Any) -> bool:
        path = jax.tree_util.keystr(keys, simple=True, separator="/")
        return "/hidden" in path and path.endswith("/kernel")

    return jax.tree_util.tree_map_with_path(chosen, params)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
