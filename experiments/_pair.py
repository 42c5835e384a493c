"""What the experiments on a teacher and its student share: training, table, report."""

import datetime
import pathlib
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxkd import checkpoint, cost, data, distill, evaluate, log, losses, report, train
from jaxkd.data import augment
from jaxkd.models import Net
from jaxkd.types import Batch


class Task(NamedTuple):
    """Data on the device, and how networks see it."""

    train: data.Dataset
    test: data.Dataset
    resident: Batch
    resident_test: Batch
    view: augment.View


def splits(config: Any) -> tuple[data.Dataset, data.Dataset]:
    """The training and test data that a Config's fields name.

    Hyper-parameters are to be chosen with `evaluate_on="validation"`: the held-out
    slice of the training set is then left out of the training data.
    """
    choosing = config.evaluate_on == "validation"
    where = {"archives": config.archives, "data_dir": config.data_dir}
    train_set = data.load(
        config.dataset, "train_rest" if choosing else "train", **where
    )
    if config.train_images is not None:
        train_set = data.subset(train_set, config.train_images, seed=0)
    return train_set, data.load(config.dataset, config.evaluate_on, **where)


def task(train_set: data.Dataset, test_set: data.Dataset, view: augment.View) -> Task:
    """Puts both splits on the device."""
    on_device = data.on_device
    return Task(train_set, test_set, on_device(train_set), on_device(test_set), view)


class Trainer(NamedTuple):
    """How every network of one experiment is trained.

    Attributes:
      tx: the optimiser.
      batch_size: examples in a step.
      log: where the rows go.
      directory: where the trained variables go, under the run's name.
      together: whether seeds are trained by vmap, or one after another.
    """

    tx: optax.GradientTransformation
    batch_size: int
    log: log.Log
    directory: pathlib.Path
    together: bool = True

    def __call__(
        self,
        name: str,
        net: Net,
        task: Task,
        *,
        seeds: int,
        epochs: int,
        spec: distill.Spec | None = None,
        teacher: distill.Teacher = distill.nobody,
        teacher_variables: Any = None,
        start: int = 0,
    ) -> train.Run:
        """Trains `net` from `seeds` initial states, the same for every spec.

        Without a spec, on the labels alone.
        """
        spec = spec or {"ce": (1.0, distill.on_labels(distill.cross_entropy))}
        d = distill.distiller(net, teacher, spec, self.tx)
        keys = jax.vmap(jax.random.key)(jnp.arange(start, start + seeds))
        batch = train.example(task.resident, task.view)
        init = jax.jit(jax.vmap(d.init, in_axes=(0, None, None)))
        epoch = train.make_epoch(d, view=task.view, batch_size=self.batch_size)
        run = train.fit(
            train.over_seeds(epoch, together=self.together),
            init(keys, teacher_variables, batch),
            teacher_variables,
            task.resident,
            key=keys,
            epochs=epochs,
            evaluate=evaluate.scorer(net, task.resident_test, view=task.view),
            log=self.log,
            name=name,
        )
        params, state = run.state.params["student"], run.state.state["student"]
        checkpoint.save(
            self.directory / name.replace(" ", "_"), {"params": params, "state": state}
        )
        if run.interrupted:
            raise SystemExit(
                f"interrupted after epoch {len(run.history)} of {name}; what was "
                f"trained is in {self.directory}"
            )
        return run


def first(run: train.Run) -> tuple[Any, Any]:
    """The variables of the network of the first seed, ready to teach."""
    pick = lambda tree: jax.tree.map(lambda a: a[0], tree["student"])
    return pick(run.state.params), pick(run.state.state)


def final(run: train.Run, metric: str = "accuracy") -> np.ndarray:
    """A metric after the last epoch, `[seeds]`."""
    return np.asarray(run.history[-1][metric])


def curve(run: train.Run, metric: str = "accuracy") -> np.ndarray:
    """A metric after each epoch, `[epochs, seeds]`."""
    return np.asarray([row[metric] for row in run.history])


def size_and_speed(net: Net, run: train.Run, task: Task) -> dict[str, str]:
    """The columns of the table that do not depend on how the network was trained."""
    variables = first(run)
    of = cost.of(net, task.test.images.shape[1:])
    predict = jax.jit(
        lambda variables, resident: evaluate.predict(
            distill.frozen(net), variables, resident, view=task.view
        )
    )
    jax.block_until_ready(predict(variables, task.resident_test))
    seconds = []
    for _ in range(5):
        begin = time.perf_counter()
        jax.block_until_ready(predict(variables, task.resident_test))
        seconds.append(time.perf_counter() - begin)
    speed = len(task.test.images) / float(np.median(seconds))
    return {
        "parameters": f"{of.parameters:,}",
        "MACs": f"{of.macs:,}",
        "bytes": f"{of.bytes:,}",
        "images/s": f"{speed:,.0f}",
    }


def row(label: str, run: train.Run, costs: dict[str, str]) -> dict[str, str]:
    """A row of the final table: accuracy in percent, after the last epoch."""
    accuracy = report.mean_sd(final(run), scale=100)
    return {"network": label, "test accuracy %": accuracy, **costs}


def gain(distilled: train.Run, alone: train.Run) -> tuple[float, float]:
    """Mean gain of paired seeds in points, and its standard error (nan for one)."""
    difference = 100 * (final(distilled) - final(alone))
    n = len(difference)
    error = difference.std(ddof=1) / np.sqrt(n) if n > 1 else np.nan
    return float(difference.mean()), float(error)


def gain_sentence(distilled: train.Run, alone: train.Run) -> str:
    """The gain as a sentence, in units of its standard error."""
    mean, error = gain(distilled, alone)
    if np.isnan(error):
        return f"Distillation changes the accuracy by {mean:+.2f} points (one seed)."
    return (
        f"Distillation changes the accuracy by {mean:+.2f} ± {error:.2f} points "
        f"(mean over {len(final(alone))} paired seeds ± standard error)."
    )


def kd_spec(config: Any) -> distill.Spec:
    """Cross-entropy with the labels, and KL from the teacher at a temperature."""
    kd = distill.on_logits(losses.kd, temperature=config.temperature)
    return {
        "ce": (config.hard_weight, distill.on_labels(distill.cross_entropy)),
        "kd": (config.soft_weight, kd),
    }


def with_cached_teacher(
    task: Task, teacher: Net, variables: Any, path: pathlib.Path | None = None
) -> Task:
    """The same data with the teacher's logits beside the images."""
    logits = train.cache_teacher(
        distill.frozen(teacher), variables, task.train, view=task.view, path=path
    )
    return task._replace(resident={**task.resident, "teacher": jnp.asarray(logits)})


def compare(
    name: str, config: Any, *, teacher: Net, student: Net, task: Task, together: bool
) -> dict[str, float]:
    """Trains a teacher, the student alone and distilled; prints and writes the table.

    Args:
      name: of the experiment and its run directory.
      config: has `temperature`, `hard_weight`, `soft_weight`, `learning_rate`,
        `batch_size`, `teacher_epochs`, `epochs`, `seeds`, `teacher` and `out`.
      teacher: the large network; one is trained, from seed 0.
      student: the small network; `seeds` pairs are trained from the same weights.
      task: the data.
      together: whether the students are trained by vmap, or one after another.

    Returns:
      The mean accuracies after the last epoch, by name.
    """
    directory = run_directory(config.out, name)
    write = log.start(directory, config)
    tx = optax.adam(config.learning_rate)
    trainer = Trainer(tx, config.batch_size, write, directory, together)
    taught = trainer("teacher", teacher, task, seeds=1, epochs=config.teacher_epochs)
    budget = {"seeds": config.seeds, "epochs": config.epochs}
    alone = trainer("alone", student, task, **budget)
    spec, variables = kd_spec(config), first(taught)
    if config.teacher == "cached":
        with_logits = with_cached_teacher(
            task, teacher, variables, directory / "logits"
        )
        using: dict[str, Any] = {"teacher": distill.cached}
    else:
        with_logits = task
        using = {"teacher": distill.frozen(teacher), "teacher_variables": variables}
    distilled = trainer("distilled", student, with_logits, spec=spec, **using, **budget)

    costs = size_and_speed(student, alone, task)
    rows = [
        row("teacher", taught, size_and_speed(teacher, taught, task)),
        row("student alone", alone, costs),
        row("student distilled", distilled, costs),
    ]
    curves = {"alone": 100 * curve(alone), "distilled": 100 * curve(distilled)}
    write_report(
        directory,
        f"{name}: {task.test.name}, {len(task.test.images):,} {task.test.split} images",
        rows,
        {"student": curves},
        [gain_sentence(distilled, alone)],
    )
    runs = {"teacher": taught, "alone": alone, "distilled": distilled}
    return {label: float(final(run).mean()) for label, run in runs.items()}


def write_report(
    directory: pathlib.Path,
    title: str,
    rows: report.Rows,
    panels: dict[str, dict[str, np.ndarray]],
    sentences: list[str],
) -> None:
    """Prints the table and the sentences; writes them with a picture to `report.md`."""
    report.show(rows, title)
    print(*sentences, sep="\n")
    drawn = report.curves(directory / "curves.png", panels, y_label="test accuracy, %")
    picture = "![Test accuracy by epoch](curves.png)\n\n" if drawn else ""
    notes = "".join(f"* {sentence}\n" for sentence in sentences)
    made = "".join(f"* {name}: {value}\n" for name, value in log.versions().items())
    (directory / "report.md").write_text(
        f"# {title}\n\n{report.markdown(rows)}\nAccuracy after the last epoch, mean ± "
        f"standard deviation over seeds.\n\n{notes}\n{picture}{made}"
    )
    print(f"report: {directory / 'report.md'}")


def run_directory(base: str, name: str) -> pathlib.Path:
    """A new directory under `base/name`, named by the time."""
    stamp = datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    directory = pathlib.Path(base) / name / stamp
    suffix = 1
    while directory.exists():
        suffix += 1
        directory = directory.with_name(f"{stamp}_{suffix}")
    return directory
