"""What the questions share: sizes, one teacher and its students, and the report.

Plain students learn from the labels alone; distilled ones start from the same weights
and see the same batches.
"""

import dataclasses
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import common
from jaxkd import data, distill, evaluate, losses, models, report, store, train
from jaxkd.data import augment
from jaxkd.models import Net
from jaxkd.types import Outputs

FIELDS = (
    *("seeds", "epochs", "teacher_epochs", "student_images", "teacher_images"),
    *("batch_size", "teacher_batch_size", "epochs_tried", "teachers_tried"),
)
SIZES: dict[str, tuple] = {  # by preset or data set, `full` for those without their own
    "full": (5, 20, 10, 6000, 0, 64, 256, (5, 10, 20), (1, 5, 10, 20)),
    "digits": (5, 100, 40, 200, 0, 20, 50, (25, 50, 100), (5, 10, 20, 40)),
    "cifar10": (5, 10, 5, 3000, 15000, 64, 128, (5, 10, 20), (2, 5, 10)),
    "short": (3, 100, 20, 200, 1000, 20, 50, (25, 50, 100), (5, 10, 20)),
}
MLPS = models.mlp(**models.MLPS["teacher"]), models.mlp(**models.MLPS["student"])
NETS = {  # teacher and student
    "digits": (models.mlp([128, 128], classes=10), models.mlp([16, 16], classes=10)),
    "mnist": MLPS,
    "fashion_mnist": MLPS,
    "cifar10": (models.cnn(**models.CNNS["wide"]), models.cnn(**models.CNNS["narrow"])),
}
COLUMNS = {"accuracy": "test accuracy %", "agreement": "agreement %", "nll": "NLL"}
COLUMNS |= {"ece": "ECE %", "cka": "CKA"}
CKA_IMAGES = 2000  # the first of the test set: its cost grows with their number


@dataclasses.dataclass(frozen=True)
class Config(common.Config):
    """Options of every question; 0 and None are replaced by the preset's size."""

    preset: Literal["full", "short"] = "full"  # short needs no archives
    dataset: Literal["digits", "mnist", "fashion_mnist", "cifar10"] | None = None
    seeds: int = 0  # number of students, from seeds 0, 1, ...; at least 2
    epochs: int = 0  # of the students
    teacher_epochs: int = 0
    student_images: int | None = None  # training images of the students; 0 is all
    teacher_images: int | None = None  # training images of the teacher; 0 is all
    batch_size: int = 0  # of the students
    teacher_batch_size: int = 0
    temperature: float = 5.0
    hard_weight: float = 0.1  # of the labels
    soft_weight: float = 0.9  # of the teacher
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        """Refuse a single student, whose gain has no standard error."""
        if self.seeds < 2 and self.seeds != 0:
            raise SystemExit(f"seeds must be >= 2, got {self.seeds}")


C = TypeVar("C", bound=Config)


def sized(config: C, full: str = "fashion_mnist") -> C:
    """Fill in the data set, by default `full` or the digits, and the preset's sizes."""
    short = config.preset == "short"
    dataset = config.dataset or ("digits" if short else full)
    values = SIZES["short"] if short else SIZES.get(dataset, SIZES["full"])
    sizes = dict(zip(FIELDS, values, strict=True))
    chosen: dict[str, Any] = {"dataset": dataset}
    for field in dataclasses.fields(config):
        if field.name in sizes and getattr(config, field.name) == field.default:
            chosen[field.name] = sizes[field.name]
    return dataclasses.replace(config, **chosen)


def kd(config: Config) -> distill.Spec:
    """Make the usual objective: cross-entropy with the labels, KL from the teacher."""
    soft = distill.on_logits(losses.kd, temperature=config.temperature)
    return {
        "ce": (config.hard_weight, distill.on_labels(losses.cross_entropy)),
        "kd": (config.soft_weight, soft),
    }


class Setup(NamedTuple):
    """Data, networks, run directory, and `how` all are trained by `train.learn`."""

    config: Config
    seen: data.Dataset  # by the students
    whole: data.Dataset  # seen by the teacher
    test: data.Dataset
    view: augment.View
    teacher: Net
    student: Net
    directory: pathlib.Path
    how: dict[str, Any]


def prepare(name: str, config: Config, specs: Iterable[distill.Spec]) -> Setup:
    """Load the data, trace the objectives before anything is trained, open the run."""
    assert config.dataset is not None
    images, test = common.load(config, config.dataset)
    with common.refusing("cannot train"):
        seen, whole = (
            data.subset(images, n, seed=0) if n else images
            for n in (config.student_images, config.teacher_images)
        )
    scale = augment.normalise(*data.channel_statistics(images))
    view = augment.chain(augment.to_float(), scale)
    teacher, student = NETS[config.dataset]
    how: dict[str, Any] = {
        "tx": optax.adam(config.learning_rate),
        "view": view,
        "batch_size": config.batch_size,
    }
    resident = data.on_device(seen)
    for spec in specs:
        common.rehearse(student, resident, teacher, spec=spec, **how)
    directory, log = common.start(f"questions/{name}", config)
    how |= {"seeds": config.seeds, "epochs": config.epochs, "log": log}
    # On a CPU, vmap makes convolutions slow.
    how["together"] = config.dataset != "cifar10"
    return Setup(config, seen, whole, test, view, teacher, student, directory, how)


class Trained(NamedTuple):
    """Networks of several seeds, and what each makes of the test images."""

    net: Net
    run: train.Run
    answers: list[Outputs]
    metrics: dict[str, np.ndarray]  # by name, `[seeds]`
    logits: Any = None  # a teacher's, of the students' images


def teach(setup: Setup, epochs: int | None = None) -> Trained:
    """Train the teacher on its labels, from seed 0, and store its logits.

    It is kept under `OUT/questions/teachers` for the other questions.
    """
    config, net, whole = setup.config, setup.teacher, setup.whole
    size, epochs = config.teacher_batch_size, epochs or config.teacher_epochs
    facts = whole.name, whole.split, len(whole.images), epochs, size
    name = "_".join(map(str, (*facts, config.learning_rate)))
    kept = pathlib.Path(config.out) / "questions" / "teachers" / name
    how = {**setup.how, "seeds": 1, "epochs": epochs, "batch_size": size}
    name = f"teacher, {epochs} epochs"
    with common.refusing("cannot train the teacher"):
        run = train.learn(net, whole, checkpoints=kept, name=name, **how)
    answers, frozen = answer(net, run, setup.test, setup.view), distill.frozen(net)
    metrics = measure(answers, answers[0], setup.test)
    logits = train.cache_teacher(frozen, run.seed(0), setup.seen, view=setup.view)
    return Trained(net, run, answers, metrics, logits)


def students(
    setup: Setup,
    name: str,
    taught: Trained,
    *,
    spec: distill.Spec | None = None,
    net: Net | None = None,
    **instead: Any,
) -> Trained:
    """Train students from seeds 0, 1, ...; without a spec they are plain ones.

    The teacher's logits are cached; under a `view` it runs live and sees the same.
    """
    net, examples = net or setup.student, data.on_device(setup.seen)
    teacher: Any = None
    if spec is not None:
        teacher = (taught.net, taught.run.seed(0)) if "view" in instead else "cached"
    if teacher == "cached":
        examples["teacher"] = taught.logits
    folder = setup.directory / re.sub(r"[^\w.=-]+", "_", name)
    how = {**setup.how, **instead, "spec": spec, "teacher": teacher}
    with common.refusing(f"cannot train {name}"):
        run = train.learn(net, examples, checkpoints=folder, name=name, **how)
    answers = answer(net, run, setup.test, setup.view)
    metrics = measure(answers, taught.answers[0], setup.test)
    return Trained(net, run, answers, metrics)


@partial(jax.jit, static_argnums=(0, 1))
def _answer(net: Net, view: augment.View, variables: Any, images: Any) -> Outputs:
    frozen = distill.frozen(net)
    # In the logits' place, which is what `predict` collects.
    pooled = lambda v, batch: Outputs(frozen(v, batch).tap("pooled"), {})
    first = jax.tree.map(lambda a: a[:CKA_IMAGES], images)
    features = evaluate.predict(pooled, variables, first, view=view)
    logits = evaluate.predict(frozen, variables, images, view=view)
    return Outputs(logits, {"pooled": features})


def answer(
    net: Net, run: train.Run, images: data.Dataset, view: augment.View
) -> list[Outputs]:
    """Return each seed's logits, and what its head sees of the first images."""
    seeds, resident = jax.tree.leaves(run.variables)[0].shape[0], data.on_device(images)
    return [_answer(net, view, run.seed(i), resident) for i in range(seeds)]


@jax.jit
def _measure(own: Outputs, teacher: Outputs, label: Any) -> dict[str, Any]:
    return {
        "accuracy": evaluate.accuracy(own.logits, label),
        "agreement": evaluate.agreement(own.logits, teacher.logits),
        "nll": evaluate.nll(own.logits, label),
        "ece": evaluate.ece(own.logits, label),
        "cka": evaluate.cka(own.tap("pooled"), teacher.tap("pooled")),
    }


def measure(
    own: list[Outputs], teacher: Outputs, images: data.Dataset
) -> dict[str, np.ndarray]:
    """Measure the networks of all seeds, on their own and beside the teacher."""
    each = [_measure(one, teacher, jnp.asarray(images.labels)) for one in own]
    return {name: np.array([one[name] for one in each]) for name in each[0]}


class Arm(NamedTuple):
    """The metrics of distilled students, their plain ones, and their teacher."""

    distilled: dict[str, np.ndarray]
    plain: dict[str, np.ndarray]
    teacher: dict[str, np.ndarray]

    @property
    def gain(self) -> str:
        """Return the gain over the plain students, in points."""
        return report.gain(self.distilled["accuracy"], self.plain["accuracy"])


def lead(a: Arm, b: Arm) -> str:
    """Return by how many points one arm's students are better than another's."""
    return report.gain(a.distilled["accuracy"], b.distilled["accuracy"])


def best(arms: Mapping[str, Arm]) -> str:
    """Name the arm of the highest mean accuracy."""
    return max(arms, key=lambda name: arms[name].distilled["accuracy"].mean())


def highest(arms: Mapping[str, Arm], reference: str) -> str:
    """Say which arm is best, and its lead over another; if it is that, over the next.

    It is chosen by the accuracies that it is then compared by, which flatters it.
    """
    first = best(arms)
    rest = {name: arm for name, arm in arms.items() if name != first}
    other = reference if first != reference else best(rest or arms)
    points = lead(arms[first], arms[other])
    return f"{first} is the highest of {len(arms)}, {points} points against {other}"


def write(
    setup: Setup,
    kind: str,
    arms: Mapping[str, Arm],
    notes: Sequence[str],
    more: Mapping[str, report.Rows] | None = None,
) -> dict[str, float]:
    """Write the report, a picture and `results.json`; return the mean accuracies.

    Teachers and plain students that all arms share have one row.
    """
    found: dict[str, tuple[dict[str, np.ndarray], str]] = {}
    for label, arm in arms.items():
        for who in ("teacher", "plain"):
            its = getattr(arm, who)
            shared = all(getattr(other, who) is its for other in arms.values())
            found[who if shared else f"{who}, {label}"] = its, ""
        found[label] = arm.distilled, arm.gain
    rows = []
    for label, (its, gain) in found.items():
        rows.append({kind: label, "gain, points": gain})
        for metric, title in COLUMNS.items():
            if metric in its:
                scale, digits = (100, 2) if title.endswith("%") else (1, 3)
                cell = report.mean_sd(its[metric], scale=scale, digits=digits)
                rows[-1][title] = cell
    numbers = {
        label: {metric: values.tolist() for metric, values in its.items()}
        for label, (its, _) in found.items()
    }
    store.write_json(setup.directory / "results.json", numbers)
    points = {
        label: 100 * (arm.distilled["accuracy"] - arm.plain["accuracy"])
        for label, arm in arms.items()
    }
    x_label = "gain over the plain student of the same seed, points"
    report.dots(setup.directory / "gains.png", points, x_label=x_label, line=0)
    seen, whole, test = (len(s.images) for s in (setup.seen, setup.whole, setup.test))
    regime = f"The teacher has seen {whole:,} images, the students {seen:,}"
    if seen < whole:
        regime += ": some of what it passes on it learnt from images they never see"
    regime += f". Measured on {test:,} {setup.test.split} images."
    caption = (
        "After the last epoch, mean ± standard deviation over seeds; gains over plain "
        "students are paired, ± standard error: less than that is no difference. "
        "Agreement and CKA are with the teacher"
    )
    title = f"{setup.directory.parent.name}: {setup.test.name}"
    tables = {caption: rows, **(more or {})}
    common.write_report(setup.directory, title, tables, [*notes, regime])
    return {label: float(its["accuracy"].mean()) for label, (its, _) in found.items()}
