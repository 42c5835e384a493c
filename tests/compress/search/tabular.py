"""A space whose every reward is known, to compare controllers by their regret."""

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxkd.compress.search import (
    Controller,
    Feasible,
    Tokens,
    anything,
    best,
    run,
)


class Table(NamedTuple):
    """Rewards and costs of all tokens.

    Attributes:
      sizes: how many choices each position has.
      rewards: `[*sizes]`.
      costs: `[*sizes]`, increasing with each token.
    """

    sizes: Tokens
    rewards: np.ndarray
    costs: np.ndarray

    def reward(self, tokens: Tokens) -> float:
        """What an evaluation would say."""
        return float(self.rewards[tuple(tokens)])

    def cost(self, tokens: Tokens) -> float:
        """What the network would cost."""
        return float(self.costs[tuple(tokens)])

    def optimum(self, feasible: Feasible = anything) -> tuple[Tokens, float]:
        """The best feasible tokens and their reward, found by looking at all."""
        everything = itertools.product(*map(range, self.sizes))
        tokens = max(filter(feasible, everything), key=self.reward)
        return tokens, self.reward(tokens)


def table(
    sizes: Sequence[int] = (6, 6, 6, 6, 6), *, seed: int = 0, rugged: float = 0.4
) -> Table:
    """A random function of the tokens: a sum over positions and over pairs of them.

    With a and b standard normal draws, and i < j positions::

        reward(t) = sum_i a_i[t_i] + rugged * sum_{i<j} b_ij[t_i, t_j]
        cost(t) = sum_i t_i

    Args:
      sizes: how many choices each position has.
      seed: of the draws.
      rugged: how much pairs count, >= 0; at 0 each position can be chosen by itself.

    Example:
      >>> table().rewards.shape
      (6, 6, 6, 6, 6)
    """
    sizes = tuple(sizes)
    rng = np.random.default_rng(seed)
    rewards = np.zeros(sizes)
    for place, n in enumerate(sizes):
        rewards += _along(rng.normal(size=n), (place,), len(sizes))
    for pair in itertools.combinations(range(len(sizes)), 2):
        drawn = rng.normal(size=[sizes[place] for place in pair])
        rewards += rugged * _along(drawn, pair, len(sizes))
    return Table(sizes, rewards, np.indices(sizes).sum(0).astype(float))


def _along(values: np.ndarray, places: Sequence[int], axes: int) -> np.ndarray:
    """The values along these axes, of length 1 along the others."""
    others = tuple(axis for axis in range(axes) if axis not in places)
    return np.expand_dims(values, others)


def regrets(
    table: Table,
    controllers: Mapping[str, Controller],
    *,
    budget: int,
    seeds: int,
    feasible: Feasible = anything,
) -> dict[str, np.ndarray]:
    """How far from the optimum each controller ends, at the same budget.

    Args:
      table: known rewards.
      controllers: by name.
      budget: different candidates that each may evaluate.
      seeds: searches of each, with seeds 0, 1, ...
      feasible: the limit.

    Returns:
      For each name `[seeds]`: the optimum's reward minus the best one found, >= 0.
    """
    top = table.optimum(feasible)[1]

    def regret(controller: Controller, seed: int) -> float:
        found = run(
            controller, table.reward, budget=budget, feasible=feasible, seed=seed
        )
        return top - best(found).reward

    return {
        name: np.asarray([regret(controller, seed) for seed in range(seeds)])
        for name, controller in controllers.items()
    }
