"""Loops of known length, step after step: runtimes other than XLA have none."""

from collections.abc import Callable
from typing import Any

from jax import lax

from jaxkd import jaxpr
from jaxkd.export import census, fold
from jaxkd.export.channels import value, within

MOST_STEPS = 1024


def unrolled(
    loop: jaxpr.Scan,
    values: list,
    body: Callable[[list, int], list],
    scope: str,
) -> list:
    """Write a `lax.scan` out.

    Args:
      loop: from `jaxpr.scan`.
      values: its constants, the first carry and the arrays that it goes along.
      body: `(arguments, step) -> results` of one step.
      scope: the module that it is of.

    Returns:
      The last carry, and what the steps gave, stacked.

    Raises:
      NotImplementedError: if it has more steps than a file should hold.
    """
    length, at = loop.length, loop.constants
    if length > MOST_STEPS:
        where = census.place(f"{scope}/scan")
        raise NotImplementedError(
            f"a loop of {length} steps in {where}: at most {MOST_STEPS} are written "
            "out; export it as stablehlo, which has loops"
        )
    consts, rest = values[:at], [value(v) for v in values[at:]]
    carry, along = rest[: loop.carry], rest[loop.carry :]
    given: list[list] = []
    steps = range(length)
    for step in reversed(steps) if loop.reverse else steps:
        with within(scope):
            parts = [_part(x, step) for x in along]
        outs = [value(v) for v in body([*consts, *carry, *parts], step)]
        carry = outs[: len(carry)]
        given.append(outs[len(carry) :])
    if loop.reverse:
        given.reverse()
    with within(scope):
        return [*carry, *(_stacked(list(each)) for each in zip(*given, strict=True))]


def _part(x: Any, step: int) -> Any:
    if fold.is_constant(x):
        return x[step]
    return lax.squeeze(lax.slice_in_dim(x, step, step + 1), (0,))


def _stacked(parts: list) -> Any:
    return lax.concatenate([lax.expand_dims(p, (0,)) for p in parts], 0)
