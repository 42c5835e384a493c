"""Successive halving: many candidates for a short time, few for a long one."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jaxkd import _check
from jaxkd.compress.search._controller import (
    Controller,
    Feasible,
    Tokens,
    anything,
)
from jaxkd.compress.search._run import Evaluate, Trial, run


class Rung(NamedTuple):
    """One round of successive halving.

    Attributes:
      effort: what each candidate was given, e.g. epochs.
      trials: of its candidates.
    """

    effort: int
    trials: list[Trial]


def successive_halving(
    candidates: Sequence[Tokens],
    evaluate: Callable[[Tokens, int], Any],
    *,
    least: int,
    eta: int = 3,
    journal: Callable[[int], Any] = lambda rung: None,
    settings: dict[str, Any] | None = None,
    feasible: Feasible = anything,
) -> list[Rung]:
    """Keep the best 1/eta of the candidates and give those eta times the effort.

    Of n candidates, n / eta^k (rounded down, at least one) are evaluated in round k
    with an effort of least * eta^k, until one is left. Each round costs about the same.

    Args:
      candidates: tokens, e.g. from `sample`.
      evaluate: `(tokens, effort) -> reward`, or a mapping as for `run`; e.g. a short
        training of `effort` epochs.
      least: the first round's effort, >= 1.
      eta: >= 2.
      journal: from the number of the round to its journal, or None.
      settings: what identifies the search in the journals.
      feasible: the limit that all candidates must keep.

    Returns:
      The rounds; the last one has the winner.

    Raises:
      ValueError: if there is no candidate, one is infeasible, or two are the same.

    References:
      K. Jamieson, A. Talwalkar. Non-stochastic Best Arm Identification and
      Hyperparameter Optimization. 2016. https://arxiv.org/abs/1502.07943

      L. Li, K. Jamieson, G. DeSalvo, A. Rostamizadeh, A. Talwalkar. Hyperband. 2018.
      https://arxiv.org/abs/1603.06560
    """
    _check.whole(1)("least", least)
    _check.whole(2)("eta", eta)
    left = [tuple(tokens) for tokens in candidates]
    if not left or len(set(left)) < len(left):
        raise ValueError(f"candidates must be different, and one at least, got {left}")
    for tokens in left:
        if not feasible(tokens):
            raise ValueError(f"candidates must be feasible, got {tokens}")
    rungs: list[Rung] = []
    while True:
        effort = least * eta ** len(rungs)
        trials = run(
            in_order(left),
            _with(evaluate, effort),
            budget=len(left),
            feasible=feasible,
            journal=journal(len(rungs)),
            settings={**(settings or {}), "effort": effort},
        )
        rungs.append(Rung(effort, trials))
        if len(left) == 1:
            return rungs
        sound = [trial for trial in trials if not trial.error]
        ranked = sorted(sound, key=lambda trial: -trial.reward)
        left = [trial.tokens for trial in ranked[: max(1, len(left) // eta)]]


def _with(evaluate: Callable[[Tokens, int], Any], effort: int) -> Evaluate:
    return lambda tokens: evaluate(tokens, effort)


class Position(NamedTuple):
    """How many candidates of a list were proposed."""

    proposed: int


def in_order(candidates: Sequence[Tokens]) -> Controller:
    """Return the controller that proposes these candidates one after another.

    After the last it starts anew, so that its search ends with a budget of their
    number.
    """
    candidates = [tuple(map(int, tokens)) for tokens in candidates]

    def propose(state: Position, feasible: Feasible) -> tuple[Tokens, Position]:
        tokens = candidates[state.proposed % len(candidates)]
        return tokens, Position(state.proposed + 1)

    settings = {"controller": "in order", "candidates": candidates}
    return Controller(
        lambda seed: Position(0), propose, lambda state, tokens, reward: state, settings
    )
