"""How a group of students is trained: one compiled epoch for all their knobs.

Temperature and weights are arguments of the epoch, so that another value does not
compile again, and the plain student is the one whose teacher weighs nothing.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments import _pair as pair
from experiments.studies import _nets, _probe
from experiments.studies._lab import Lab, Taught
from experiments.studies._probe import Metrics, Seen
from jaxkd import data, distill, losses, train
from jaxkd.models import Net
from jaxkd.types import Batch


class Knobs(NamedTuple):
    """The numbers of an objective."""

    hard: Any  # weight of the labels
    soft: Any  # weight of the teacher
    temperature: Any


def knobs(hard: float = 1.0, soft: float = 0.0, temperature: float = 1.0) -> Knobs:
    """These numbers, on the device; by default the plain student's."""
    return Knobs(*(jnp.float32(value) for value in (hard, soft, temperature)))


def configured(lab: Lab, **instead: float) -> Knobs:
    """The numbers of the command line, with some instead."""
    of = lab.config
    values = {
        "hard": of.hard_weight,
        "soft": of.soft_weight,
        "temperature": of.temperature,
    }
    return knobs(**{**values, **instead})


Soft = Callable[[Knobs], distill.Term]


def kl(knobs: Knobs) -> distill.Term:
    """KL from teacher to student, both softened: the usual soft term."""
    return distill.on_logits(losses.kd, temperature=knobs.temperature)


def nothing(_: Knobs) -> distill.Term:
    """No soft term: for a plain student where a live teacher would only cost time."""
    return distill.on_labels(lambda logits, labels: jnp.zeros(labels.shape))


class Novice(NamedTuple):
    """A student network with what is compiled once for all its courses.

    Attributes:
      net: the network.
      start: makes the states of several seeds from their keys.
      probe: says what a trained one sees in a test set.
    """

    net: Net
    start: Callable[[jax.Array], distill.TrainState]
    probe: _probe.Probe


def _spec(knobs: Knobs, soft: Soft) -> distill.Spec:
    return {
        "ce": (knobs.hard, distill.on_labels(losses.cross_entropy)),
        "kd": (knobs.soft, soft(knobs)),
    }


def novice(lab: Lab, spec: _nets.Spec | None = None) -> Novice:
    """The student network of the data set, or another."""
    net = _nets.build(spec or _nets.STUDENTS[lab.scale.dataset])
    tx = optax.adam(lab.config.learning_rate)
    # Soft terms have no variables: what is made with one starts any of them.
    d = distill.distiller(net, distill.nobody, _spec(knobs(), nothing), tx)
    batch = train.example(lab.task.resident, lab.task.view)
    start = jax.jit(jax.vmap(lambda key: d.init(key, None, batch)))
    return Novice(net, start, _probe.prober(net, lab.task.view))


class Students(NamedTuple):
    """Trained students, one a seed, and their measurements `[seeds]`."""

    name: str
    probe: _probe.Probe
    variables: Any
    metrics: Metrics

    def seed(self, i: int) -> Any:
        """The variables of one of them."""
        return jax.tree.map(lambda a: a[i], self.variables)

    def seen(self, resident_test: Batch) -> list[Seen]:
        """What each of them says about test data."""
        seeds = len(jax.tree.leaves(self.variables)[0])
        return [self.probe(self.seed(i), resident_test) for i in range(seeds)]

    def on(self, resident_test: Batch, teacher: Seen) -> Metrics:
        """Measures each of them on test data, beside what the teacher saw there."""
        label = resident_test["label"]
        return _probe.stack(
            [_probe.against(s, teacher, label) for s in self.seen(resident_test)]
        )


class Course(NamedTuple):
    """A compiled way to train students of one kind; see `course`."""

    lab: Lab
    novice: Novice
    epoch: train.Epoch

    def __call__(
        self,
        name: str,
        knobs: Knobs,
        taught: Taught,
        *,
        resident: Batch,
        variables: Any = None,
        epochs: int | None = None,
    ) -> Students:
        """Trains students from seeds 0, 1, ... and measures them on the test set.

        Args:
          name: of theirs, in the log.
          knobs: weights and temperature.
          taught: the teacher that they are compared with.
          resident: their images, with the teacher's logits if those are cached.
          variables: the teacher's, where it is live.
          epochs: instead of the configured ones.
        """
        scale = self.lab.scale
        keys = jax.vmap(jax.random.key)(jnp.arange(scale.seeds))
        with pair.refusing("cannot train"):
            run = train.fit(
                self.epoch,
                self.novice.start(keys),
                (knobs, variables),
                resident,
                key=keys,
                epochs=epochs or scale.epochs,
                log=self.lab.log,
                name=name,
            )
        if run.interrupted:
            raise SystemExit(f"interrupted after epoch {len(run.history)} of {name}")
        trained = (run.state.params["student"], run.state.state["student"])
        students = Students(name, self.novice.probe, trained, {})
        metrics = students.on(self.lab.task.resident_test, taught.seen)
        self.lab.log({"run": name, **_probe.listed(metrics)})
        return students._replace(metrics=metrics)


def course(
    lab: Lab,
    novice: Novice,
    *,
    soft: Soft = kl,
    teacher: distill.Teacher = distill.cached,
    view: data.augment.View | None = None,
) -> Course:
    """Builds how students are trained: one compilation, whatever their knobs.

    Args:
      lab: where.
      novice: the student.
      soft: the term against the teacher.
      teacher: cached, or live where the view is random.
      view: of student and teacher in training; the test view if None.
    """
    tx = optax.adam(lab.config.learning_rate)

    def step(state: distill.TrainState, of: tuple[Knobs, Any], batch: Batch) -> tuple:
        knobs, variables = of
        d = distill.distiller(novice.net, teacher, _spec(knobs, soft), tx)
        return d.step(state, variables, batch)

    epoch = train.make_epoch(
        distill.Distiller(_elsewhere, step),
        view=view or lab.task.view,
        batch_size=lab.scale.batch_size,
    )
    return Course(lab, novice, train.over_seeds(epoch, together=lab.together))


def _elsewhere(*_: Any) -> distill.TrainState:
    raise AssertionError("`Novice.start` makes the states")


def with_logits(lab: Lab, taught: Taught) -> Batch:
    """The students' images with the teacher's logits beside them."""
    return pair.with_cached_teacher(lab.task, taught.net, taught.variables).resident
