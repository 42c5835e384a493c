"""Which units to remove, from scores and how much of each group is to go."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jax.typing import ArrayLike

from jaxkd import _check
from jaxkd.compress.prune.plan import Group, Plan

Ratios = float | Mapping[str, float] | Sequence[float] | np.ndarray


def counts(plan: Plan, ratios: Ratios, *, round_to: int = 8) -> np.ndarray:
    """How many units of each group to keep.

    Args:
      plan: from `analyse`.
      ratios: which part of its units a group is to lose, in [0, 1): one number for all,
        one for each group in order, or from names of groups to numbers (0 for others).
      round_to: the channels kept are a multiple of it, the nearest, or all; processors
        compute eight channels about as fast as seven. A group with fewer is not
        rounded. A group that has so many keeps at least so many, and any keeps one.

    Returns:
      `int[groups]`.

    Raises:
      ValueError: if a ratio is outside [0, 1), or `round_to` is below one.
      KeyError: if there is no group of that name.

    Example:
      >>> from jaxkd.compress import prune
      >>> import jax.numpy as jnp
      >>> w = {"a": jnp.ones((3, 32)), "b": jnp.ones((32, 2))}
      >>> plan = prune.analyse(lambda w, x: x @ w["a"] @ w["b"], w, jnp.ones((1, 3)))
      >>> counts(plan, 0.4).tolist()  # 19.2, to the nearest multiple of 8
      [16]
    """
    _check.whole(1)("round_to", round_to)
    each = _ratios(plan, ratios)
    pairs = zip(plan.groups, each, strict=True)
    return np.array([_count(group, r, round_to) for group, r in pairs], np.int64)


def lowest(plan: Plan, scores: ArrayLike, kept: ArrayLike) -> np.ndarray:
    """The units with the lowest scores of each group, all but so many.

    Args:
      plan: from `analyse`.
      scores: one for each unit, from `criteria`.
      kept: how many units of each group to keep, at least one.

    Returns:
      The numbers of the units to remove, in ascending order.

    Raises:
      ValueError: if shapes or counts do not fit the plan, or a score is not a number.
    """
    values, left = np.asarray(scores, np.float64), np.asarray(kept)
    if values.shape != (plan.units,) or np.isnan(values).any():
        raise ValueError(
            f"scores must be {plan.units} numbers, one for each unit, got shape "
            f"{values.shape} with {np.isnan(values).sum()} not numbers"
        )
    sizes = np.array([len(group.units) for group in plan.groups], np.int64)
    if left.shape != sizes.shape or (left < 1).any() or (left > sizes).any():
        raise ValueError(
            f"kept must be from 1 to {sizes.tolist()}, got {left.tolist()}"
        )
    out = [np.zeros(0, np.int64)]
    for group, n in zip(plan.groups, left, strict=True):
        inside = values[group.units.start : group.units.stop]
        order = np.argsort(inside, kind="stable")
        out.append(group.units.start + order[: len(inside) - int(n)])
    return np.sort(np.concatenate(out))


def choose(
    plan: Plan, scores: ArrayLike, ratios: Ratios, *, round_to: int = 8
) -> np.ndarray:
    """The units to remove so that each group loses its ratio: `lowest` of `counts`.

    Args:
      plan: from `analyse`.
      scores: one for each unit, from `criteria`.
      ratios: which part of its units a group loses (see `counts`).
      round_to: see `counts`.

    Returns:
      The numbers of the units to remove, in ascending order.
    """
    return lowest(plan, scores, counts(plan, ratios, round_to=round_to))


def _count(group: Group, ratio: float, round_to: int) -> int:
    total = len(group.units)
    step = round_to // np.gcd(round_to, group.each)
    wanted = total * (1 - ratio)
    if total < step:
        return max(1, round(wanted))
    choices = np.array([*range(step, total, step), total])
    return int(choices[np.abs(choices - wanted).argmin()])


def _ratios(plan: Plan, ratios: Any) -> np.ndarray:
    if isinstance(ratios, Mapping):
        for name in ratios:
            plan.group(name)
        ratios = [ratios.get(group.name, 0.0) for group in plan.groups]
    each = np.asarray(ratios, np.float64)
    if each.shape not in ((), (len(plan.groups),)):
        raise ValueError(
            f"ratios must be one number or {len(plan.groups)}, one for each group, got "
            f"shape {each.shape}"
        )
    if not ((each >= 0) & (each < 1)).all():
        raise ValueError(f"ratios must be in [0, 1), got {ratios}")
    return np.broadcast_to(each, (len(plan.groups),))
