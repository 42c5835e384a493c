"""Searched pruning: a ratio for each group, found by trying."""

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.typing import ArrayLike

from jaxkd import store
from jaxkd.compress import search as searches
from jaxkd.compress.prune.metric import Metric
from jaxkd.compress.prune.plan import Plan
from jaxkd.compress.prune.ratios import by_threshold, lowest
from jaxkd.compress.prune.targets import (
    Target,
    check_ratios,
    check_scores,
    width_at,
)

GRID = tuple(i / 20 for i in range(20))  # 0, 0.05 ... 0.95
# From how many choices each group has and feasible tokens to a controller.
Make = Callable[[Sequence[int], Sequence[int]], searches.Controller]


class SearchResult(NamedTuple):
    """The result of a search.

    Attributes:
      dropped: the units that the best candidate removes; it meets the target.
      reward: its metric, as it was measured in the search.
      trials: every candidate; token i is an index into `widths[i]`.
      widths: for each group the widths that were tried, descending.
    """

    dropped: np.ndarray
    reward: float
    trials: list[searches.Trial]
    widths: tuple[np.ndarray, ...]


def annealing(sizes: Sequence[int], start: Sequence[int]) -> searches.Controller:
    """Simulated annealing from the start, reheated after 25 candidates without gain."""
    return searches.anneal(sizes, start, reheat=25)


def random(sizes: Sequence[int], start: Sequence[int]) -> searches.Controller:
    """Random search: what others have to beat at the same budget."""
    return searches.random_search(sizes, tries=100_000)


def search(
    plan: Plan,
    scores: ArrayLike,
    target: Target,
    metric: Metric,
    *,
    controller: Make = annealing,
    budget: int = 100,
    grid: Sequence[float] = GRID,
    least: float = 0.0,
    seed: int = 0,
    journal: str | os.PathLike | None = None,
    progress: Callable[[searches.Trial], None] = lambda trial: None,
) -> SearchResult:
    """Search the ratio of each group that keeps the metric highest under a target.

    Candidates that cost too much are not evaluated. Annealing starts at the uniform
    solution on the grid, and so is never worse than that in the metric of the search.
    Random search draws uniformly from what is feasible, which is mostly well below the
    target.

    Args:
      plan: of the network.
      scores: of each unit, from `criteria`; in each group the lowest go. `[units]`
      target: from `target`.
      metric: the reward, e.g. from `masked_metric`, or a function that also trains:
        `Metric(lambda keep: ..., {"what": "it does"})`.
      controller: `annealing`, `random`, or a function of your own that makes one of
        `jaxkd.compress.search`.
      budget: how many different candidates are evaluated.
      grid: the ratios that a group may lose, in [0, 1), rounded to the target's widths.
      least: the part of the target, in [0, 1), that candidates must use up, or as much
        as the start does. Without training, masked networks may be so bad that much
        smaller ones look as good; 0.9 keeps to those worth comparing.
      seed: of the search.
      journal: its file; a search that was killed resumes from it, with the same result.
      progress: called with each candidate that was evaluated.

    Returns:
      The best candidate, which meets the target, and all others.

    Raises:
      ValueError: before anything is evaluated, if the scores do not fit the plan, a
        ratio is outside [0, 1), the target cannot be met on this grid, there is nothing
        to choose, or the journal belongs to a different search.
      RuntimeError: if the controller finds no candidate that meets the target.
    """
    scores = check_scores(plan, scores)
    if not 0 <= least < 1:
        raise ValueError(f"least must be in [0, 1), got {least}")
    start, widths = grid_of(target, grid)
    sizes = [len(each) for each in widths]
    kept = lambda tokens: np.asarray(
        [each[t] for each, t in zip(widths, tokens, strict=True)], np.int64
    )
    first = [int(np.flatnonzero(w == k)[0]) for w, k in zip(widths, start, strict=True)]
    identity = {
        "prune": {**metric.settings, "plan": plan.hash, "scores": store.digest(scores)},
        **target.settings,
        "grid": [each.tolist() for each in widths],
        "least": least,
    }
    floor = min(least * target.most, target.cost(start))

    def feasible(tokens: searches.Tokens) -> bool:
        return target.met(kept(tokens)) and target.cost(kept(tokens)) >= floor

    def evaluate(tokens: searches.Tokens) -> dict[str, Any]:
        keep = plan.keep(lowest(plan, scores, kept(tokens)))
        return {"reward": metric(keep), "cost": float(target.cost(kept(tokens)))}

    trials = searches.run(
        controller(sizes, first),
        evaluate,
        budget=budget,
        feasible=feasible,
        seed=seed,
        journal=journal,
        settings=identity,
        progress=progress,
    )
    best = searches.best(trials, feasible)
    dropped = lowest(plan, scores, kept(best.tokens))
    return SearchResult(dropped, best.reward, trials, widths)


def grid_of(
    target: Target, grid: Sequence[float]
) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """Return the uniform start on the grid, and for each group its widths, descending.

    Raises:
      ValueError: if the target cannot be met on the grid, with the range that is
        reached.
    """
    grid = (0.0, *check_ratios("grid", grid))
    tried = [sorted({width_at(w, r) for r in grid}) for w in target.widths]
    # Widths that are not on the grid are never chosen: their price is infinite.
    prices = [
        np.where(np.isin(w, own), 1 - w / w[-1], np.inf)
        for w, own in zip(target.widths, tried, strict=True)
    ]
    start = by_threshold(target, prices)
    return start, tuple(np.asarray(own[::-1], np.int64) for own in tried)
