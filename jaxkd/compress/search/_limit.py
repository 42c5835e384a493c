"""`Limit`: what a candidate may cost, checked before it is evaluated."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jaxkd import _check
from jaxkd.compress.search._blocks import TracedBlock, taken_apart
from jaxkd.compress.search._controller import Tokens, check_choices, check_tokens
from jaxkd.compress.search._space import Space

Measure = Callable[[Tokens], float]  # what a candidate costs


class Limit(NamedTuple):
    """A range of costs that the space can reach; made by `limit`.

    Attributes:
      cost: of tokens.
      name: of the cost, e.g. "MACs".
      least: the smallest cost allowed.
      most: the greatest.
      cheapest: the cheapest tokens of the space.
      sizes: how many choices each position has.
    """

    cost: Measure
    name: str
    least: float
    most: float
    cheapest: Tokens
    sizes: Tokens

    @property
    def dearest(self) -> Tokens:
        """The dearest tokens of the space, found when they are asked for."""
        middle = tuple(n // 2 for n in self.sizes)
        return descend(lambda tokens: -self.cost(tokens), middle, self.sizes)

    def feasible(self, tokens: Tokens) -> bool:
        """Return whether the tokens cost neither too much nor too little."""
        return self.least <= self.cost(tokens) <= self.most

    @property
    def settings(self) -> dict[str, Any]:
        """What identifies the limit in a journal."""
        return {"limit": [self.name, self.least, self.most]}


def limit(
    name: str,
    cost: Measure,
    sizes: Sequence[int],
    *,
    most: float = math.inf,
    least: float = 0.0,
) -> Limit:
    """Limits what candidates cost, after finding out whether the space has any such.

    The ends of the reachable range (the upper one only if it is needed) are found by
    changing one position at a time until no change makes the network cheaper (dearer).
    They are exact where more of one position costs more whatever stands at the others,
    as with MACs and widths.

    Args:
      name: of the cost, for messages and the journal.
      cost: of tokens, e.g. `macs(space, (32, 32, 3))`.
      sizes: how many choices each position has, e.g. `space.sizes`.
      most: the greatest cost allowed.
      least: the smallest cost allowed.

    Returns:
      The limit; its `feasible` is what controllers ask.

    Raises:
      ValueError: if the space has nothing within the limit, with the reachable range.

    Example:
      >>> limit("sum", sum, (4, 4), most=2.0).feasible((1, 1))
      True
      >>> limit("sum", lambda tokens: 5 + sum(tokens), (4, 4), most=2)
      Traceback (most recent call last):
      ...
      ValueError: the limit of 0 to 2 sum cannot be met: the space reaches 5 to 11
    """
    sizes = check_choices(sizes)
    if math.isnan(least) or math.isnan(most) or least > most:
        raise ValueError(f"least must be <= most, got {least} and {most}")
    middle = tuple(n // 2 for n in sizes)
    cheapest = descend(cost, middle, sizes)
    made = Limit(cost, name, least, most, cheapest, sizes)
    if not least <= cost(cheapest) <= most:
        reach = cost(cheapest), cost(made.dearest)
        if most < reach[0] or least > reach[1]:
            wanted = f"{least:,.10g} to {most:,.10g} {name}"
            raise ValueError(
                f"the limit of {wanted} cannot be met: the space reaches "
                f"{reach[0]:,.10g} to {reach[1]:,.10g}"
            )
    return made


def descend(cost: Measure, tokens: Tokens, sizes: Tokens) -> Tokens:
    """Change one position at a time to its cheapest choice, until none helps."""
    while True:
        before = tokens
        for place, n in enumerate(sizes):
            ways = [(*tokens[:place], v, *tokens[place + 1 :]) for v in range(n)]
            cheapest = min(ways, key=cost)
            tokens = cheapest if cost(cheapest) < cost(tokens) else tokens
        if tokens == before:
            return tokens


def within(limit: Limit, tokens: Sequence[int], sizes: Sequence[int]) -> Tokens:
    """Feasible tokens near these: where a search may start.

    One position at a time, with the smallest step towards the limit that any change of
    one position makes, until the cost is within.

    Args:
      limit: to be met.
      tokens: e.g. the base network's.
      sizes: how many choices each position has.

    Returns:
      The tokens themselves if they are feasible.

    Raises:
      RuntimeError: if it ends outside: no step leads towards the limit.

    Example:
      >>> within(limit("sum", sum, (4, 4), most=2), (1, 3), (4, 4))
      (0, 2)
    """
    sizes = check_choices(sizes)
    tokens = check_tokens("tokens", tokens, sizes)
    seen: set[Tokens] = set()
    while not limit.feasible(tokens):
        now = limit.cost(tokens)
        seen.add(tokens)
        steps = [
            (*tokens[:place], value, *tokens[place + 1 :])
            for place, n in enumerate(sizes)
            for value in range(n)
        ]
        if now > limit.most:
            towards = [step for step in steps if limit.cost(step) < now]
            inside = max(towards, key=limit.cost, default=None)
        else:
            towards = [step for step in steps if limit.cost(step) > now]
            inside = min(towards, key=limit.cost, default=None)
        if inside is None or inside in seen:  # past the band and back, for ever
            raise RuntimeError(
                f"{tokens} costs {now}, outside the limit of {limit.least} to "
                f"{limit.most}, and changing one token brings it no nearer: widen it"
            )
        tokens = inside
    return tokens


def macs(space: Space, image_shape: tuple[int, ...]) -> Measure:
    """Multiply-accumulates of one image, counted once for each candidate."""
    return _counted(space, image_shape, "macs")


def parameters(space: Space, image_shape: tuple[int, ...]) -> Measure:
    """Numbers that training moves, counted once for each candidate."""
    return _counted(space, image_shape, "parameters")


def _counted(space: Space, image_shape: tuple[int, ...], field: str) -> Measure:
    for length in image_shape:
        _check.whole(1)("image_shape", length)
    known: dict[Tokens, float] = {}
    blocks: dict[str, TracedBlock] = {}

    def cost(tokens: Tokens) -> float:
        tokens = tuple(tokens)
        if tokens not in known:
            whole = taken_apart(space.net(tokens), image_shape, blocks)
            known[tokens] = getattr(whole, field)
        return known[tokens]

    return cost
