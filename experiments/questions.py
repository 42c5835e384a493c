"""When does distillation help? Nine questions to one teacher and its students.

An arm changes one thing of the usual distillation: .1 cross-entropy with the labels and
.9 KL at T=5 from a larger MLP that has seen more images. Distilled students of one seed
start from the weights of the plain ones, which learn from the labels alone, and see the
same batches. Gains are paired. The questions are

* temperature: how soft should the targets be?
* weights: how much should the labels weigh beside the teacher?
* objective: what should be matched, KL or squared errors of logits or probabilities?
* epochs: does distillation save time?
* capacity: how small may the student be?
* augmentation: does it help the student to learn? The teacher then sees the same views.
* teacher: does a better teacher teach better?
* cost: what do teacher and student cost?

and `experiments.crossdata`: does the gain carry over to other data?

    python -m experiments.questions --question temperature --archives DIR
    python -m experiments.questions --dataset digits --student-images 200 --epochs 100

The teachers are kept under OUT/questions/teachers for the other questions. Needs the
official archives: in DIR, or from the network; digits needs none.
"""

import dataclasses
import pathlib
import re
from typing import Any, Literal

import numpy as np
import optax
import tyro

from experiments import common
from jaxkd import cost, data, distill, evaluate, losses, models, report, store, train
from jaxkd.data import augment
from jaxkd.models import Net

Question = Literal[
    "temperature",
    "weights",
    "objective",
    "epochs",
    "capacity",
    "augmentation",
    "teacher",
    "cost",
]


@dataclasses.dataclass(frozen=True)
class Config(common.Config):
    """Every field can be given on the command line."""

    question: Question = "temperature"
    dataset: Literal["fashion_mnist", "mnist", "digits"] = "fashion_mnist"
    seeds: int = 5
    student_images: int | None = 6000  # None is all
    teacher_images: int | None = None
    epochs: int = 20  # of the students
    teacher_epochs: int = 10
    batch_size: int = 64
    teacher_batch_size: int = 256
    temperature: float = 5.0
    hard_weight: float = 0.1  # of the labels
    soft_weight: float = 0.9  # of the teacher
    learning_rate: float = 1e-3


def arms(config: Config, plain: augment.View) -> dict[str, dict[str, Any]]:
    """Return what each arm of the question changes, by its name in the table."""
    usual = config.temperature
    digits = config.dataset == "digits"

    def to(loss: Any, hard: float = config.hard_weight, **options: Any) -> distill.Spec:
        soft = 1 - hard if hard != config.hard_weight else config.soft_weight
        return {
            "ce": (hard, distill.on_labels(losses.cross_entropy)),
            "kd": (soft, distill.on_logits(loss, **options)),
        }

    def mlp(hidden: tuple[int, ...]) -> Net:
        return models.mlp(hidden, classes=10)

    if config.question == "temperature":
        return {
            f"T={t:g}": {"spec": to(losses.kd, temperature=t)}
            for t in (1.0, 2.0, 5.0, 10.0, 20.0)
        }
    if config.question == "weights":
        return {
            f"{hard:g} / {1 - hard:.3g}": {
                "spec": to(losses.kd, hard, temperature=usual)
            }
            for hard in (0.1, 0.3, 0.5, 0.7, 0.9)
        }
    if config.question == "objective":
        return {
            f"KL, T={usual:g}": {},
            "KL, T=1": {"spec": to(losses.kd, temperature=1.0)},
            "MSE, logits": {"spec": to(losses.logit_mse)},
            "MSE, probabilities": {"spec": to(losses.probability_mse)},
        }
    if config.question == "epochs":
        lengths = dict.fromkeys(max(1, config.epochs // by) for by in (4, 2, 1))
        return {f"{n} epochs": {"epochs": n} for n in lengths}
    if config.question == "capacity":
        large = [(200, 200), (50, 50), (200,), (50,), (10,), ()]
        sizes = [(16, 16), (16,), (4,), ()] if digits else large
        return {"-".join(map(str, h)) or "linear": {"net": mlp(h)} for h in sizes}
    if config.question == "augmentation":
        # Shifts and mirrors act on bytes, so that the border is black; the digits' are
        # not mirrored, which would change their label.
        moves = {"shift": augment.jitter(1 if digits else 2)}
        if config.dataset == "fashion_mnist":
            moves["flip"] = augment.flip()
        views = {name: augment.chain(move, plain) for name, move in moves.items()}
        views["cutout"] = augment.chain(plain, augment.cutout(3 if digits else 8))
        views["mixup"] = augment.chain(plain, augment.mixup(0.4))
        return {"none": {}} | {name: {"view": view} for name, view in views.items()}
    if config.question == "teacher":
        n = config.teacher_epochs
        lengths = dict.fromkeys((1, max(1, n // 2), n, 2 * n))
        return {f"{n} epochs": {"teacher_epochs": n} for n in lengths}
    return {"distilled": {}}


def main(config: Config) -> dict[str, dict[str, list[float]]]:
    """Compare the arms of a question; return the metrics of all networks by name."""
    # The data, and the usual networks and objective.
    images, test = common.load(config, config.dataset)
    seen = common.some(images, config.student_images)
    whole = common.some(images, config.teacher_images)
    normalise = augment.normalise(*data.channel_statistics(images))
    view = augment.chain(augment.to_float(), normalise)
    if config.dataset == "digits":
        teacher, student = (models.mlp([n, n], classes=10) for n in (128, 16))
    else:
        teacher, student = (
            models.mlp(**models.MLPS[k]) for k in ("teacher", "student")
        )
    kd = distill.on_logits(losses.kd, temperature=config.temperature)
    spec: distill.Spec = {
        "ce": (config.hard_weight, distill.on_labels(losses.cross_entropy)),
        "kd": (config.soft_weight, kd),
    }
    how: dict[str, Any] = {
        "tx": optax.adam(config.learning_rate),
        "view": view,
        "batch_size": config.batch_size,
    }
    tried, resident = arms(config, view), data.on_device(seen)
    for arm in tried.values():
        changed = {"spec": spec, **how, **{k: arm[k] for k in arm.keys() & {"spec"}}}
        common.rehearse(student, resident, teacher, **changed)
    if config.seeds < 2:
        raise SystemExit(f"seeds must be >= 2, got {config.seeds}")
    directory, log = common.start(f"questions/{config.question}", config)
    how |= {"seeds": config.seeds, "epochs": config.epochs, "log": log}
    how["save_epochs"] = 10

    # Teachers, by their epochs, with the logits that students and measurements need.
    kept = pathlib.Path(config.out) / "questions" / "teachers"
    size, n_whole = config.teacher_batch_size, len(whole.images)
    taught: dict[int, tuple[train.Run, np.ndarray, np.ndarray]] = {}
    for epochs in {
        arm.get("teacher_epochs", config.teacher_epochs): 0 for arm in tried.values()
    }:
        facts = whole.name, whole.split, n_whole, epochs, size, config.learning_rate
        options = {**how, "seeds": 1, "epochs": epochs, "batch_size": size}
        run = train.learn(
            teacher,
            whole,
            checkpoints=kept / "_".join(map(str, facts)),
            name=f"teacher, {epochs} epochs",
            **options,
        )
        frozen, variables = distill.frozen(teacher), run.seed(0)
        on_seen, on_test = (
            train.cache_teacher(frozen, variables, part, view=view)
            for part in (seen, test)
        )
        taught[epochs] = run, on_seen, on_test

    # Plain and distilled students of each arm, and what is measured of them.
    results: dict[str, dict[str, Any]] = {}
    rows, timed = [], config.question == "cost"

    def measure(
        name: str, net: Net, run: train.Run, beside: Any, base: str = ""
    ) -> None:
        """Measure networks, on their own and beside a teacher's logits."""
        score = evaluate.scorer(
            net,
            data.on_device(test),
            view=view,
            metrics={
                "accuracy": evaluate.accuracy,
                "agreement": lambda logits, _: evaluate.agreement(logits, beside),
                "nll": evaluate.nll,
                "ece": evaluate.ece,
            },
        )
        found = {k: v.tolist() for k, v in score(run.state).items()}
        results[name] = found
        baseline = results[base]["accuracy"] if base else None
        rows.append(
            {
                config.question: name,
                "gain": report.gain(found["accuracy"], baseline) if base else "",
                "test accuracy %": report.mean_sd(found["accuracy"], scale=100),
                "agreement %": report.mean_sd(found["agreement"], scale=100),
                "NLL": report.mean_sd(found["nll"], digits=3),
                "ECE %": report.mean_sd(found["ece"], scale=100),
                "parameters": f"{cost.parameters(run.seed(0)[0]):,}",
                **(common.costs(net, run.seed(0), test, view) if timed else {}),
            }
        )

    for name, arm in tried.items():
        epochs = arm.get("teacher_epochs", config.teacher_epochs)
        run, logits, beside = taught[epochs]
        who = f"teacher, {epochs} epochs"
        if who not in results:
            measure(who, teacher, run, beside)
        net = arm.get("net", student)
        options = {**how, **{k: arm[k] for k in arm.keys() & {"view", "epochs"}}}
        own = arm.keys() & {"net", "view", "epochs", "teacher_epochs"}
        plain = f"plain, {name}" if own else "plain"
        for label in (plain, name):
            if label in results:
                continue
            folder = directory / re.sub(r"[^\w.=-]+", "_", label)
            examples = resident
            if label == name:
                options |= {"spec": arm.get("spec", spec), "teacher": "cached"}
                if "view" in arm:
                    options["teacher"] = (teacher, run.seed(0))
                else:
                    examples = {**resident, "teacher": logits}
            learnt = train.learn(
                net, examples, checkpoints=folder, name=label, **options
            )
            measure(label, net, learnt, beside, plain if label == name else "")

    # The table and the picture.
    store.write_json(directory / "results.json", results)
    gains = {
        name: 100 * np.subtract(*(results[k]["accuracy"] for k in (name, base)))
        for name in tried
        for base in [f"plain, {name}" if f"plain, {name}" in results else "plain"]
    }
    axis = "gain over the plain student of the same seed, points"
    report.dots(directory / "gains.svg", gains, x_label=axis, line=0)
    common.write_report(
        directory,
        f"{config.question}: {test.name}, {len(test.images):,} {test.split} images",
        {common.LAST: rows},
        [
            f"The teacher has seen {n_whole:,} images, the students "
            f"{len(seen.images):,}: what it learnt from others is part of the gain.",
            "Gains are paired, ± standard error; agreement is with the teacher.",
        ],
    )
    return results


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
