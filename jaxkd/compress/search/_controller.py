"""What every controller is: three pure functions over a state that JSON can hold."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxkd import _check

Tokens = tuple[int, ...]  # for each position, the place of its choice: an index
Feasible = Callable[[Tokens], bool]


class Controller(NamedTuple):
    """A way to search, as pure functions; nothing is remembered outside the state.

    A state is a NamedTuple of numbers, strings, None and sequences of them, so that
    `Kind(**json.loads(json.dumps(state._asdict())))` is as good as the state itself.

    Attributes:
      init: `seed -> state`.
      propose: `(state, feasible) -> (tokens, state)`; the tokens are feasible.
      observe: `(state, tokens, reward) -> state`; greater rewards are better. Results
        may come later than the next proposals, but in the order of their proposals;
        that of a candidate whose evaluation failed never comes.
      settings: all that makes this controller different from another, for JSON: part
        of what identifies a search in its journal.
    """

    init: Callable[[int], Any]
    propose: Callable[[Any, Feasible], tuple[Tokens, Any]]
    observe: Callable[[Any, Tokens, float], Any]
    settings: Mapping[str, Any]


def anything(tokens: Tokens) -> bool:
    """Return the limit that allows all tokens."""
    return True


def draws(seed: int, step: int, purpose: int) -> np.random.Generator:
    """The random numbers of one step: they depend on these three numbers alone."""
    return np.random.default_rng((seed, step, purpose))


def check_choices(choices: Sequence[int]) -> Tokens:
    """Return how many choices each position has, as a tuple of whole numbers >= 1."""
    choices = tuple(choices)
    if not choices:
        raise ValueError("choices must have at least one position, got none")
    for n in choices:
        _check.whole(1)("choices", n)
    if max(choices) == 1:
        raise ValueError(f"choices must leave something to choose, got {choices}")
    return tuple(map(int, choices))


def check_tokens(name: str, tokens: Sequence[int], choices: Tokens) -> Tokens:
    """Tokens that index these choices, as a tuple of Python integers."""
    tokens = tuple(tokens)
    if len(tokens) != len(choices):
        raise ValueError(
            f"{name} must be {len(choices)} tokens, got {len(tokens)}: {tokens}"
        )
    for place, (token, n) in enumerate(zip(tokens, choices, strict=True)):
        _check.whole(0)(f"{name}[{place}]", token)
        if token >= n:
            raise ValueError(
                f"{name}[{place}] must be below its {n} choices, got {token}"
            )
    return tuple(map(int, tokens))


def neighbour(
    rng: np.random.Generator, tokens: Sequence[int], choices: Tokens, feasible: Feasible
) -> Tokens:
    """Change one position, drawn uniformly, to another of its choices, likewise.

    The result is distributed as if draws were repeated until one is feasible; but none
    is made twice, so that it ends, and fails only if there is no answer.

    Raises:
      RuntimeError: if no change of one position is feasible.
    """
    tokens = tuple(tokens)
    changes = [
        (place, value)
        for place, n in enumerate(choices)
        for value in range(n)
        if value != tokens[place]
    ]
    # Sampling without replacement with these probabilities is sorting by Exp(1) / p.
    weights = np.asarray([1 / (choices[place] - 1) for place, _ in changes])
    for at in np.argsort(rng.exponential(size=len(changes)) / weights, kind="stable"):
        place, value = changes[at]
        changed = (*tokens[:place], value, *tokens[place + 1 :])
        if feasible(changed):
            return changed
    raise RuntimeError(
        f"none of the {len(changes)} tokens that differ from {tokens} in one position "
        "is feasible; widen the limit or start elsewhere"
    )


def uniform(
    rng: np.random.Generator, choices: Tokens, feasible: Feasible, tries: int
) -> Tokens:
    """Feasible tokens, all equally likely.

    Raises:
      RuntimeError: if none of so many draws was feasible.
    """
    for _ in range(tries):
        tokens = tuple(map(int, rng.integers(choices)))
        if feasible(tokens):
            return tokens
    raise RuntimeError(
        f"none of {tries} uniform draws was feasible: under so tight a limit, start a "
        "controller at feasible tokens (`start`), or raise `tries`"
    )


def walk(
    rng: np.random.Generator, tokens: Tokens, choices: Tokens, feasible: Feasible
) -> Tokens:
    """As many feasible changes of one position after another as there are positions."""
    for _ in choices:
        tokens = neighbour(rng, tokens, choices, feasible)
    return tokens
