"""Simulated annealing over tokens."""

import math
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
)


class AnnealState(NamedTuple):
    """Where an annealing search is.

    Attributes:
      seed: of all its draws.
      proposed: how many tokens were proposed.
      observed: how many rewards were seen.
      heat: how many of them since the temperature was at its start.
      current: the tokens that are changed next.
      reward: theirs; None before the first result.
      best: the tokens with the greatest reward.
      best_reward: theirs.
      idle: how many rewards came since the best one.
      mean: of all rewards seen.
      squares: the sum of their squared distances from the mean.
    """

    seed: int
    proposed: int
    observed: int
    heat: int
    current: Tokens
    reward: float | None
    best: Tokens
    best_reward: float | None
    idle: int
    mean: float
    squares: float


def anneal(
    choices: Sequence[int],
    start: Sequence[int],
    *,
    initial_temperature: float = 1.0,
    reduce_rate: float = 0.95,
    rescale: bool = True,
    reheat: int | None = 50,
) -> Controller:
    """Simulated annealing: one random position of the current tokens changes.

    After k results the temperature is T_k = T_0 * reduce_rate^k. With r the current
    reward and r' the candidate's, the candidate becomes current::

        always                               if r' >= r
        with probability exp((r' - r) / T_k) otherwise

    With `rescale`, r' - r is divided by the standard deviation of the rewards seen so
    far, so that temperatures mean the same for accuracies in [0, 1] and in percent.
    Without it, and with accuracies in [0, 1], the common T_0 = 10.24 and rate 0.85
    accept nearly everything for the first 28 candidates.

    Args:
      choices: how many choices each position has.
      start: the tokens that are proposed first; they must be feasible.
      initial_temperature: T_0, > 0; in standard deviations if rewards are rescaled.
      reduce_rate: in (0, 1).
      rescale: whether differences of rewards are divided by their deviation.
      reheat: after so many results without a new best one, the temperature is T_0
        again and the search goes on from the best tokens: known candidates that come
        again count, so that it does not end among them. None never does.

    Returns:
      The controller. `propose` raises a ValueError if `start` is infeasible, and a
      RuntimeError if nothing around the current tokens is feasible.

    Raises:
      ValueError: if a number is out of its range or `start` does not fit `choices`.

    Example:
      >>> controller = anneal((4, 4), start=(0, 0))
      >>> tokens, state = controller.propose(controller.init(0), lambda tokens: True)
      >>> tokens
      (0, 0)
      >>> state = controller.observe(state, tokens, 0.5)
      >>> tokens, state = controller.propose(state, lambda tokens: True)
      >>> sum(token != 0 for token in tokens)
      1

    References:
      S. Kirkpatrick, C. D. Gelatt, M. P. Vecchi. Optimization by Simulated Annealing.
      Science 220, 1983. https://doi.org/10.1126/science.220.4598.671
    """
    choices = check_choices(choices)
    start = check_tokens("start", start, choices)
    _check.positive("initial_temperature", initial_temperature)
    _check.open_unit("reduce_rate", reduce_rate)
    if reheat is not None:
        _check.whole(1)("reheat", reheat)

    def init(seed: int) -> AnnealState:
        _check.whole(0)("seed", seed)
        return AnnealState(int(seed), 0, 0, 0, start, None, start, None, 0, 0.0, 0.0)

    def propose(state: AnnealState, feasible: Feasible) -> tuple[Tokens, AnnealState]:
        after = state._replace(proposed=state.proposed + 1)
        if state.proposed == 0:
            if not feasible(start):
                raise ValueError(f"start must be feasible, got {start}")
            return start, after
        rng = draws(state.seed, state.proposed, 0)
        return neighbour(rng, state.current, choices, feasible), after

    def observe(
        state: AnnealState, tokens: Sequence[int], reward: float
    ) -> AnnealState:
        tokens, reward = tuple(tokens), float(reward)
        state = _counted(state, reward)
        if state.best_reward is None or reward > state.best_reward:
            state = state._replace(best=tokens, best_reward=reward, idle=0)
        temperature = initial_temperature * reduce_rate**state.heat
        scale = math.sqrt(state.squares / state.observed) if rescale else 1.0
        chance = draws(state.seed, state.observed, 1).random()
        if accepts(reward, state.reward, temperature * scale, chance):
            state = state._replace(current=tokens, reward=reward)
        state = state._replace(heat=state.heat + 1)
        if reheat is not None and state.idle >= reheat:
            state = state._replace(
                heat=0, idle=0, current=state.best, reward=state.best_reward
            )
        return state

    settings = {
        "controller": "anneal",
        "choices": choices,
        "start": start,
        "initial_temperature": initial_temperature,
        "reduce_rate": reduce_rate,
        "rescale": rescale,
        "reheat": reheat,
    }
    return Controller(init, propose, observe, settings)


def accepts(
    reward: float, current: float | None, temperature: float, chance: float
) -> bool:
    """Return whether a reward replaces the current one, by Metropolis' rule.

    Example:
      >>> accepts(0.5, 0.6, 0.1, 0.36), accepts(0.5, 0.6, 0.1, 0.37)  # exp(-1) = .368
      (True, False)
    """
    if current is None or reward >= current:
        return True
    if temperature <= 0:
        return False
    return chance < math.exp((reward - current) / temperature)


def _counted(state: AnnealState, reward: float) -> AnnealState:
    """Return the running mean and deviation, by Welford's recurrence."""
    n = state.observed + 1
    mean = state.mean + (reward - state.mean) / n
    squares = state.squares + (reward - state.mean) * (reward - mean)
    return state._replace(
        observed=n, idle=state.idle + 1, mean=mean, squares=max(squares, 0.0)
    )
