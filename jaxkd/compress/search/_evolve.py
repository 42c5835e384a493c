"""Regularised evolution over tokens."""

from collections.abc import Sequence
from typing import NamedTuple

from jaxkd import _check
from jaxkd.compress.search._controller import (
    Controller,
    Feasible,
    Tokens,
    check_choices,
    check_tokens,
    draws,
    neighbour,
    uniform,
    walk,
)


class EvolveState(NamedTuple):
    """Where an evolution is.

    Attributes:
      seed: of all its draws.
      proposed: how many tokens were proposed.
      members: the population as (tokens, reward), the oldest first.
    """

    seed: int
    proposed: int
    members: tuple[tuple[Tokens, float], ...]


def evolve(
    choices: Sequence[int],
    *,
    population: int = 20,
    tournament: int = 5,
    start: Sequence[int] | None = None,
    tries: int = 10_000,
) -> Controller:
    """Regularised (aging) evolution: the oldest dies, not the worst.

    The first `population` proposals are random. Then, for each: `tournament` members
    are drawn with replacement, one random position of the best of them changes, and
    its result replaces the oldest member.

    Args:
      choices: how many choices each position has.
      population: members, >= 1.
      tournament: members drawn, >= 1.
      start: feasible tokens that are proposed first; the other first members are then
        random walks from there, which find feasible tokens under any limit. None draws
        them uniformly.
      tries: uniform draws until a feasible one is found, at most.

    Returns:
      The controller. `propose` raises a RuntimeError if it finds nothing feasible, and
      a ValueError if `start` is infeasible.

    Raises:
      ValueError: if a number is out of its range or `start` does not fit `choices`.

    References:
      E. Real, A. Aggarwal, Y. Huang, Q. V. Le. Regularized Evolution for Image
      Classifier Architecture Search. 2019. https://arxiv.org/abs/1802.01548,
      algorithm 1.
    """
    choices = check_choices(choices)
    first = None if start is None else check_tokens("start", start, choices)
    _check.whole(1)("population", population)
    _check.whole(1)("tournament", tournament)
    _check.whole(1)("tries", tries)

    def init(seed: int) -> EvolveState:
        _check.whole(0)("seed", seed)
        return EvolveState(int(seed), 0, ())

    def founder(state: EvolveState, feasible: Feasible) -> Tokens:
        rng = draws(state.seed, state.proposed, 0)
        if first is None:
            return uniform(rng, choices, feasible, tries)
        if state.proposed:
            return walk(rng, first, choices, feasible)
        if not feasible(first):
            raise ValueError(f"start must be feasible, got {first}")
        return first

    def propose(state: EvolveState, feasible: Feasible) -> tuple[Tokens, EvolveState]:
        after = state._replace(proposed=state.proposed + 1)
        if state.proposed < population or not state.members:
            return founder(state, feasible), after
        rng = draws(state.seed, state.proposed, 0)
        drawn = rng.integers(len(state.members), size=tournament)
        parent = max((state.members[i] for i in drawn), key=lambda member: member[1])[0]
        return neighbour(rng, parent, choices, feasible), after

    def observe(
        state: EvolveState, tokens: Sequence[int], reward: float
    ) -> EvolveState:
        members = (*state.members, (tuple(tokens), float(reward)))
        return state._replace(members=members[-population:])

    settings = {
        "controller": "evolve",
        "choices": choices,
        "population": population,
        "tournament": tournament,
        "start": first,
    }
    return Controller(init, propose, observe, settings)
