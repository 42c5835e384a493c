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
import json
import pathlib
import re
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from experiments import _outcome as outcome, _pair as pair
from jaxkd import (
    cache as caches,
    checkpoint,
    data,
    distill,
    evaluate,
    log,
    models,
    report,
    train,
)
from jaxkd.data import augment
from jaxkd.models import Net
from jaxkd.types import Batch

THREES, SEVENS_AND_EIGHTS = (3,), (7, 8)
PUBLISHED_WITHOUT_3 = {
    "before": "206, of which 133 on 3s",
    "bias": 3.5,
    "after": "109, of which 14 on 3s: 98.6 % of them right",
}
PUBLISHED_7_AND_8 = {"before": "47.3 %", "bias": -7.6, "after": "13.2 %"}
GRID = np.round(np.arange(-20, 20.05, 0.1), 1)  # biases tried on the test set


@dataclasses.dataclass(frozen=True)
class Config:
    """Every field can be given on the command line."""

    dataset: Literal["mnist", "digits"] = "mnist"  # digits: to try it out quickly
    archives: str | None = None  # folder of the official archives
    data_dir: str | None = None  # where prepared data are kept
    teacher_units: int = 1200  # in each of two hidden layers, as everywhere below
    units: int = 800
    small_units: int = 30
    middle_units: int = 300
    max_norm: float = 3.5  # of the weights into each hidden unit of the teacher
    jitter: int = 2  # pixels, of the teacher's images
    temperature: float = 20.0  # of the 800-unit students
    small_temperatures: tuple[float, ...] = (1.0, 2.5, 4.0, 8.0, 20.0)
    middle_temperatures: tuple[float, ...] = (8.0, 20.0, 40.0)
    jittered_students: bool = False  # some more, who see what the teacher saw
    hard_weight: float = 0.1  # of the labels
    soft_weight: float = 0.9  # of the teacher
    learning_rate: float = 1e-3  # at first; it falls to 0 along half a cosine
    # The teacher's learning rate falls to 0 as often as there are numbers here.
    teacher_learning_rates: tuple[float, ...] = (3e-3, 1e-3)
    batch_size: int = 128
    teacher_batch_size: int = 256
    teacher_epochs: tuple[int, ...] = (60, 60)
    epochs: int = 20  # of the 800-unit students
    small_epochs: int = 20  # of the others
    seeds: int = 3  # of every student but the smallest
    small_seeds: int = 6  # of those
    train_images: int | None = None  # only so many of them; None is all
    evaluate_on: Literal["test", "validation"] = "test"
    reuse: str | None = None  # directory of an earlier run
    out: str = "runs"


class Lab(NamedTuple):
    """What every training of one run shares.

    Attributes:
      config: of the run.
      task: the data; once there is a teacher, with its logits.
      write: the log.
      directory: where everything is kept.
      teacher: the teacher's network and variables, once there is one.
      known: the fingerprint of these variables.
    """

    config: Config
    task: pair.Task
    write: log.Log
    directory: pathlib.Path
    teacher: tuple[Net, Any] | None = None
    known: str = ""


class Course(NamedTuple):
    """How one network is trained, from as many seeds as are wanted.

    Attributes:
      tx: the optimiser.
      batch_size: examples in a step.
      epochs: how many.
      resident: the data to train on.
      view: how they are seen; the measurements are made under the task's own view.
      seeds: 0 to this, excluded.
      together: whether they are trained by vmap, or one after another.
      spec: the objective; on the labels alone if there is none.
      teacher: what teaches, with its variables.
      start: parameters to go on from instead of new ones, with the axis of seeds.
    """

    tx: optax.GradientTransformation
    batch_size: int
    epochs: int
    resident: Batch
    view: augment.View
    seeds: int = 1
    together: bool = False
    spec: distill.Spec | None = None
    teacher: tuple[distill.Teacher, Any] = (distill.nobody, None)
    start: Any = None


class Students(NamedTuple):
    """Trained students: one network, variables and logits with an axis of seeds."""

    net: Net
    variables: Any
    test_logits: np.ndarray


def max_norm(limit: float) -> optax.GradientTransformation:
    """Keeps the norm of the weights into each unit at or below a limit.

    Weights are `[inputs, units]`; a column that the update would make longer is scaled
    back onto the sphere. To be the last of a chain, since it looks at where the update
    leads.

    Raises:
      ValueError: if the limit is not > 0.
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
    """The same tree of booleans: true at the kernels of the hidden layers."""

    def chosen(keys: Any, _: Any) -> bool:
        path = jax.tree_util.keystr(keys, simple=True, separator="/")
        return re.search(r"hidden\d+/kernel$", path) is not None

    return jax.tree_util.tree_map_with_path(chosen, params)


def moved(logits: np.ndarray, classes: Sequence[int], bias: Any) -> np.ndarray:
    """Adds a bias, one for each seed, to some classes of `[seeds, examples, classes]`.

    >>> moved(np.zeros((1, 1, 3)), [1], [2.5]).tolist()
    [[[0.0, 2.5, 0.0]]]
    """
    chosen = np.isin(np.arange(logits.shape[-1]), classes)
    return logits + np.asarray(bias)[:, None, None] * chosen


def bias_for_share(logits: np.ndarray, classes: Sequence[int], share: float) -> Any:
    """The bias with which some classes together win a given share of the examples.

    It needs no labels. An example is won if its margin, the largest logit of these
    classes less the largest of the others, exceeds minus the bias.

    Args:
      logits: `[seeds, examples, classes]`.
      classes: which get the bias.
      share: of the examples, in (0, 1).

    Returns:
      One bias for each seed.

    >>> margins = np.array([[[0.0, 1.0], [0.0, 3.0], [0.0, -5.0], [0.0, -7.0]]])
    >>> bias_for_share(margins, [1], 0.5).tolist()  # two are won: between -1 and 5
    [2.0]
    """
    chosen = np.isin(np.arange(logits.shape[-1]), classes)
    margin = logits[..., chosen].max(-1) - logits[..., ~chosen].max(-1)
    return -np.quantile(margin, 1 - share, axis=-1)


def best_bias(logits: np.ndarray, labels: np.ndarray, classes: Sequence[int]) -> Any:
    """The bias of GRID with the fewest errors, for each seed; of several the smallest.

    The paper chose it so, on the test set: an optimistic number, made to compare.
    """
    tries = GRID[np.argsort(np.abs(GRID), kind="stable")]
    seeds = len(logits)
    wrong = [errors(moved(logits, classes, [b] * seeds), labels) for b in tries]
    return tries[np.argmin(wrong, axis=0)]


def errors(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How many examples each seed gets wrong, of `[seeds, examples, classes]`."""
    return (logits.argmax(-1) != labels).sum(-1)


def answers(
    net: Net, variables: Any, resident: Batch, view: augment.View
) -> np.ndarray:
    """Logits `[seeds, examples, classes]` of networks stacked over seeds."""
    images = {name: resident[name] for name in ("image", "label")}
    return np.asarray(_answers(net, variables, images, view))


@partial(jax.jit, static_argnames=("net", "view"))
def _answers(net: Net, variables: Any, images: Batch, view: augment.View) -> jax.Array:
    one = lambda v: evaluate.predict(distill.frozen(net), v, images, view=view)
    return jax.lax.map(one, (variables["params"], variables["state"]))


@cache
def two_layers(units: int, classes: int, **dropout: float) -> Net:
    """A network with two hidden layers: for the same numbers the same object."""
    return models.mlp([units, units], classes=classes, **dropout)


def slug(name: str) -> str:
    """The name of a run as that of a file."""
    return re.sub("[^a-z0-9]+", "_", name)


def kept(lab: Lab, name: str, recipe: dict, make: Callable[[], Any]) -> Any:
    """The variables that `make` trains, or those of the run that is to be reused."""
    recipe = json.loads(json.dumps(recipe))  # as it will be read: tuples are lists
    note = lab.directory / f"{slug(name)}.json"
    old = pathlib.Path(lab.config.reuse or lab.directory) / note.name
    if old.exists() and json.loads(old.read_text()) == recipe:
        variables = checkpoint.load(old.with_suffix(""))
        lab.write({"run": name, "reused": str(old.with_suffix(""))})
    else:
        variables = make()
    checkpoint.save(note.with_suffix(""), variables)
    note.write_text(json.dumps(recipe, indent=2) + "\n")  # last: now it is whole
    return variables


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


def falling(rate: float, resident: Batch, batch_size: int, epochs: int) -> Any:
    """A learning rate that falls to 0 along half a cosine, in so many epochs."""
    steps = epochs * (len(resident["image"]) // batch_size)
    return optax.cosine_decay_schedule(rate, max(steps, 1))


def trained(lab: Lab, name: str, net: Net, course: Course) -> Any:
    """The variables of a network after its course, with an axis of seeds.

    `_pair.Trainer` would also measure under the view that it trains with.
    """
    task, (teacher, teacher_variables) = lab.task, course.teacher
    spec = course.spec or {"ce": (1.0, distill.on_labels(distill.cross_entropy))}
    d = distill.distiller(net, teacher, spec, course.tx)
    keys = jax.vmap(jax.random.key)(jnp.arange(course.seeds))
    batch = train.example(course.resident, course.view)
    init = jax.jit(jax.vmap(d.init, in_axes=(0, None, None)))
    state = init(keys, teacher_variables, batch)
    if course.start is not None:
        student = jax.tree.map(jnp.array, course.start)  # the epoch consumes its state
        state = state._replace(params={**state.params, "student": student})
    epoch = train.make_epoch(d, view=course.view, batch_size=course.batch_size)
    run = train.fit(
        train.over_seeds(epoch, together=course.together),
        state,
        teacher_variables,
        course.resident,
        key=keys,
        epochs=course.epochs,
        evaluate=evaluate.scorer(net, task.resident_test, view=task.view),
        log=lab.write,
        name=name,
    )
    if run.interrupted:
        raise SystemExit(
            f"interrupted after epoch {len(run.history)} of {name}; what was finished "
            f"before is in {lab.directory}: --reuse goes on from there"
        )
    params, state = run.state.params["student"], run.state.state["student"]
    return {"params": params, "state": state}


def taught(lab: Lab, net: Net) -> Any:
    """The teacher's variables, with an axis for its one seed.

    It is trained in cycles, each with the learning rate falling to 0 and a new state of
    the optimiser, from the weights of the cycle before; each cycle is kept.
    """
    config, task, variables = lab.config, lab.task, None
    plan = zip(config.teacher_learning_rates, config.teacher_epochs, strict=True)
    fields = ("max_norm", "jitter", "dataset", "evaluate_on", "train_images")
    bounded = optax.masked(max_norm(config.max_norm), hidden_kernels)
    view = augment.chain(augment.jitter(config.jitter), task.view)
    for cycle, (rate, epochs) in enumerate(plan, start=1):
        batch_size = config.teacher_batch_size
        recipe = {f: getattr(config, f) for f in fields}
        recipe |= {"units": config.teacher_units, "learning_rate": rate}
        recipe |= {"batch_size": batch_size, "epochs": epochs}
        if variables is not None:
            recipe["after"] = caches.fingerprint(variables)
        adam = optax.adam(falling(rate, task.resident, batch_size, epochs))
        course = Course(
            optax.chain(adam, bounded),
            batch_size,
            epochs,
            task.resident,
            view,
            start=variables and variables["params"],
        )
        name = f"teacher {cycle}"
        variables = kept(lab, name, recipe, partial(trained, lab, name, net, course))
    return variables


def without(resident: Batch, transfer: Sequence[int] | None) -> Batch:
    """The transfer set: the examples of these classes, or all if there are none."""
    if transfer is None:
        return resident
    chosen = np.flatnonzero(np.isin(np.asarray(resident["label"]), transfer))
    return {name: column[chosen] for name, column in resident.items()}


def students(
    lab: Lab,
    name: str,
    units: int,
    *,
    epochs: int,
    seeds: int,
    temperature: float | None = None,
    transfer: Sequence[int] | None = None,
    jitter: int = 0,
) -> Students:
    """Trains one student a seed: the same weights at first, whatever the objective.

    Args:
      lab: with a teacher.
      name: of the run.
      units: in each of the two hidden layers.
      epochs: over all images; over a part of them, more, for as many updates.
      seeds: how many students.
      temperature: of the distillation; None trains on the labels alone.
      transfer: the classes that the students see; None is all.
      jitter: pixels by which their images are shifted; a live teacher sees the same.
    """
    config, task = lab.config, lab.task
    net = two_layers(units, task.train.num_classes)
    resident = without(task.resident, transfer)
    if temperature is None or jitter:
        resident = {k: v for k, v in resident.items() if k != "teacher"}
    epochs = round(epochs * len(task.train.images) / len(resident["image"]))
    shared = ("learning_rate", "batch_size", "dataset", "evaluate_on", "train_images")
    recipe = {f: getattr(config, f) for f in shared}
    recipe |= {"units": units, "seeds": seeds, "epochs": epochs, "transfer": transfer}
    view = augment.chain(augment.jitter(jitter), task.view)
    rate = falling(config.learning_rate, resident, config.batch_size, epochs)
    course = Course(optax.adam(rate), config.batch_size, epochs, resident, view, seeds)
    # One after another is the faster for wide networks, vmap for narrow ones.
    course = course._replace(together=units < 500)
    if jitter:
        recipe["jitter"] = jitter
    if temperature is not None:
        if lab.teacher is None:
            raise ValueError(f"{name}: a temperature is given, but no teacher")
        weights = {w: getattr(config, w) for w in ("hard_weight", "soft_weight")}
        recipe |= {"temperature": temperature, "teacher": lab.known, **weights}
        at = dataclasses.replace(config, temperature=temperature)
        teacher, variables = lab.teacher
        live = (distill.frozen(teacher), variables)
        course = course._replace(
            spec=pair.kd_spec(at), teacher=live if jitter else (distill.cached, None)
        )
    variables = kept(lab, name, recipe, partial(trained, lab, name, net, course))
    logits = answers(net, variables, task.resident_test, task.view)
    np.save(lab.directory / f"{slug(name)}_logits.npy", logits)
    return Students(net, variables, logits)


def row(
    lab: Lab, network: str, logits: np.ndarray, published: str, bias: Any = None
) -> dict:
    """A row of the table, also written to the log; `logits` are those of the test."""
    labels = lab.task.test.labels
    threes, n = labels == 3, int((labels == 3).sum())
    wrong, of_threes = errors(logits, labels), errors(logits[:, threes], labels[threes])
    digits = 1 if len(logits) > 1 else 0
    lab.write(
        {"run": "result", "network": network, "errors": wrong.tolist()}
        | {"errors on 3s": of_threes.tolist()}
        | ({} if bias is None else {"bias": np.asarray(bias).tolist()})
    )
    return {
        "network": network,
        "bias": "" if bias is None else report.mean_sd(bias),
        "test errors": report.mean_sd(wrong, digits=digits),
        "test error %": report.mean_sd(wrong, scale=100 / len(labels)),
        "on 3s": report.mean_sd(of_threes, digits=digits),
        "3s right %": report.mean_sd(1 - of_threes / n, scale=100),
        "published": published,
    }


def rows_with_biases(
    lab: Lab,
    label: str,
    found: Students,
    classes: Sequence[int],
    published: dict[str, Any],
) -> list[dict]:
    """As they are, and with the bias of some classes chosen in three ways."""
    task, test = lab.task, found.test_logits
    # Labels only tell how common these classes are, not which images are theirs.
    share = float(np.isin(task.train.labels, classes).mean())
    unlabelled = answers(found.net, found.variables, task.resident, task.view)
    own, paper = bias_for_share(unlabelled, classes, share), published["bias"]
    best = best_bias(test, task.test.labels, classes)
    of = " and ".join(map(str, classes))
    ways = (
        (f"bias of {of} for their share of the training images", own, ""),
        (f"bias of {of} by {paper:+}, as published", np.full(len(test), paper), ""),
        (f"bias of {of} best on the test set, as published", best, published["after"]),
    )
    rows = [row(lab, label, test, published["before"])]
    for way, bias, number in ways:
        shifted = moved(test, classes, bias)
        rows.append(row(lab, f"{label}; {way}", shifted, number, bias))
    return rows


def at_temperatures(
    lab: Lab, units: int, temperatures: Sequence[float], *, seeds: int
) -> tuple[list[dict], dict[str, np.ndarray]]:
    """Rows and errors of students of one size: alone, and at each temperature."""
    rows, found = [], {}
    for t in (None, *temperatures):
        how = "alone" if t is None else f"T={t:g}"
        some = students(
            lab,
            f"{units} units {how.lower()}",
            units,
            epochs=lab.config.small_epochs,
            seeds=seeds,
            temperature=t,
        )
        rows.append(row(lab, f"student {units}-{units}, {how}", some.test_logits, ""))
        found[how] = errors(some.test_logits, lab.task.test.labels)
    return rows, found


def picture(
    path: pathlib.Path, large: dict[str, Any], by_size: dict[int, dict]
) -> bool:
    """Errors of the large networks, and of the others against temperature.

    Args:
      path: the PNG.
      large: from a network to its errors `[seeds]` and the published number.
      by_size: from units to the errors `[seeds]` "alone" and at each "T=...".

    Returns:
      Whether it could be drawn: False without matplotlib (the extra `plots`).
    """
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("agg")
    from matplotlib import pyplot

    n = 1 + len(by_size)
    figure, axes = pyplot.subplots(1, n, figsize=(4.6 * n, 3.8), squeeze=False)
    first, *others = axes[0]
    sd = lambda values: np.std(values, ddof=1) if len(values) > 1 else 0.0
    measured = [found for found, _ in large.values()]
    first.bar(list(large), [m.mean() for m in measured], yerr=[sd(m) for m in measured])
    first.plot(
        list(large), [number for _, number in large.values()], "kD", label="2015"
    )
    first.set(title="1200-1200 to 800-800", ylabel="test errors")
    for axis, (units, found) in zip(others, by_size.items(), strict=True):
        at = {float(how[2:]): e for how, e in found.items() if how != "alone"}
        means, sds = [e.mean() for e in at.values()], [sd(e) for e in at.values()]
        axis.errorbar(list(at), means, sds, fmt="o-", capsize=3, label="distilled")
        axis.axhline(found["alone"].mean(), color="grey", ls="--", label="alone")
        axis.set(title=f"{units}-{units}", xlabel="temperature", xscale="log")
        axis.set_xticks(list(at), [f"{t:g}" for t in at])
        axis.minorticks_off()
    for axis in axes[0]:
        axis.grid(alpha=0.3)
        axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return True


def write_report(lab: Lab, rows: list[dict], *, drawn: bool = False) -> None:
    """Writes `report.md` from what there is so far."""
    test, config = lab.task.test, lab.config
    title = f"hinton_mnist: {test.name}, {len(test.images):,} {test.split} images"
    shown = "![Errors](errors.png)\n\n" if drawn else ""
    made = "".join(f"* {name}: {value}\n" for name, value in log.versions().items())
    (lab.directory / "report.md").write_text(
        f"# {title}\n\n{report.markdown(rows)}\nErrors after the last epoch, mean ± "
        f"standard deviation over the students' {config.seeds} seeds "
        f"({config.small_seeds} with {config.small_units} units); one teacher. "
        "Biases for the share of the training images were chosen without labels, "
        "from the students' logits on all of them; those best on the test set are "
        "optimistic, as the published ones are.\n\n"
        f"{shown}{made}"
    )


def main(config: Config) -> dict[str, float]:
    """Runs the experiment; returns the mean test errors by network."""
    train_set, test_set = pair.splits(config)
    task = pair.task(train_set, test_set, augment.to_float())
    directory = outcome.run_directory(config.out, "hinton_mnist")
    lab = Lab(config, task, log.start(directory, config), directory)
    classes = train_set.num_classes
    teacher = two_layers(config.teacher_units, classes, dropout=0.5, input_dropout=0.2)
    rehearse(lab, teacher)
    rows: list[dict] = []
    large: dict[str, tuple] = {}
    by_size: dict[int, dict] = {}

    def add(label: str, found: Students, published: int) -> None:
        large[label] = errors(found.test_logits, test_set.labels), published
        rows.append(row(lab, label, found.test_logits, str(published)))
        write_report(lab, rows)

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
        rows.append(row(lab, label, found.test_logits, "not in the paper"))
        write_report(lab, rows)
    others = [c for c in range(classes) if c not in THREES]
    for name, transfer, moving, published in (
        ("no 3s", others, THREES, PUBLISHED_WITHOUT_3),
        ("only 7s and 8s", SEVENS_AND_EIGHTS, SEVENS_AND_EIGHTS, PUBLISHED_7_AND_8),
    ):
        found = students(lab, name, config.units, transfer=transfer, **using)
        rows += rows_with_biases(lab, f"distilled, {name}", found, moving, published)
        write_report(lab, rows)
    for units, temperatures, seeds in (
        (config.small_units, config.small_temperatures, config.small_seeds),
        (config.middle_units, config.middle_temperatures, config.seeds),
    ):
        if temperatures:
            more, by_size[units] = at_temperatures(
                lab, units, temperatures, seeds=seeds
            )
            rows += more
            write_report(lab, rows)
    drawn = picture(directory / "errors.png", large, by_size)
    write_report(lab, rows, drawn=drawn)
    report.show(rows)
    print(f"report: {directory / 'report.md'}")
    return {r["network"]: float(r["test errors"].split(" ")[0]) for r in rows}


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
