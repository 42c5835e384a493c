"""A teacher, a student alone and a distilled student, on real images, in a minute.

The images are the 8x8 optical digits that come with the package. Two regimes:

* few images: the student sees 100 of them, the teacher has seen all 1,297. It passes on
  what it learnt from images that the student never sees, so this is not a gain from
  equal data;
* all images: both see the same.

    python -m experiments.quickstart
    python -m experiments.quickstart --few-images 200 --seeds 10 --temperature 2

It prints a table, and writes `report.md`, `curves.png` and the trained networks to
`runs/quickstart/TIME/`.
"""

import dataclasses
from typing import Any

import optax
import tyro

from experiments import _outcome as outcome, _pair as pair
from jaxkd import data, distill, log, models
from jaxkd.data import augment


@dataclasses.dataclass(frozen=True)
class Config:
    """Every field can be given on the command line."""

    few_images: int = 100  # what the student sees in the first regime
    seeds: int = 5
    temperature: float = 4.0
    hard_weight: float = 0.1  # of the labels
    soft_weight: float = 0.9  # of the teacher
    teacher_epochs: int = 40
    student_steps: int = 1200  # updates of a student, in both regimes
    student_width: int = 32  # hidden units of the student, an MLP
    learning_rate: float = 1e-3
    batch_size: int = 50
    out: str = "runs"


def main(config: Config) -> dict[str, float]:
    """Runs the experiment; returns the mean accuracies by name."""
    directory = outcome.run_directory(config.out, "quickstart")
    write = log.start(directory, config)
    test, everything = data.load("digits", "test"), data.load("digits", "train")
    view = augment.chain(
        augment.to_float(), augment.normalise(*data.channel_statistics(everything))
    )
    tx = optax.adam(config.learning_rate)
    trainer = pair.Trainer(tx, config.batch_size, write, directory)

    teacher = models.cnn(**models.CNNS["digits_teacher"])
    student = models.mlp([config.student_width], classes=test.num_classes)
    with pair.refusing("few_images"):
        subset = data.subset(everything, config.few_images, seed=0)
    few = pair.task(subset, test, view)
    full, spec = pair.task(everything, test, view), pair.kd_spec(config)
    trainer.rehearse(teacher, student, few, spec)

    taught = trainer("teacher", teacher, full, seeds=1, epochs=config.teacher_epochs)
    variables = outcome.first(taught)
    costs = outcome.costs(teacher, variables, test, view)
    rows = [outcome.row("teacher", taught, costs)]
    results = {"teacher": float(outcome.final(taught).mean())}
    panels, sentences = {}, []
    for task in (few, full):
        n = len(task.train.images)
        regime = f"{n:,} images"
        epochs = -(-config.student_steps * config.batch_size // n)
        budget: dict[str, Any] = {"seeds": config.seeds, "epochs": epochs}
        alone = trainer(f"alone, {n} images", student, task, **budget)
        distilled = trainer(
            f"distilled, {n} images",
            student,
            pair.with_cached_teacher(task, teacher, variables),
            spec=spec,
            teacher=distill.cached,
            **budget,
        )
        costs = outcome.costs(student, outcome.first(alone), test, view)
        for label, run in {"alone": alone, "distilled": distilled}.items():
            rows.append(outcome.row(f"student {label}, {regime}", run, costs))
            results[f"{label}, {regime}"] = float(outcome.final(run).mean())
        panels[f"student with {regime}"] = {
            "alone": outcome.curve(alone),
            "distilled": outcome.curve(distilled),
        }
        sentences.append(f"{regime}: {outcome.gain_sentence(distilled, alone)}")
    sentences.append(
        f"The teacher has seen all {len(everything.images):,} images: what it passes "
        f"on to a student with {len(few.train.images)} is not a gain at equal data."
    )
    title = f"quickstart: optical digits, {len(test.images)} test images"
    outcome.write_report(directory, title, rows, panels, sentences)
    return results


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
