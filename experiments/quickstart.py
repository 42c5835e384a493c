"""A teacher, a student alone and a distilled student, on real images, in a minute.

The images are the 8x8 optical digits that come with the package. Two regimes:

* few images: the student sees 100 of them, the teacher has seen all 1,297. It passes on
  what it learnt from images that the student never sees, so this is not a gain from
  equal data;
* all images: both see the same.

    python -m experiments.quickstart
    python -m experiments.quickstart --few-images 200 --seeds 10 --temperature 2

It prints a table, and writes `report.md`, `curves.svg` and the trained networks to
`runs/quickstart/TIME/`.
"""

import dataclasses

import optax
import tyro

from experiments import common
from jaxkd import data, distill, losses, models, report, train
from jaxkd.data import augment


@dataclasses.dataclass(frozen=True)
class Config(common.Config):
    """Every field can be given on the command line."""

    seeds: int = 5
    few_images: int = 100  # what the student sees in the first regime
    temperature: float = 4.0
    hard_weight: float = 0.1  # of the labels
    soft_weight: float = 0.9  # of the teacher
    teacher_epochs: int = 40
    student_steps: int = 1200  # updates of a student, in both regimes
    student_width: int = 32  # hidden units of the student, an MLP
    learning_rate: float = 1e-3
    batch_size: int = 50


def main(config: Config) -> dict[str, float]:
    """Run the experiment; return the mean accuracies by name."""
    images, test = common.load(config, "digits")
    with common.refusing("few_images"):
        few = data.subset(images, config.few_images, seed=0)
    view = augment.chain(
        augment.to_float(), augment.normalise(*data.channel_statistics(images))
    )
    teacher = models.cnn(**models.CNNS["digits_teacher"])
    student = models.mlp([config.student_width], classes=10)
    spec: distill.Spec = {
        "ce": (config.hard_weight, distill.on_labels(losses.cross_entropy)),
        "kd": (
            config.soft_weight,
            distill.on_logits(losses.kd, temperature=config.temperature),
        ),
    }
    how = {
        "tx": optax.adam(config.learning_rate),
        "view": view,
        "batch_size": config.batch_size,
    }
    common.rehearse(student, data.on_device(few), teacher, spec=spec, **how)
    directory, log = common.start("quickstart", config)
    # An epoch takes less time than writing a checkpoint.
    how |= {"test": data.on_device(test), "log": log, "save_epochs": 100}

    taught = train.learn(
        teacher,
        images,
        seeds=1,
        epochs=config.teacher_epochs,
        checkpoints=directory / "teacher",
        name="teacher",
        **how,
    )
    runs, notes, panels = {"teacher": (teacher, taught)}, [], {}
    for seen in (few, images):
        n = len(seen.images)
        logits = train.cache_teacher(
            distill.frozen(teacher), taught.seed(0), seen, view=view
        )
        how["seeds"] = config.seeds
        how["epochs"] = -(-config.student_steps * config.batch_size // n)
        name = f"alone_{n}"
        alone = train.learn(
            student, seen, checkpoints=directory / name, name=name, **how
        )
        name = f"distilled_{n}"
        distilled = train.learn(
            student,
            {**data.on_device(seen), "teacher": logits},
            spec=spec,
            teacher="cached",
            checkpoints=directory / name,
            name=name,
            **how,
        )
        runs[f"student alone, {n:,} images"] = student, alone
        runs[f"student distilled, {n:,} images"] = student, distilled
        panels[f"student with {n:,} images"] = {"alone": alone, "distilled": distilled}
        change = report.gain(distilled.final(), alone.final())
        notes.append(
            f"{n:,} images: distillation changes the accuracy by {change} points "
            "(paired seeds, ± standard error)."
        )
    notes.append(
        f"The teacher has seen all {len(images.images):,} images: what it passes on to "
        f"a student with {len(few.images)} is not a gain at equal data."
    )
    common.curves(directory, panels)
    title = f"quickstart: optical digits, {len(test.images)} {test.split} images"
    rows = common.table(runs, test, view)
    common.write_report(directory, title, {common.LAST: rows}, notes)
    return {name: float(run.final().mean()) for name, (_, run) in runs.items()}


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
