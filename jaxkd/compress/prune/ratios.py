"""Which units to remove: by a ratio for each group, or to meet a target.

`counts`, `lowest` and `choose` take ratios. `uniform` and `global_threshold` find the
least removal that meets a target, as `sensitivity` does; they share `by_threshold`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jax.typing import ArrayLike

from jaxkd import _check
from jaxkd.compress.prune.plan import Group, Plan
from jaxkd.compress.prune.targets import Target, check_scores

Ratios = float | Mapping[str, float] | Sequence[float] | np.ndarray


def counts(plan: Plan, ratios: Ratios, *, round_to: int = 8) -> np.ndarray:
    """Return how many units of each group to keep.

    Args:
      plan: from `analyse`.
      ratios: which part of its units a group is to lose, in [0, 1): one number for all,
        one for each group in order, or from names of groups to numbers (0 for others).
      round_to: the channels kept are a multiple of it, the nearest, or all; processors
        compute eight channels about as fast as seven. A group with at least
        `round_to` channels keeps at least `round_to`; a smaller one is not rounded and
        keeps at least one unit.

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
    """Return the units with the lowest scores of each group, all but `kept` of them.

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
    """Return the units to remove so that each group loses its ratio.

    That is `lowest` of `counts`.

    Args:
      plan: from `analyse`.
      scores: one for each unit, from `criteria`.
      ratios: which part of its units a group loses (see `counts`).
      round_to: see `counts`.

    Returns:
      The numbers of the units to remove, in ascending order.
    """
    return lowest(plan, scores, counts(plan, ratios, round_to=round_to))


def uniform(plan: Plan, scores: ArrayLike, target: Target) -> np.ndarray:
    """Remove the same ratio of the units of every group, the least that meets a target.

    A group of n units keeps, at ratio r, the smallest width allowed of at least
    (1 - r) n. The ratio is found by bisection over those at which a width changes. As
    widths change in steps, the cost may then be below the target: groups get their last
    step back while the target is met, those that lost the largest share first.

    Args:
      plan: of the network.
      scores: of each unit, from `criteria`; in each group the lowest go. `[units]`
      target: from `target`.

    Returns:
      The numbers of the units to remove; the target is met.

    Raises:
      ValueError: if the scores do not fit the plan.

    References:
      H. Li, A. Kadav, I. Durdanovic, H. Samet, H. P. Graf. Pruning Filters for
      Efficient ConvNets. 2017. https://arxiv.org/abs/1608.08710
    """
    scores = check_scores(plan, scores)
    prices = [1 - widths / widths[-1] for widths in target.widths]
    return lowest(plan, scores, by_threshold(target, prices))


def global_threshold(
    plan: Plan, scores: ArrayLike, target: Target, *, normalise: str = "mean"
) -> np.ndarray:
    """Remove the units below one threshold on normalised scores.

    Raw scores of different layers are sums over different numbers of weights; divided
    by the mean (or the greatest) of their group they can be compared::

        s'_u = s_u / mean of s over the group of u

    Every group keeps at least the smallest width allowed. A group shrinks by a whole
    step when all units of the step are below the threshold. If the cost
    is then below the target, groups get steps back as in `uniform`, of the highest
    scores first.

    Args:
      plan: of the network.
      scores: of each unit, from `criteria`, >= 0. `[units]`
      target: from `target`.
      normalise: "mean", "max", or "none" for scores that can be compared as they are,
        such as those of a Taylor expansion.

    Returns:
      The numbers of the units to remove; the target is met.

    Raises:
      ValueError: if the scores do not fit the plan or are negative.

    References:
      P. Molchanov, S. Tyree, T. Karras, T. Aila, J. Kautz. Pruning Convolutional Neural
      Networks for Resource Efficient Inference. 2017. https://arxiv.org/abs/1611.06440
    """
    _check.one_of("mean", "max", "none")("normalise", normalise)
    scores = check_scores(plan, scores)
    if (scores < 0).any():
        raise ValueError(f"scores must be >= 0, got {scores.min()}")
    prices = []
    for group, widths in zip(plan.groups, target.widths, strict=True):
        own = np.sort(scores[group.units.start : group.units.stop])
        scale = {"mean": own.mean(), "max": own[-1], "none": 1.0}[normalise]
        own = own / (scale if scale > 0 else 1.0)  # a group of zeros goes first
        # Keeping w of n removes the n - w lowest; the greatest of them is the price.
        prices.append(np.append(own[len(own) - widths[:-1] - 1], 0.0))
    return lowest(plan, scores, by_threshold(target, prices))


def by_threshold(target: Target, prices: Sequence[np.ndarray]) -> np.ndarray:
    """Return the widths at the lowest price at which the target is met.

    Each width of each group has a price: the ratio removed, the loss predicted, the
    score of the best unit removed. At a threshold t every group has the smallest width
    whose price is at most t. The thresholds that make a difference are the prices
    themselves; they are bisected. As widths change in steps, the cost may then be
    below the target: groups get their last step back while the target is met, those of
    the highest price first.

    Args:
      target: to be met.
      prices: for each group one price for each of `target.widths`, falling with the
        width; 0 for the whole group, inf for a width that is not available.

    Returns:
      How many units each group keeps. It meets the target.

    Raises:
      ValueError: if the target is not met at the highest price, with the range that is
        reached.
    """
    whole = np.asarray([widths[-1] for widths in target.widths], np.int64)
    if target.met(whole):
        return whole
    finite = [p[np.isfinite(p)] for p in prices]
    steps = np.unique(np.concatenate([np.zeros(0), *finite]))

    # Before the first step nothing is removed, though a price may be zero.
    def at(i: int) -> np.ndarray:
        return whole if i < 0 else _widths(target, prices, float(steps[i]))

    low, high = -1, len(steps) - 1
    if not target.met(at(high)):
        raise ValueError(
            f"{target.kind} <= {target.most:,.10g} cannot be met: this method reaches "
            f"{target.cost(at(high)):,.10g} to {target.whole:,.10g}"
        )
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if target.met(at(middle)) else (middle, high)
    return _filled(target, prices, at(high))


def _widths(target: Target, prices: Sequence[np.ndarray], limit: float) -> np.ndarray:
    smallest = [
        widths[np.flatnonzero(p <= limit)[0]]
        for widths, p in zip(target.widths, prices, strict=True)
    ]
    return np.asarray(smallest, np.int64)


def _filled(
    target: Target, prices: Sequence[np.ndarray], kept: np.ndarray
) -> np.ndarray:
    """Widen by one step wherever the target leaves room, the dearest step first."""
    open_groups = set(range(len(kept)))
    while open_groups:
        paid = {g: _price(target.widths[g], prices[g], kept[g]) for g in open_groups}
        group = max(sorted(open_groups), key=paid.__getitem__)
        available = np.isfinite(prices[group]) & (target.widths[group] > kept[group])
        wider = kept.copy()
        wider[group] = min(target.widths[group][available], default=0)
        if wider[group] and target.met(wider):
            kept = wider
        else:
            open_groups.remove(group)
    return kept


def _price(widths: np.ndarray, prices: np.ndarray, width: int) -> float:
    return float(prices[np.searchsorted(widths, width)])


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
