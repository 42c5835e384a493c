"""MNIST at full size, as in section 3 of Hinton, Vinyals & Dean (2015).

A 784-1200-1200-10 teacher with dropout, max-norm and jittered images; 784-800-800-10
students without any of these, alone and distilled; students of 30 and of 300 units a
layer at several temperatures; students whose transfer set lacks the 3s, or has nothing
but 7s and 8s, as they are and with the biases of these classes moved.

    python -m experiments.hinton_mnist --archives DIR
    python -m experiments.hinton_mnist --evaluate-on validation --teacher-epochs 20 10
    python -m experiments.hinton_mnist --reuse runs/hinton_mnist/TIME

Every network is kept with its recipe as soon as it is trained. `--reuse` takes those of
an earlier run whose recipes are the same, and trains the others: a run that died goes
on where it was, and a change of the students does not cost another teacher.

Needs the official archives: in DIR, or from the network. Measured results are in
experiments/README.md.

References:
  G. Hinton, O. Vinyals, J. Dean, Distilling the Knowledge in a Neural Network, 2015,
  https://arxiv.org/abs/1503.02531, section 3.
"""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import optax
import tyro

from experiments import _outcome as outcome, _pair as pair
from experiments.hinton_mnist import _tables as tables
from experiments.hinton_mnist._biases import errors
from experiments.hinton_mnist._config import Config
from experiments.hinton_mnist._training import (
    Lab,
    Students,
    answers,
    max_norm,
    students,
    taught,
    two_layers,
    without,
)
from jaxkd import cache as caches, data, log, report
from jaxkd.data import augment
from jaxkd.models import Net

THREES, SEVENS_AND_EIGHTS = (3,), (7, 8)


def rehearse(lab: Lab, teacher: Net) -> None:
    """Refuses what cannot be trained before anything is.

    Raises:
      SystemExit: if a number is out of its range, or a batch larger than its data.
    """
    config, task = lab.config, lab.task
    asked = (
        config.temperature,
        *config.small_temperatures,
        *config.middle_temperatures,
    )
    least = dataclasses.replace(config, temperature=min(asked))
    student = two_layers(config.units, task.train.num_classes)
    few = task._replace(resident=without(task.resident, SEVENS_AND_EIGHTS))
    trainer = pair.Trainer(optax.sgd(0.1), config.batch_size, lab.write, lab.directory)
    trainer.rehearse(teacher, student, few, pair.kd_spec(least))
    if config.reuse is not None and not pathlib.Path(config.reuse).is_dir():
        raise SystemExit(
            f"reuse must be the directory of a run, got {config.reuse}: there is none"
        )
    if len(config.teacher_epochs) != len(config.teacher_learning_rates):
        raise SystemExit(
            "teacher_epochs and teacher_learning_rates must be as many, got "
            f"{config.teacher_epochs} and {config.teacher_learning_rates}"
        )
    with pair.refusing("cannot train"):
        max_norm(config.max_norm)
        augment.jitter(config.jitter)
        data.epoch(jax.random.key(0), len(task.train.images), config.teacher_batch_size)


def main(config: Config) -> dict[str, float]:
    """Runs the experiment; returns the mean test errors by network."""
    train_set, test_set = pair.splits(config)
    task = pair.task(train_set, test_set, augment.to_float())
    directory = outcome.run_directory(config.out, "hinton_mnist")
    lab = Lab(config, task, log.start(directory, config), directory)
    classes = train_set.num_classes
    dropout = {"dropout": 0.5, "input_dropout": config.input_dropout}
    teacher = two_layers(config.teacher_units, classes, **dropout)
    rehearse(lab, teacher)
    rows: list[dict] = []
    large: dict[str, tuple] = {}
    by_size: dict[int, dict] = {}

    def add(label: str, found: Students, published: int) -> None:
        large[label] = errors(found.test_logits, test_set.labels), published
        rows.append(tables.row(lab, label, found.test_logits, str(published)))
        tables.write_report(lab, rows)

    variables = taught(lab, teacher)
    test_logits = answers(teacher, variables, task.resident_test, task.view)
    add("teacher", Students(teacher, variables, test_logits), 67)
    one = jax.tree.map(lambda a: jnp.asarray(a[0]), variables)
    one = (one["params"], one["state"])
    path = directory / "teacher_logits"
    lab = lab._replace(
        task=pair.with_cached_teacher(task, teacher, one, path),
        teacher=(teacher, one),
        known=caches.fingerprint(one),
    )
    budget: dict[str, Any] = {"epochs": config.epochs, "seeds": config.seeds}
    using = {"temperature": config.temperature, **budget}
    add("student alone", students(lab, "alone", config.units, **budget), 146)
    add("student distilled", students(lab, "distilled", config.units, **using), 74)
    if config.jittered_students:
        label, jitter = "student distilled on jittered images", config.jitter
        found = students(lab, "jittered", config.units, jitter=jitter, **using)
        rows.append(tables.row(lab, label, found.test_logits, "not in the paper"))
        tables.write_report(lab, rows)
    others = [c for c in range(classes) if c not in THREES]
    for name, transfer, moving, published in (
        ("no 3s", others, THREES, tables.PUBLISHED_WITHOUT_3),
        (
            "only 7s and 8s",
            SEVENS_AND_EIGHTS,
            SEVENS_AND_EIGHTS,
            tables.PUBLISHED_7_AND_8,
        ),
    ):
        found = students(lab, name, config.units, transfer=transfer, **using)
        rows += tables.rows_with_biases(
            lab, f"distilled, {name}", found, moving, published
        )
        tables.write_report(lab, rows)
    for units, temperatures, seeds in (
        (config.small_units, config.small_temperatures, config.small_seeds),
        (config.middle_units, config.middle_temperatures, config.seeds),
    ):
        if temperatures:
            more, by_size[units] = tables.at_temperatures(
                lab, units, temperatures, seeds=seeds
            )
            rows += more
            tables.write_report(lab, rows)
    drawn = tables.picture(directory / "errors.png", large, by_size)
    tables.write_report(lab, rows, drawn=drawn)
    report.show(rows)
    print(f"report: {directory / 'report.md'}")
    return {r["network"]: float(r["test errors"].split(" ")[0]) for r in rows}


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
