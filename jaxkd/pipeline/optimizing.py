"""From a stage's optimizer and schedule to an optax transformation."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import optax

from jaxkd import transfer
from jaxkd.pipeline.parts import Optimizer, Schedule

if TYPE_CHECKING:  # it has an optimiser itself
    from jaxkd.pipeline.stages.training import Training


def of(
    stage: "Training", steps: int, *, epochs: int | None = None
) -> optax.GradientTransformation:
    """Return the optimiser of a stage, or of a part of it.

    Args:
      stage: as configured.
      steps: of an epoch.
      epochs: that the schedule spans; by default the stage's.
    """
    whole = stage.epochs if epochs is None else epochs
    rate = schedule(stage.schedule, stage.optimizer.rate, whole, steps)
    tx = transformation(stage.optimizer, rate)
    return _only(tx, stage.trains) if stage.trains else tx


def _only(
    tx: optax.GradientTransformation, patterns: Sequence[str]
) -> optax.GradientTransformation:
    """Move what fits the patterns in the student, and the terms' own parts."""

    def chosen(params: Any) -> optax.GradientTransformation:
        terms = ["terms/*"] if jax.tree.leaves(params["terms"]) else []
        return transfer.train_only(tx, [*(f"student/{p}" for p in patterns), *terms])

    def init(params: Any) -> Any:
        try:
            return chosen(params).init(params)
        except ValueError as error:
            raise ValueError(f"trains: {error}") from error

    return optax.GradientTransformation(
        init,
        lambda updates, state, params: chosen(params).update(updates, state, params),
    )


def transformation(
    optimizer: Optimizer, rate: float | optax.Schedule
) -> optax.GradientTransformation:
    """Return the optimiser at a rate that may depend on the step."""
    decay = optimizer.weight_decay
    if optimizer.kind == "sgd":
        momentum = optimizer.momentum or None
        tx = optax.sgd(rate, momentum=momentum, nesterov=optimizer.nesterov)
    elif optimizer.kind == "adamw":
        return _clipped(optimizer, optax.adamw(rate, weight_decay=decay))
    else:
        tx = optax.adam(rate)
    if decay:
        tx = optax.chain(optax.add_decayed_weights(decay), tx)
    return _clipped(optimizer, tx)


def _clipped(optimizer, tx):
    if not optimizer.clip:
        return tx
    return optax.chain(optax.clip_by_global_norm(optimizer.clip), tx)


def schedule(
    schedule: Schedule, rate: float, epochs: int, steps: int
) -> float | optax.Schedule:
    """Return the learning rate of a stage, by the step."""
    rising = round(schedule.warmup * steps)
    total = max(1, epochs * steps - rising)
    after: float | optax.Schedule = rate
    if schedule.kind == "cosine":
        after = optax.cosine_decay_schedule(rate, total, schedule.end)
    elif schedule.kind == "linear":
        after = optax.linear_schedule(rate, schedule.end * rate, total)
    elif schedule.kind == "steps":
        drops = {int(at * total): schedule.factor for at in schedule.at}
        after = optax.piecewise_constant_schedule(rate, drops)
    if not rising:
        return after
    then = after if callable(after) else optax.constant_schedule(after)
    warmup = optax.linear_schedule(rate / rising, rate, max(1, rising - 1))
    return optax.join_schedules([warmup, then], [rising])
