"""Global pruning: the lowest scores of the whole network go."""

import numpy as np
from jax.typing import ArrayLike

from jaxkd import _check
from jaxkd.compress.prune._threshold import by_threshold
from jaxkd.compress.prune.choose import lowest
from jaxkd.compress.prune.plan import Plan
from jaxkd.compress.prune.targets import Target, check_scores


def globally(
    plan: Plan, scores: ArrayLike, target: Target, *, normalise: str = "mean"
) -> np.ndarray:
    """Removes the units below one threshold on normalised scores.

    Raw scores of different layers are sums over different numbers of weights; divided
    by the mean (or the greatest) of their group they can be compared::

        s'_u = s_u / mean of s over the group of u

    Every group keeps at least the smallest width allowed. A group shrinks by a whole
    step when all units of the step are below the threshold. What room that leaves under
    the target is filled as in `uniform`, with the dearest steps first.

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
