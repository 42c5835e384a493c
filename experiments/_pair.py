"""What the experiments on a teacher and its student share: data, training, the plan."""

import pathlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments import _outcome as outcome
from jaxkd import checkpoint, data, distill, evaluate, log, losses, train
from jaxkd.data import augment
from jaxkd.models import Net
from jaxkd.types import Batch


class Task(NamedTuple):
    """Data on the host and on the device, and how networks see it."""

    train: data.Dataset
    test: data.Dataset
    resident: Batch
    resident_test: Batch
    view: augment.View


def task(train_set: data.Dataset, test_set: data.Dataset, view: augment.View) -> Task:
    """Puts both splits on the device."""
    on_device = data.on_device
    return Task(train_set, test_set, on_device(train_set), on_device(test_set), view)


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """Ends the program with one line where an argument or missing data is to blame."""
    try:
        yield
    except (ValueError, KeyError, OSError, ImportError) as error:
        raise SystemExit(f"{what}: {error}") from error


def splits(config: Any) -> tuple[data.Dataset, data.Dataset]:
    """The training and test data that a Config's fields name.

    Hyper-parameters are to be chosen with `evaluate_on="validation"`: the held-out
    slice of the training set is then left out of the training data.

    Raises:
      SystemExit: if they cannot be had; the message says what to do.
    """
    choosing = config.evaluate_on == "validation"
    where = {"archives": config.archives, "data_dir": config.data_dir}
    with refusing("no data"):
        train_set = data.load(
            config.dataset, "train_rest" if choosing else "train", **where
        )
        if config.train_images is not None:
            train_set = data.subset(train_set, config.train_images, seed=0)
        return train_set, data.load(config.dataset, config.evaluate_on, **where)


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
    ) -> train.Run:
        """Trains `net` from seeds 0, 1, ...: the same initial weights for every spec.

        Without a spec, on the labels alone.
        """
        spec = spec or {"ce": (1.0, distill.on_labels(losses.cross_entropy))}
        d = distill.distiller(net, teacher, spec, self.tx)
        keys = jax.vmap(jax.random.key)(jnp.arange(seeds))
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
        folder = self.directory / re.sub("[^a-z0-9]+", "_", name)
        checkpoint.save(folder, {"params": params, "state": state})
        if run.interrupted:
            raise SystemExit(
                f"interrupted after epoch {len(run.history)} of {name}; what was "
                f"trained is in {self.directory}"
            )
        return run

    def rehearse(
        self, teacher: Net, student: Net, task: Task, spec: distill.Spec
    ) -> None:
        """Traces the distilling epoch without running it, before a teacher is trained.

        Raises:
          SystemExit: if a number is out of its range, the batch larger than the data,
            or the networks do not fit together.
        """
        batch = jax.eval_shape(lambda r: train.example(r, task.view), task.resident)
        key = jax.random.key(0)
        variables = jax.eval_shape(teacher.init, key, batch["image"])
        with refusing("cannot train"):
            d = distill.distiller(student, distill.frozen(teacher), spec, self.tx)
            state = jax.eval_shape(d.init, key, variables, batch)
            epoch = train.make_epoch(d, view=task.view, batch_size=self.batch_size)
            jax.eval_shape(epoch, state, variables, task.resident, key)


def kd_spec(config: Any) -> distill.Spec:
    """Cross-entropy with the labels, and KL from the teacher at a temperature."""
    kd = distill.on_logits(losses.kd, temperature=config.temperature)
    return {
        "ce": (config.hard_weight, distill.on_labels(losses.cross_entropy)),
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
    directory = outcome.run_directory(config.out, name)
    write = log.start(directory, config)
    tx, spec = optax.adam(config.learning_rate), kd_spec(config)
    trainer = Trainer(tx, config.batch_size, write, directory, together)
    trainer.rehearse(teacher, student, task, spec)
    taught = trainer("teacher", teacher, task, seeds=1, epochs=config.teacher_epochs)
    budget: dict[str, Any] = {"seeds": config.seeds, "epochs": config.epochs}
    alone = trainer("alone", student, task, **budget)
    variables = outcome.first(taught)
    if config.teacher == "cached":
        source = with_cached_teacher(task, teacher, variables, directory / "logits")
        using: dict[str, Any] = {"teacher": distill.cached}
    else:
        source = task
        using = {"teacher": distill.frozen(teacher), "teacher_variables": variables}
    distilled = trainer("distilled", student, source, spec=spec, **using, **budget)

    test, view = task.test, task.view
    costs = outcome.costs(student, outcome.first(alone), test, view)
    rows = [
        outcome.row("teacher", taught, outcome.costs(teacher, variables, test, view)),
        outcome.row("student alone", alone, costs),
        outcome.row("student distilled", distilled, costs),
    ]
    lines = {"alone": outcome.curve(alone), "distilled": outcome.curve(distilled)}
    outcome.write_report(
        directory,
        f"{name}: {test.name}, {len(test.images):,} {test.split} images",
        rows,
        {"student": lines},
        [outcome.gain_sentence(distilled, alone)],
    )
    runs = {"teacher": taught, "alone": alone, "distilled": distilled}
    return {label: float(outcome.final(run).mean()) for label, run in runs.items()}
