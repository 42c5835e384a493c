"""One threshold for all groups: what uniform, sensitivity and global pruning share."""

from collections.abc import Sequence

import numpy as np

from jaxkd.compress.prune.targets import Target


def by_threshold(target: Target, prices: Sequence[np.ndarray]) -> np.ndarray:
    """The widths at the lowest price at which the target is met.

    Each width of each group has a price: the ratio removed, the loss predicted, the
    score of the best unit removed. At a threshold t every group has the smallest width
    whose price is at most t. The thresholds that make a difference are the prices
    themselves; they are bisected. As widths come in steps, that may leave room under
    the target: then groups get their last step back, the dearest first, while it fits.

    Args:
      target: to be met.
      prices: for each group one price for each of `target.widths`, falling with the
        width; 0 for the whole group, inf for a width that is not to be had.

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
    """Widths one step wider wherever the target leaves room, the dearest step first."""
    open_groups = set(range(len(kept)))
    while open_groups:
        paid = {g: _price(target.widths[g], prices[g], kept[g]) for g in open_groups}
        group = max(sorted(open_groups), key=paid.__getitem__)
        to_be_had = np.isfinite(prices[group]) & (target.widths[group] > kept[group])
        wider = kept.copy()
        wider[group] = min(target.widths[group][to_be_had], default=0)
        if wider[group] and target.met(wider):
            kept = wider
        else:
            open_groups.remove(group)
    return kept


def _price(widths: np.ndarray, prices: np.ndarray, width: int) -> float:
    return float(prices[np.searchsorted(widths, width)])
