"""Mean teacher: the moving average of the student teaches the student (2017).

The teacher is part of the state, under `state.state["teacher"]`, and moves once a step
after the student has. The paper's objective is the cross-entropy on what is labelled
and the squared distance of the probabilities on everything, with a growing weight::

    spec = {
        "ce": (1.0, distill.on_labels(losses.cross_entropy)),
        "consistency": (
            optax.linear_schedule(0.0, 10.0, 400),
            distill.on_logits(losses.probability_mse),
        ),
    }
    d = self_teacher.distiller(net, spec, optax.adam(1e-3), decay=0.99)
    state = d.init(key, None, batch)

A label of -1 marks an example without one: `losses.cross_entropy` gives it the loss 0.

Both are worth measuring; the average is what one keeps::

    score = evaluate.scorer(net, resident, view=view)
    score(state), score(self_teacher.promoted(state))
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array

from jaxkd import _check, distill
from jaxkd.distill import Distiller, Spec, Teacher, TrainState
from jaxkd.models.net import Net
from jaxkd.types import Batch, Metrics, Params, State


def distiller(
    student: Net,
    spec: Spec,
    tx: optax.GradientTransformation,
    *,
    decay: float = 0.999,
    mode: str = "warm_up",
    as_teacher: Callable[[Net], Teacher] = distill.frozen,
) -> Distiller:
    """Train a network against the exponential moving average of itself.

    With x the student's parameters and batch statistics after update t = 0, 1, ..., and
    y the teacher's, equal to x before the first::

        y <- d_t * y + (1 - d_t) * x

    where d_t is `decay_at(t, decay, mode)`. No gradient reaches the teacher. What is no
    real number, such as a counter, is copied. The average is kept in float32 at least:
    in half precision it would stand still.

    Args:
      student: the network to train.
      spec: the objective; the teacher of its terms is the average before this update.
      tx: the optimiser of the student and the terms.
      decay: in (0, 1); about 1 / (1 - decay) updates are remembered.
      mode: "warm_up" or "corrected"; see `decay_at`.
      as_teacher: how a network with fixed variables teaches. By default in inference
        mode, on the student's images. (In the paper, teacher and student have different
        noise: write a teacher that looks at another field of the batch for that.)

    Returns:
      The pair of `init` and `step`; teacher variables are None. The metrics are those
      of `distill.distiller`.

    Raises:
      ValueError: if `decay` or `mode` is out of its range, or the spec is empty; at
        `init`, if the spec does not fit.

    References:
      Tarvainen, Valpola. `Mean teachers are better role models: Weight-averaged
      consistency targets improve semi-supervised deep learning results
      <https://arxiv.org/abs/1703.01780>`_, 2017.
    """
    _check.open_unit("decay", decay)
    _check.one_of(*_DECAYS)("mode", mode)
    own = distill.distiller(student, as_teacher(student), spec, tx)

    def init(key: Array, teacher_variables: None, batch: Batch) -> TrainState:
        # The first teacher is the student itself, whose start no spec changes.
        first = _widened(distill.initialize(student, key, batch))
        return _with_teacher(own.init(key, first, batch), first)

    def step(
        state: TrainState, teacher_variables: None, batch: Batch
    ) -> tuple[TrainState, Metrics]:
        average = variables(state)
        new, metrics = own.step(state, average, batch)
        d = decay_at(state.step, decay, mode)
        average = jax.tree.map(lambda y, x: _blend(d, y, x), average, new.student)
        return _with_teacher(new, average), metrics

    return Distiller(init, step, own.check)


def decay_at(step: ArrayLike, decay: ArrayLike, mode: str = "warm_up") -> Array:
    """Return the decay of the moving average at a step, which begins small.

    With t the number of updates before this one::

        warm_up:    min(decay, (1 + t) / (10 + t))
        corrected:  decay * (1 - decay**t) / (1 - decay**(t + 1))

    Both forget the student's random start. The second is exact: the teacher is then the
    mean of the student after each of its updates, with weights decay**age, and equals
    the student after the first one. This is the usual division of an average that began
    at zero by 1 - decay**t, done as it goes on.

    Args:
      step: t >= 0.
      decay: in (0, 1).
      mode: "warm_up" or "corrected".

    Returns:
      The decay, float32, in [0, decay].

    Raises:
      ValueError: if `decay` or `mode` is out of its range.

    Example:
      >>> print(decay_at(0, 0.999), decay_at(8, 0.999).round(4), decay_at(10**6, 0.999))
      0.1 0.5 0.999
      >>> print(decay_at(0, 0.5, "corrected"), decay_at(1, 0.5, "corrected").round(4))
      0.0 0.3333
    """
    _check.open_unit("decay", decay)
    _check.one_of(*_DECAYS)("mode", mode)
    return _DECAYS[mode](jnp.asarray(step, jnp.float32), jnp.asarray(decay))


def _warm_up(t: Array, decay: Array) -> Array:
    return jnp.minimum(decay, (1 + t) / (10 + t))


def _corrected(t: Array, decay: Array) -> Array:
    log = jnp.log(decay)
    # expm1 keeps the digits of 1 - decay**t when decay is close to 1.
    return decay * jnp.expm1(t * log) / jnp.expm1((t + 1) * log)


_DECAYS = {"warm_up": _warm_up, "corrected": _corrected}


def variables(state: TrainState) -> tuple[Params, State]:
    """Return the teacher's variables: `(params, state)` of the averaged network."""
    teacher = state.state["teacher"]
    return teacher["params"], teacher["state"]


def promoted(state: TrainState) -> TrainState:
    """The state with the teacher in the student's place, to be scored or exported."""
    params, statistics = variables(state)
    return state._replace(
        params={**state.params, "student": params},
        state={**state.state, "student": statistics},
    )


def _with_teacher(state: TrainState, average: tuple[Params, State]) -> TrainState:
    params, statistics = average
    teacher = {"params": params, "state": statistics}
    return state._replace(state={**state.state, "teacher": teacher})


def _widened(tree: Any) -> Any:
    """Return a copy, with real numbers in float32 at least."""

    def widen(x: Array) -> Array:
        real = jnp.issubdtype(x.dtype, jnp.floating)
        # A copy, because a donated state must not hold one buffer twice.
        return jnp.array(x, jnp.promote_types(x.dtype, "float32") if real else x.dtype)

    return jax.tree.map(widen, tree)


def _blend(decay: Array, y: Array, x: Array) -> Array:
    if not jnp.issubdtype(y.dtype, jnp.floating):
        return x
    return y + (1 - decay).astype(y.dtype) * (x.astype(y.dtype) - y)
