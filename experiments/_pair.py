"""What the experiments on a teacher and its student share: data and training."""

import datetime
import pathlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

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


def run_directory(base: str, name: str) -> pathlib.Path:
    """A new directory under `base/name`, named by the time."""
    stamp = datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    directory = pathlib.Path(base) / name / stamp
    suffix = 1
    while directory.exists():
        suffix += 1
        directory = directory.with_name(f"{stamp}_{suffix}")
    return directory
