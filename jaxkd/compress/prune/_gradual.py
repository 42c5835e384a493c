"""Gradual pruning: channels fade to zero while the network trains, then they go."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from jaxkd import _check
from jaxkd.compress.prune.plan import Plan

Share = Callable[[Array], Array]  # from the step to the share that is zero by then


class GradualState(NamedTuple):
    """The state of a wrapped optimiser.

    Attributes:
      step: how many updates have been made.
      inner: the optimiser's own.
    """

    step: Array
    inner: Any


def cubic(begin: int, end: int, *, every: int = 1) -> Share:
    """The share of the channels that are zero after a step: fast first, then slower.

    With t the step, held for `every` steps at a time::

        share = 1 - (1 - (t - begin) / (end - begin))**3

    It is 0 until `begin` and 1 from `end` on.

    Args:
      begin: the step after which channels begin to go, >= 0.
      end: the step by which all are gone, > begin.
      every: how many steps lie between two changes, for the network to recover.

    Returns:
      A schedule, as optax has them.

    Example:
      >>> share = cubic(0, 10)
      >>> [round(float(share(t)), 3) for t in (0, 5, 10, 20)]
      [0.0, 0.875, 1.0, 1.0]

    References:
      M. Zhu, S. Gupta. To Prune, or Not to Prune: Exploring the Efficacy of Pruning for
      Model Compression. 2017. https://arxiv.org/abs/1710.01878 equation 1.
    """
    _check.whole(0)("begin", begin)
    _check.whole(begin + 1)("end", end)
    _check.whole(1)("every", every)

    def share(step: Any) -> Array:
        step = jnp.asarray(step)
        held = begin + (step - begin) // every * every
        passed = jnp.clip((held - begin) / (end - begin), 0.0, 1.0)
        passed = jnp.where(step >= end, 1.0, passed)
        return 1 - (1 - passed) ** 3

    return share


def gradual(
    tx: optax.GradientTransformation,
    plan: Plan,
    dropped: Iterable[int] | np.ndarray,
    share: Share,
) -> optax.GradientTransformationExtraArgs:
    """Wrap an optimiser so that channels become zero one after another, and stay so.

    In front of removal::

        tx = prune.gradual(optax.adam(1e-3), plan, dropped, prune.cubic(0, 1000))
        ...                                          # train for 1000 steps or more
        params, state = (plan.apply(tree, dropped) for tree in (params, state))

    From the step at which the share is 1, the network is the masked one: what is
    removed then contributes nothing. (BatchNorm without scale and offset is the
    exception: its running statistics still forget.)

    Args:
      tx: the optimiser.
      plan: of the network whose parameters are trained; they may lie anywhere in the
        tree, as in a `TrainState`.
      dropped: the units, in the order in which they are to go, e.g. by their scores:
        `sorted(dropped, key=lambda unit: scores[unit])`.
      share: from the number of updates made to the share of `dropped` that is zero,
        e.g. `cubic`.

    Returns:
      The optimiser; its state is a `GradualState`.

    Raises:
      ValueError: if `dropped` are not units of the plan, or a group would lose all; at
        `init` and `update`, if the parameters are not those of the plan.
    """
    order = np.asarray(list(dropped), np.int64)
    plan.apply(_shapes(plan), order)  # refuses what could not be removed
    place = np.full(plan.units, len(order), np.int32)
    place[order] = np.arange(len(order))
    inner = optax.with_extra_args_support(tx)

    def init(params: Any) -> GradualState:
        plan.mask(params, keep=jnp.ones(plan.units, bool))  # refuses another network
        return GradualState(jnp.zeros((), jnp.int32), inner.init(params))

    def update(
        updates: Any, state: GradualState, params: Any = None, **extra: Any
    ) -> tuple[Any, GradualState]:
        if params is None:
            raise ValueError("gradual needs the parameters: pass params to update")
        updates, changed = inner.update(updates, state.inner, params, **extra)
        step = state.step + 1
        gone = jnp.round(share(step) * len(order))
        keep = jnp.asarray(place) >= gone
        # p - (p - 0) is exactly zero, and what stays gets the optimiser's own update.
        away = jax.tree.map(jnp.subtract, params, plan.mask(params, keep=keep))
        updates = plan.mask(updates, keep=keep)
        return jax.tree.map(jnp.subtract, updates, away), GradualState(step, changed)

    return optax.GradientTransformationExtraArgs(init, update)


def _shapes(plan: Plan) -> dict[str, Any]:
    """Return the variables' shapes as a tree of nested dicts."""
    tree: dict[str, Any] = {}
    for leaf in plan.leaves:
        *above, last = leaf.path.split("/")
        node = tree
        for key in above:
            node = node.setdefault(key, {})
        node[last] = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    return tree
