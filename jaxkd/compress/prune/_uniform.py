"""Uniform pruning: the same share of every group."""

import numpy as np
from jax.typing import ArrayLike

from jaxkd.compress.prune._threshold import by_threshold
from jaxkd.compress.prune.choose import lowest
from jaxkd.compress.prune.plan import Plan
from jaxkd.compress.prune.targets import Target, check_scores


def uniform(plan: Plan, scores: ArrayLike, target: Target) -> np.ndarray:
    """Removes the same ratio of the units of every group: the least that will do.

    A group of n units keeps, at ratio r, the smallest width allowed of at least
    (1 - r) n. The ratio is found by bisection over those at which a width changes. As
    widths come in steps, that may leave room under the target: then groups get their
    last step back, those that lost the largest share first, while it fits.

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
