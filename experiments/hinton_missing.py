"""MNIST with classes that the student never saw, after Hinton, Vinyals & Dean (2015).

Students of `experiments.hinton_mnist`'s teacher whose transfer set lacks the 3s, or has
nothing but 7s and 8s. They are measured as they are and with the biases of the classes
in question moved: by what gives these classes their share of the training images (no
label is needed for it but how common the classes are), by what the paper moved them,
and by what is best on the test set, which is optimistic, as the paper's number is.

    python -m experiments.hinton_missing --archives DIR

The teacher is that of `experiments.hinton_mnist`, and trained if there is none yet.

References:
  G. Hinton, O. Vinyals, J. Dean, Distilling the Knowledge in a Neural Network, 2015,
  https://arxiv.org/abs/1503.02531, section 3.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import tyro

from experiments import common, hinton_mnist
from jaxkd import data, distill, evaluate, report, train
from jaxkd.data import augment

GRID = np.round(np.arange(-20, 20.05, 0.1), 1)  # biases tried on the test set
# What the student sees, whose bias is moved, by how much the paper did, and its result.
CASES: dict[str, Any] = {
    "no 3s": ([0, 1, 2, 4, 5, 6, 7, 8, 9], [3], 3.5, "206, then 109"),
    "only 7s and 8s": ([7, 8], [7, 8], -7.6, "47.3 %, then 13.2 %"),
}


@dataclasses.dataclass(frozen=True)
class Config(hinton_mnist.Config):
    """Every field can be given on the command line."""


def main(config: Config) -> dict[str, dict[str, list[float]]]:
    """Run the experiment; return errors, in all and on 3s, and biases, by network."""
    images, test = common.load(config, config.dataset)
    view, size = augment.to_float(), config.batch_size
    with common.refusing("cannot train"):
        data.epoch(jax.random.key(0), int(np.isin(images.labels, (7, 8)).sum()), size)
    directory, log = common.start("hinton_missing", config)
    net, run = hinton_mnist.teacher(config, images, test, log)
    frozen = distill.frozen(net)
    logits = train.cache_teacher(frozen, run.seed(0), images, view=view)
    taught = {**data.on_device(images), "teacher": logits}
    student = hinton_mnist.mlp(config.units)

    @jax.jit
    def answer(variables: train.Variables, columns: Any) -> jax.Array:
        """Return the logits `[seeds, examples, classes]`."""
        one = lambda v: evaluate.predict(distill.frozen(student), v, columns, view=view)
        return jax.lax.map(one, variables)

    results: dict[str, dict[str, list[float]]] = {}
    published = {}
    for name, (classes, moved, by, paper) in CASES.items():
        # Epochs over a part of the images are more, for as many steps.
        seen = {k: v[np.isin(images.labels, classes)] for k, v in taught.items()}
        n = len(seen["label"])
        epochs = round(config.epochs * len(images.labels) / n)
        learnt = train.learn(
            student,
            seen,
            spec=hinton_mnist.objective(config, config.temperature),
            teacher="cached",
            view=view,
            tx=hinton_mnist.falling(config.learning_rate, epochs * (n // size)),
            batch_size=size,
            epochs=epochs,
            seeds=config.seeds,
            together=config.units < 500,
            checkpoints=directory / name.replace(" ", "_"),
            save_epochs=10,
            log=log,
            name=name,
        )
        on_train, on_test = (
            np.asarray(answer(learnt.variables, data.on_device(part)))
            for part in (images, test)
        )
        share = float(np.isin(images.labels, moved).mean())
        for how, bias in {
            "as it is": np.zeros(config.seeds),
            "bias for its share of the images": bias_for(on_train, moved, share),
            f"bias of {by:+}, as published": np.full(config.seeds, by),
            "bias best on the test set": best_bias(on_test, test.labels, moved),
        }.items():
            found, threes = move(on_test, moved, bias), test.labels == 3
            published[f"{name}, {how}"] = paper
            results[f"{name}, {how}"] = {
                "errors": errors(found, test.labels).tolist(),
                "on 3s": errors(found[:, threes], test.labels[threes]).tolist(),
                "bias": bias.tolist(),
            }

    # The table.
    rows = [
        {
            "distilled from": name,
            "bias": report.mean_sd(row["bias"]),
            "test errors": report.mean_sd(row["errors"], digits=1),
            "test error %": report.mean_sd(row["errors"], scale=100 / len(test.labels)),
            "on 3s": report.mean_sd(row["on 3s"], digits=1),
            "published": published[name],
        }
        for name, row in results.items()
    ]
    title = f"hinton_missing: {test.name}, {len(test.labels):,} {test.split} images"
    common.write_report(directory, title, {common.LAST: rows})
    return results


def errors(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Count the examples that each seed gets wrong."""
    return (logits.argmax(-1) != labels).sum(-1)


def move(logits: np.ndarray, classes: Sequence[int], bias: Any) -> np.ndarray:
    """Add a bias, one for each seed, to some classes."""
    chosen = np.isin(np.arange(logits.shape[-1]), classes)
    return logits + np.asarray(bias)[:, None, None] * chosen


def bias_for(logits: np.ndarray, classes: Sequence[int], share: float) -> np.ndarray:
    """Return the biases with which some classes win a given share of the examples.

    It needs no labels. An example is won if its margin, the largest logit of these
    classes less the largest of the others, exceeds minus the bias.

    >>> margins = np.array([[[0.0, 1.0], [0.0, 3.0], [0.0, -5.0], [0.0, -7.0]]])
    >>> bias_for(margins, [1], 0.5).tolist()  # two are won: between -1 and 5
    [2.0]
    """
    chosen = np.isin(np.arange(logits.shape[-1]), classes)
    margin = logits[..., chosen].max(-1) - logits[..., ~chosen].max(-1)
    return -np.quantile(margin, 1 - share, axis=-1)


def best_bias(
    logits: np.ndarray, labels: np.ndarray, classes: Sequence[int]
) -> np.ndarray:
    """Return the bias of GRID with the fewest errors, of several the smallest.

    The paper chose it so, on the test set: an optimistic number, made to compare.
    """
    tries = GRID[np.argsort(np.abs(GRID), kind="stable")]
    moved = [move(logits, classes, np.full(len(logits), bias)) for bias in tries]
    return tries[np.argmin([errors(each, labels) for each in moved], axis=0)]


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
