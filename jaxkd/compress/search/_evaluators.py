"""What a candidate is worth: a short training, on labels or from a teacher."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from jaxkd import _check, distill, evaluate, losses, train
from jaxkd.compress.search._controller import Tokens
from jaxkd.compress.search._space import Space
from jaxkd.data.augment import View
from jaxkd.models.net import Net
from jaxkd.types import Batch

LABELS: distill.Spec = {"ce": (1.0, distill.on_labels(losses.cross_entropy))}


class Course(NamedTuple):
    """How every candidate of a search is trained and measured.

    Attributes:
      resident: the training data, from `data.on_device`; with `distill.cached` as the
        teacher, with its logits beside the images.
      held_out: the data that rewards are measured on: a validation slice, never the
        test set.
      view: how networks see the images in training.
      plain: how they see them when measured; not random.
      tx: the optimiser.
      batch_size: examples in a step.
      spec: the objective; by default the labels alone.
      teacher: who teaches, `distill.no_teacher` by default.
      teacher_variables: the teacher's.
    """

    resident: Batch
    held_out: Batch
    view: View
    plain: View
    tx: optax.GradientTransformation
    batch_size: int
    spec: distill.Spec = LABELS
    teacher: distill.Teacher = distill.no_teacher
    teacher_variables: Any = None


def short_training(
    space: Space, course: Course, *, epochs: int, seeds: int = 1, first_seed: int = 0
) -> Callable[[Tokens], dict[str, Any]]:
    """Build the evaluator that trains a candidate for a few epochs.

    One compiled program makes the variables, trains and measures; the data are its
    arguments, on the device once for the whole search. With a teacher in the course it
    is a short distillation.

    Args:
      space: makes the networks.
      course: the data and the recipe.
      epochs: how many, >= 1.
      seeds: trainings of each candidate, one after another.
      first_seed: of these; the others follow.

    Returns:
      From tokens to `{"reward", "accuracy", "loss", "diverged"}`: the reward is the
      mean accuracy on the held-out data, that of a seed whose loss was not finite being
      0; "accuracy" is that of each seed, "loss" the mean of the last epoch. It raises a
      FloatingPointError if no seed had a finite loss.
    """
    _check.whole(1)("epochs", epochs)
    _check.whole(1)("seeds", seeds)
    _check.whole(0)("first_seed", first_seed)

    def evaluation(tokens: Tokens) -> dict[str, Any]:
        accuracies, losses = trained(
            space.net(tokens), course, epochs, seeds, first_seed
        )
        finite = np.isfinite(losses).all(-1)
        if not finite.any():
            epoch = int(np.isfinite(losses[0]).argmin()) + 1
            raise FloatingPointError(
                f"the loss is {losses[0, epoch - 1]} in epoch {epoch}: lower the "
                "learning rate"
            )
        return {
            "reward": float(np.where(finite, accuracies, 0.0).mean()),
            "accuracy": accuracies.tolist(),
            "loss": float(losses[:, -1].mean()) if finite.all() else None,
            "diverged": bool(not finite.all()),
        }

    return evaluation


def trained(
    net: Net, course: Course, epochs: int, seeds: int, first_seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Accuracies `[seeds]` and the epochs' mean losses `[seeds, epochs]`."""
    keys = jnp.stack([key_of(first_seed + i) for i in range(seeds)])
    found = once(training_program(net, course, epochs))(
        keys, course.teacher_variables, course.resident, course.held_out
    )
    return np.asarray(found[0], float), np.asarray(found[1], float)


def once(f: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles a program of one candidate, that runs for some seconds and not again.

    On a CPU half of the compilation would go into optimisations that convolutions and
    matrix products do not profit from.
    """
    quick = {"xla_backend_optimization_level": 1}
    on_cpu = jax.default_backend() == "cpu"
    return jax.jit(f, compiler_options=quick if on_cpu else None)


def key_of(seed: int) -> Array:
    """Return the key of one training.

    Its generator is compiled in a quarter of the default one's time; half of what a
    small network takes to compile is the drawing of its weights. The streams of its
    splits are not proven independent, which a short training does not ask for.
    """
    return jax.random.key(seed, impl="unsafe_rbg")


def training_program(net: Net, course: Course, epochs: int) -> Callable[..., Any]:
    """Return the whole training of a candidate as a pure function, to be compiled once.

    Returns:
      `(keys, teacher_variables, resident, held_out) -> (accuracy [seeds],
      loss [seeds, epochs])`.
    """
    d = distill.distiller(net, course.teacher, course.spec, course.tx)
    epoch = train.make_epoch(d, view=course.view, batch_size=course.batch_size)

    def whole(key: Array, teacher_variables, resident, held_out):
        init_key, order_key = jax.random.split(key)
        example = train.example(resident, course.plain)
        state = d.init(init_key, teacher_variables, example)

        def one(state, key):
            state, metrics = epoch(state, teacher_variables, resident, key)
            return state, metrics["loss"].mean()

        state, losses = jax.lax.scan(one, state, jax.random.split(order_key, epochs))
        variables = state.student
        logits = evaluate.predict(
            distill.frozen(net), variables, held_out, view=course.plain
        )
        return evaluate.accuracy(logits, held_out["label"]), losses

    def over_seeds(keys: Array, *shared):
        # One after another: grouped convolutions, which vmap makes, are slow on CPU.
        return jax.lax.map(lambda key: whole(key, *shared), keys)

    return over_seeds
