"""Try whether a pruned network's program is the whole one's with fewer channels.

Nothing is computed: programs are traced and compared step by step.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxkd import jaxpr
from jaxkd.compress.prune.plan import Plan
from jaxkd.compress.prune.resized import following
from jaxkd.compress.prune.trace.labels import Equation, Ledger
from jaxkd.models.interception import intercept_calls


class Prediction(NamedTuple):
    """What a plan predicts of one step.

    Attributes:
      equation: the step.
      units: for each result, for each of its axes, the unit of every index; -1 where it
        must stay, None for an axis of which nothing is known.
    """

    equation: Equation
    units: list[list[np.ndarray | None]]


def marks(ledger: Ledger, unit: np.ndarray) -> list[Prediction]:
    """Return what is predicted of each step, in order.

    Args:
      ledger: of the whole network.
      unit: of each label, -1 where it must stay and -2 where it is not known.
    """

    def along(axis):
        if axis.labels is None:
            return None
        units = np.where(axis.labels < 0, -1, unit[axis.labels])
        return None if (units == -2).any() else units

    return [
        Prediction(
            equation, [[along(axis) for axis in value.axes] for value in results]
        )
        for equation, results in ledger.trace
    ]


def pruned_program(
    apply: Callable[..., Any], whole: Any, small: Any, inputs: Sequence[Any]
) -> jaxpr.Program:
    """Trace the network with pruned variables.

    Args:
      apply: the function that was analysed, not resized.
      whole: its variables.
      small: its variables, pruned.
      inputs: its other arguments.

    Raises:
      ValueError: if it does not run, with the module where it stops.
    """
    entered: list[str] = []
    # A function of its own each time, or JAX would not trace it again.
    unpruned = lambda _, *inputs: jax.eval_shape(lambda v: apply(v, *inputs), whole)
    resized = following(apply, unpruned)
    try:
        with _modules_entered(entered):
            return jaxpr.trace(resized, small, *inputs)
    except Exception as error:
        where = entered[-1] if entered else "the outermost function"
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"the pruned network does not run: in {where}: {reason}"
        ) from error


@contextlib.contextmanager
def _modules_entered(entered: list[str]) -> Iterator[None]:
    """Inside, `entered` holds the modules that have been called and not left."""

    def follow(call, args, kwargs, called):
        entered.append(called.path or type(called.module).__name__)
        out = call(*args, **kwargs)
        entered.pop()
        return out

    with intercept_calls(follow):
        yield


def other_operation(whole: jaxpr.Program, pruned: jaxpr.Program) -> str | None:
    """Return the first step that only the pruned program has, as a reason."""
    end = ("nothing", "the end")
    steps = [
        (*((step.name, step.scope) for step in program.steps), end)
        for program in (whole, pruned)
    ]
    for one, other in zip(*steps, strict=False):
        if one != other:
            return (
                "the pruned network has other operations than the whole one: its code "
                f"decides by a width: first {other[0]} in {other[1]}, where the whole "
                f"one has {one[0]} in {one[1]}"
            )
    return None


def other_shape(
    predicted: Iterable[Prediction], keep: np.ndarray, pruned: jaxpr.Program
) -> str | None:
    """Return the first step whose result has another shape than predicted.

    Args:
      predicted: of each step.
      keep: the units that remain, `bool[units]`.
      pruned: a program with the whole one's operations.
    """
    every = np.append(keep, True)  # -1, an index that must stay, finds the last
    for mark, step in zip(predicted, pruned.steps, strict=True):
        for of, shape in zip(mark.units, map(pruned.shape, step.outputs), strict=True):
            expected = [
                n if u is None else every[u].sum()
                for u, n in zip(of, shape, strict=True)
            ]
            if expected != list(shape):
                return mark.equation.at(f"a result of shape {shape}")
    return None


def other_constant(whole: jaxpr.Program, pruned: jaxpr.Program) -> str | None:
    """Return the first step that reads another constant: a width, as a reason."""
    for one, other in zip(whole.steps, pruned.steps, strict=True):
        for i, j in zip(one.inputs, other.inputs, strict=True):
            if i not in whole.constants or j not in pruned.constants:
                continue
            a, b = whole.constants[i], pruned.constants[j]
            if a is not b and np.shape(a) == np.shape(b) and not _equal(a, b):
                return (
                    "the pruned network computes with another constant than the whole "
                    f"one ({one.name} in {one.scope or 'the outermost function'})"
                )
    return None


def _equal(a: Any, b: Any) -> bool:
    if jax.dtypes.issubdtype(jax.numpy.result_type(a), jax.dtypes.prng_key):
        a, b = jax.random.key_data(a), jax.random.key_data(b)
    return np.array_equal(a, b, equal_nan=np.asarray(a).dtype.kind == "f")


def failures(
    plan: Plan,
    predicted: Sequence[Prediction],
    whole: jaxpr.Program,
    apply: Callable[..., Any],
    variables: Any,
    inputs: Sequence[Any],
) -> dict[int, str]:
    """Prune some units of every group; find the groups that cannot be pruned.

    Args:
      plan: of all groups.
      predicted: of each step.
      whole: the program of the whole network.
      apply: the function that was analysed.
      variables: as `jax.ShapeDtypeStruct`s.
      inputs: its other arguments.

    Returns:
      The numbers of the groups that have to stay, each with the reason. The others can
      be pruned together; each can be pruned alone.
    """
    why: dict[int, str] = {}

    def failure(groups: Sequence[int]) -> str | None:
        # Another number of units in each, so that no two widths happen to agree.
        keep = np.ones(plan.units, bool)
        for i in groups:
            units = plan.groups[i].units
            keep[units.start : units.start + 1 + i % min(3, len(units) - 1)] = False
        try:
            small = plan.apply(variables, keep=keep)
            pruned = pruned_program(apply, variables, small, inputs)
        except ValueError as error:
            return str(error)
        if reason := other_operation(whole, pruned):
            return reason
        if where := other_shape(predicted, keep, pruned):
            return f"the pruned network's code takes a width from elsewhere: {where}"
        return None if plan.inexact else other_constant(whole, pruned)

    def found(groups: Sequence[int]) -> list[int]:
        """Return the largest part of them that can be pruned together, by halving."""
        reason = failure(groups) if groups else None
        if reason is None:
            return list(groups)
        if len(groups) == 1:
            why[groups[0]] = reason
            return []
        half = len(groups) // 2
        joint = found(groups[:half])
        rest = found(groups[half:])
        if failure(joint + rest) is None:
            return joint + rest
        for i in rest:
            reason = failure([*joint, i])
            if reason is None:
                joint.append(i)
            else:
                why[i] = reason
        return joint

    found(range(len(plan.groups)))
    return why
