"""Targets: what a pruned network may cost, and the widths that it may have."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.typing import ArrayLike

from jaxkd import _check
from jaxkd.compress.prune.plan import Group, Plan

KINDS = ("macs", "parameters", "bytes", "latency")
Measure = Callable[[np.ndarray], float]  # from the units removed to milliseconds


class Target(NamedTuple):
    """A cost that can be met; made by `target`.

    Attributes:
      kind: "macs", "parameters", "bytes" or "latency".
      most: what the pruned network may cost.
      whole: what the network costs now.
      least: what the smallest network costs that the widths allow.
      widths: for each group how many units it may keep, ascending; the last are all.
      cost: from how many units each group keeps, `int[groups]`, to the cost.
    """

    kind: str
    most: float
    whole: float
    least: float
    widths: tuple[np.ndarray, ...]
    cost: Callable[[np.ndarray], float]

    def met(self, kept: Sequence[int] | np.ndarray) -> bool:
        """Return whether a network with `kept` units of each group costs no more."""
        return self.cost(np.asarray(kept, np.int64)) <= self.most

    @property
    def settings(self) -> dict[str, Any]:
        """What identifies the target in a journal."""
        widths = [[int(w) for w in each] for each in self.widths]
        return {"target": [self.kind, self.most], "widths": widths}


def target(
    plan: Plan,
    kind: str,
    *,
    fraction: float | None = None,
    most: float | None = None,
    round_to: int = 8,
    measure: Measure | Mapping[tuple[int, ...], float] | None = None,
) -> Target:
    """Set what a network may cost after pruning, and check that it can be met.

    Methods meet a target from one side: what they return never costs more, and as
    little less as whole steps of `round_to` channels allow.

    Args:
      plan: of the network.
      kind: "macs", "parameters", "bytes" (of the parameters) or "latency".
      fraction: of what the network costs now, in (0, 1].
      most: instead, the cost itself.
      round_to: groups keep a multiple of this many channels, which runtimes prefer, or
        all that they have; groups with fewer keep any number of them.
      measure: for "latency", a function from the numbers of the units removed to
        milliseconds. It is asked once for each set of widths, with the last units of
        each group: which of them are removed should not matter. Or a table, from how
        many units each group keeps to milliseconds.

    Returns:
      The target.

    Raises:
      ValueError: if an argument is out of its range, or the target cannot be met; the
        message has the range that can.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxkd.compress.prune import analyse_net
      >>> from jaxkd.models import mlp
      >>> net = mlp([16], classes=2)
      >>> variables = net.init(jax.random.key(0), jnp.ones((1, 2, 2, 1)))
      >>> plan = analyse_net(net, *variables, (2, 2, 1))
      >>> half = target(plan, "macs", fraction=0.5)  # of 4 * 16 + 16 * 2
      >>> half.most, half.least, half.met([8]), half.met([16])
      (48.0, 48, True, False)
      >>> target(plan, "macs", fraction=0.4)
      Traceback (most recent call last):
      ...
      ValueError: macs <= 38.4 cannot be met: in steps of 8 channels the network reaches 48 to 96
    """  # noqa: E501 (the message is one line)
    _check.one_of(*KINDS)("kind", kind)
    _check.whole(1)("round_to", round_to)
    if (fraction is None) == (most is None):
        raise ValueError(f"give fraction or most, one of them: {fraction}, {most}")
    if (kind == "latency") == (measure is None):
        raise ValueError(f'measure belongs to "latency" alone, got {kind!r}, {measure}')
    if fraction is not None and not 0 < fraction <= 1:
        raise ValueError(f"fraction must be in (0, 1], got {fraction}")
    if most is not None:
        _check.positive("most", most)
    widths = tuple(allowed_widths(group, round_to) for group in plan.groups)
    cost = _cost(plan, kind, measure)
    whole = cost(np.asarray([each[-1] for each in widths], np.int64))
    least = cost(np.asarray([each[0] for each in widths], np.int64))
    limit = most if fraction is None else whole * float(fraction)
    assert limit is not None  # one of the two is given
    if min(least, whole) > limit:
        raise ValueError(
            f"{kind} <= {limit:,.10g} cannot be met: in steps of {round_to} channels "
            f"the network reaches {least:,.10g} to {whole:,.10g}"
        )
    return Target(kind, float(limit), whole, least, widths, cost)


def allowed_widths(group: Group, round_to: int) -> np.ndarray:
    """How many units a group may keep, ascending: whole steps of channels, or all.

    The choices of `counts`: a group with fewer channels than a step is not rounded.

    Example:
      >>> allowed_widths(Group("conv", range(0, 20), 1, ()), 8)
      array([ 8, 16, 20])
      >>> allowed_widths(Group("grouped", range(0, 8), 4, ()), 8)  # 4 channels a unit
      array([2, 4, 6, 8])
    """
    step = round_to // math.gcd(round_to, group.each)
    n = len(group.units)
    steps = range(step, n, step) if step <= n else range(1, n)
    return np.asarray([*steps, n], np.int64)


def _cost(plan: Plan, kind: str, measure: Any) -> Callable[[np.ndarray], Any]:
    if kind == "latency":
        return _latency(plan, measure)
    return lambda kept: getattr(plan.cost(kept), kind)


def _latency(plan: Plan, measure: Any) -> Callable[[np.ndarray], float]:
    """Milliseconds by widths; what was measured once is looked up afterwards."""
    known: dict[tuple[int, ...], float] = {}

    def cost(kept: np.ndarray) -> float:
        key = tuple(int(k) for k in kept)
        if key not in known:
            known[key] = checked(key)
        return known[key]

    def checked(key: tuple[int, ...]) -> float:
        if isinstance(measure, Mapping):
            if key not in measure:
                raise KeyError(f"the table has no latency for the widths {key}")
            milliseconds = float(measure[key])
        else:
            milliseconds = float(measure(last_units(plan, key)))
        _check.positive("the latency", milliseconds)
        return milliseconds

    return cost


def last_units(plan: Plan, kept: Sequence[int]) -> np.ndarray:
    """Return the units to remove if each group keeps its first `kept` units."""
    numbers = [
        np.arange(group.units.start + k, group.units.stop)
        for group, k in zip(plan.groups, kept, strict=True)
    ]
    return np.concatenate([np.zeros(0, np.int64), *numbers])


def check_scores(plan: Plan, scores: ArrayLike) -> np.ndarray:
    """Return the scores as an array: one finite number for each unit of the plan.

    Raises:
      ValueError: if they are something else.
    """
    array = np.asarray(scores, np.float64)
    if array.shape != (plan.units,):
        raise ValueError(
            f"scores must be one number for each of {plan.units} units, got shape "
            f"{array.shape}"
        )
    if not np.isfinite(array).all():
        raise ValueError("scores must be finite")
    return array


def check_ratios(name: str, ratios: Sequence[float]) -> tuple[float, ...]:
    """Shares of units to remove, ascending, each once.

    Raises:
      ValueError: if there is none, or one is not in [0, 1).
    """
    ratios = tuple(float(r) for r in ratios)
    if not ratios or not all(0 <= r < 1 for r in ratios):
        raise ValueError(f"{name} must be ratios in [0, 1), at least one, got {ratios}")
    return tuple(sorted(set(ratios)))


def width_at(widths: np.ndarray, ratio: float) -> int:
    """The smallest width allowed that loses no more than this share of the units.

    Example:
      >>> width_at(np.array([8, 16, 24, 32]), 0.4)  # 19.2 of 32 are to be kept
      24
    """
    wanted = widths[-1] * (1 - ratio)
    return int(widths[np.searchsorted(widths, wanted - 1e-6)])
