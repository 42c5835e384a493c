"""Random search: what every other controller has to beat at the same budget."""

from collections.abc import Sequence
from typing import NamedTuple

from jaxkd import _check
from jaxkd.compress.search._controller import (
    Controller,
    Feasible,
    Tokens,
    anything,
    check_choices,
    draws,
    uniform,
)


class RandomState(NamedTuple):
    """Where a random search is.

    Attributes:
      seed: of all its draws.
      proposed: how many tokens were proposed.
    """

    seed: int
    proposed: int


def random_search(choices: Sequence[int], *, tries: int = 10_000) -> Controller:
    """Uniform draws among the feasible tokens, whatever the rewards were.

    Args:
      choices: how many choices each position has.
      tries: draws until a feasible one is found, at most.

    Returns:
      The controller. `propose` raises a RuntimeError if it finds nothing feasible.

    Raises:
      ValueError: if a number is out of its range.

    References:
      L. Li, A. Talwalkar. Random Search and Reproducibility for Neural Architecture
      Search. 2019. https://arxiv.org/abs/1902.07638
    """
    choices = check_choices(choices)
    _check.whole(1)("tries", tries)

    def init(seed: int) -> RandomState:
        _check.whole(0)("seed", seed)
        return RandomState(int(seed), 0)

    def propose(state: RandomState, feasible: Feasible) -> tuple[Tokens, RandomState]:
        rng = draws(state.seed, state.proposed, 0)
        tokens = uniform(rng, choices, feasible, tries)
        return tokens, state._replace(proposed=state.proposed + 1)

    def observe(
        state: RandomState, tokens: Sequence[int], reward: float
    ) -> RandomState:
        return state

    settings = {"controller": "random", "choices": choices}
    return Controller(init, propose, observe, settings)


def sample(
    choices: Sequence[int],
    n: int,
    *,
    feasible: Feasible = anything,
    seed: int = 0,
    tries: int = 10_000,
) -> list[Tokens]:
    """So many different feasible tokens, drawn uniformly.

    Raises:
      RuntimeError: if a feasible one, or another one, was not found in `tries` draws.

    Example:
      >>> sorted(sample((2, 2), 4))
      [(0, 0), (0, 1), (1, 0), (1, 1)]
    """
    choices = check_choices(choices)
    _check.whole(1)("n", n)
    rng = draws(seed, 0, 0)
    found: dict[Tokens, None] = {}
    new = lambda tokens: tokens not in found and feasible(tokens)
    for _ in range(n):
        found[uniform(rng, choices, new, tries)] = None
    return list(found)
