"""Measure batch statistics again: those of a whole network mislead a pruned one."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import _check, _tree
from jaxkd.data.augment import View
from jaxkd.models.net import Net
from jaxkd.types import Batch, Params, State

STATISTICS = "batch_stats"  # linen's name of the collection
IMAGES = 100  # in one pass


def recalibrated(
    net: Net,
    params: Params,
    state: State,
    resident: Batch,
    *,
    view: View,
    batch_size: int = IMAGES,
    seed: int = 0,
) -> State:
    """Give BatchNorm the statistics of a network as it is now, without a gradient.

    Each is the mean over the batches b of what a training pass finds there::

        mean = 1/B sum_b mean_b    variance = 1/B sum_b variance_b

    A pruned network that keeps the statistics of the whole one looks far worse than it
    is: after this, accuracies tell much more about those after fine-tuning.

    Args:
      net: the network; in training its BatchNorm normalises by the batch.
      params: its parameters; of a masked network as well as of a pruned one.
      state: its state. What is not a batch statistic stays as it is.
      resident: training images, from `data.on_device`; some hundred are enough.
      view: how the network sees them.
      batch_size: images in one pass; what is left over after the last whole batch is
        not used. All at once, if there are fewer.
      seed: of the view, and of dropout, which is drawn as in training.

    Returns:
      The new state; the old one if there are no batch statistics.

    Raises:
      ValueError: if a statistic does not move in training, naming it.

    Source: "adaptive batch normalization" of Li et al., "EagleEye: Fast Sub-net
    Evaluation for Efficient Neural Network Pruning", ECCV 2020,
    https://arxiv.org/abs/2007.02491.
    """
    _check.whole(1)("batch_size", batch_size)
    _check.whole(0)("seed", seed)
    kept = momenta(net, params, state, resident, view)
    anew = partial(averaged, net, view=view, batch_size=batch_size, seed=seed)
    return jax.jit(anew)(params, state, kept, resident)


def momenta(
    net: Net, params: Params, state: State, resident: Batch, view: View
) -> State:
    """Return how much of itself each batch statistic keeps in one training step.

    Raises:
      ValueError: if one keeps all: it does not move.
    """
    few = jax.tree.map(lambda a: a[:2], resident)

    @jax.jit
    def derivative(params: Params, state: State, few: Batch) -> State:
        moved = partial(_moved, net, params, state, few, view, jax.random.key(0))
        # A statistic s becomes m s + (1 - m) b, with b of the batch alone: linear in s.
        ones = jax.tree.map(jnp.ones_like, _statistics(state))
        return jax.jvp(moved, (_statistics(state),), (ones,))[1]

    kept = derivative(params, state, few)
    for path, leaf in _tree.flatten(kept).items():
        if not bool(jnp.all(leaf < 1)):
            raise ValueError(
                f"{path} does not move in training: its network cannot be recalibrated"
            )
    return kept


def averaged(
    net: Net,
    params: Params,
    state: State,
    kept: State,
    resident: Batch,
    *,
    view: View,
    batch_size: int,
    seed: int,
) -> State:
    """Return the new state, from what `momenta` says; pure."""
    n = len(resident["image"])
    size = min(batch_size, n)
    batches = n // size
    nothing = jax.tree.map(jnp.zeros_like, _statistics(state))

    def add(total: State, i: jax.Array) -> tuple[State, None]:
        batch = jax.tree.map(
            lambda a: jax.lax.dynamic_slice_in_dim(a, i * size, size), resident
        )
        key = jax.random.fold_in(jax.random.key(seed), i)
        found = _moved(net, params, state, batch, view, key, nothing)
        return jax.tree.map(jnp.add, total, found), None

    total, _ = jax.lax.scan(add, nothing, jnp.arange(batches))
    new = jax.tree.map(lambda t, m: t / ((1 - m) * batches), total, kept)
    return _with(state, new)


def _moved(net, params, state, batch, view, key, statistics) -> State:
    """Return the batch statistics after one training pass."""
    for_view, for_net = jax.random.split(key)
    x = view(for_view, batch)["image"]
    _, after = net.apply(params, _with(state, statistics), x, train=True, key=for_net)
    return _statistics(after)


def _statistics(state: State) -> dict[str, Any]:
    """Return the batch statistics of a state, by their paths."""
    leaves = _tree.flatten(state)
    return {path: a for path, a in leaves.items() if STATISTICS in path.split("/")}


def _with(state: State, statistics: dict[str, Any]) -> State:
    """Return the state with these batch statistics."""
    return _tree.map_with_path(lambda path, a: statistics.get(path, a), state)
