"""Whether a pruned network is what it should be: the masked one, only smaller."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from jaxkd import cost, jaxpr
from jaxkd.compress.prune.analysis import logits_of, walk
from jaxkd.compress.prune.plan import Plan
from jaxkd.compress.prune.resized import following


class Report(NamedTuple):
    """What a check has seen.

    Attributes:
      difference: the largest difference of the results, relative to the largest result;
        NaN if only shapes were given.
      macs: multiply-accumulates of the pruned network's own program.
      parameters: of the pruned network.
    """

    difference: float
    macs: int
    parameters: int


def check(
    apply: Callable[..., Any],
    plan: Plan,
    variables: Any,
    dropped: Any,
    *inputs: Any,
    tolerance: float = 1e-4,
) -> Report:
    """Runs the network pruned and masked and compares them; traces it and counts.

    The two differ if the network's code decides by a width, or has a width of its own
    in a reshape: then removal gives another network than the plan says.

    Args:
      apply: the function that was analysed, not resized.
      plan: its plan.
      variables: of the whole network.
      dropped: the units to remove.
      *inputs: a batch. If variables or inputs are `jax.ShapeDtypeStruct`s, only the
        program is checked. Multiply-accumulates are compared if the shapes are those of
        the analysis.
      tolerance: of the results, relative to the largest.

    Returns:
      What was seen. If the plan allowed reductions over channels (`Plan.inexact`), the
      difference is reported and not judged.

    Raises:
      ValueError: if the pruned network does not run, has other operations or results
        than the masked one, or another number of multiply-accumulates than predicted:
        with the module and the operation where they first differ.
    """
    small, masked = plan.apply(variables, dropped), _masked(plan, variables, dropped)
    program = _trace_pruned(apply, small, inputs)
    whole = jaxpr.trace(apply, masked, *inputs)
    _same_operations(whole, program)
    macs = cost.program_macs(program)
    if cost.program_macs(whole) == plan.macs() and macs != plan.macs(dropped):
        where = _first_difference(apply, plan, variables, dropped, inputs, program)
        raise ValueError(
            f"the pruned network has {macs} multiply-accumulates, its plan predicts "
            f"{plan.macs(dropped)}; {where}"
        )
    report = Report(np.nan, macs, plan.params(dropped))
    leaves = jax.tree.leaves((variables, inputs))
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves):
        return report
    difference = _relative(_run(program, small, inputs), _run(whole, masked, inputs))
    if not difference <= tolerance and not plan.inexact:
        where = _first_error(
            apply, plan, variables, dropped, inputs, whole, program, tolerance
        )
        raise ValueError(
            f"the pruned network's results differ from the masked one's by "
            f"{difference:.1e} of the largest (tolerance {tolerance:.0e}); {where}"
        )
    return report._replace(difference=difference)


def check_net(
    net: Any, plan: Plan, params: Any, state: Any, dropped: Any, x: Any, **how: Any
) -> Report:
    """`check` of a `jaxkd.models.Net`'s logits in inference, on a batch of images.

    Args:
      net: the network.
      plan: from `analyse_net`.
      params: of the whole network.
      state: of the whole network.
      dropped: the units to remove.
      x: images, `[batch, height, width, channels]`, as the network sees them.
      **how: `tolerance`.

    Returns:
      What was seen.
    """
    variables = {"params": params, "state": state}
    return check(logits_of(net), plan, variables, dropped, x, **how)


def _run(program: jaxpr.Program, variables: Any, inputs: Any) -> Any:
    leaves = jax.tree.leaves((variables, inputs))
    return jax.jit(lambda leaves: jaxpr.run(program, leaves))(leaves)


def _masked(plan: Plan, variables: Any, dropped: Any) -> Any:
    if any(isinstance(a, jax.ShapeDtypeStruct) for a in jax.tree.leaves(variables)):
        return variables
    return plan.mask(variables, dropped)


def _trace_pruned(apply, small, inputs):
    entered: list[str] = []
    try:
        with _modules_entered(entered):
            return jaxpr.trace(following(apply), small, *inputs)
    except Exception as error:
        where = entered[-1] if entered else "the outermost function"
        raise ValueError(
            f"the pruned network does not run: in {where}: {error}\n"
            "Its code may decide by a width or reshape to one; take these channels out "
            "of the plan with exclude=."
        ) from error


@contextlib.contextmanager
def _modules_entered(entered: list[str]) -> Iterator[None]:
    """Inside, `entered` holds the modules that have been called and not left."""

    def follow(call, args, kwargs, context):
        module = context.module
        entered.append("/".join(module.path) or type(module).__name__)
        out = call(*args, **kwargs)
        entered.pop()
        return out

    with nn.intercept_methods(follow):
        yield


def _same_operations(whole: jaxpr.Program, pruned: jaxpr.Program) -> None:
    end = ("nothing", "the end")
    steps = [
        (*((step.name, step.scope) for step in program.steps), end)
        for program in (whole, pruned)
    ]
    for one, other in zip(*steps, strict=False):
        if one != other:
            raise ValueError(
                "the pruned network has other operations than the whole one: its code "
                f"decides by a width: first {other[0]} in {other[1]}, where the whole "
                f"one has {one[0]} in {one[1]}"
            )


def _relative(results: Any, expected: Any) -> float:
    worst = 0.0
    for a, b in zip(jax.tree.leaves(results), jax.tree.leaves(expected), strict=True):
        a, b = (np.asarray(v, np.float64) for v in (a, b))
        if a.shape != b.shape:
            return np.inf
        both = np.isfinite(a) & np.isfinite(b)
        if not np.array_equal(a[~both], b[~both], equal_nan=True):
            return np.inf
        scale = np.abs(b[both]).max(initial=0.0) or 1.0
        worst = max(worst, float(np.abs(a[both] - b[both]).max(initial=0.0) / scale))
    return worst


def _first_difference(apply, plan, variables, dropped, inputs, pruned) -> str:
    """The first operation whose result has another shape than the plan predicts."""
    marks = _marks(apply, plan, variables, inputs)
    keep = np.append(plan.keep(dropped), True)
    for (equation, units), step in zip(marks, pruned.steps, strict=True):
        for of, shape in zip(units, map(pruned.shape, step.outputs), strict=True):
            expected = [
                n if u is None else keep[u].sum()
                for u, n in zip(of, shape, strict=True)
            ]
            if expected != list(shape):
                return f"first {equation.at(f'a result of shape {shape}')}"
    return "all its results have the shapes that the plan predicts"


def _first_error(
    apply, plan, variables, dropped, inputs, whole, pruned, tolerance
) -> str:
    """The first operation whose result is not the masked one's, kept indices only."""
    marks = _marks(apply, plan, variables, inputs)
    keep = np.append(plan.keep(dropped), True)
    trees = plan.mask(variables, dropped), plan.apply(variables, dropped)
    runs = (
        _results(program, jax.tree.leaves((tree, inputs)))
        for program, tree in zip((whole, pruned), trees, strict=True)
    )
    for (equation, units), masked, small in zip(marks, *runs, strict=True):
        for of, a, b in zip(units, masked, small, strict=True):
            if not jax.dtypes.issubdtype(a.dtype, np.number):
                continue
            a = _kept(np.asarray(a), of, keep, b.shape)
            if a.shape != b.shape or _relative(b, a) > tolerance:
                return f"first at {equation.at('a result')}"
    return "no operation alone differs by so much"


def _marks(apply, plan, variables, inputs):
    """(operation, for each result the units along each axis) in order.

    Units are None along an axis of which nothing is known.
    """
    values, ledger = walk(apply, variables, inputs, allow=True, equal=True)
    unit = np.full(ledger.labels, -2)
    for value, leaf in zip(values, plan.leaves, strict=True):
        for axis, units in zip(value.axes, leaf.units, strict=True):
            if axis.labels is not None:
                unit[axis.labels] = -1 if units is None else units

    def along(axis):
        if axis.labels is None:
            return None
        units = np.where(axis.labels < 0, -1, unit[axis.labels])
        return None if (units == -2).any() else units

    for equation, results in ledger.trace:
        yield equation, [[along(axis) for axis in v.axes] for v in results]


def _kept(a: np.ndarray, units: list, keep: np.ndarray, shape: tuple) -> np.ndarray:
    """The entries of a masked result that the pruned one has too."""
    for k, (of, n) in enumerate(zip(units, shape, strict=True)):
        indices = range(min(a.shape[k], n)) if of is None else np.flatnonzero(keep[of])
        a = np.take(a, indices, axis=k)
    return a


def _results(program: jaxpr.Program, args: list) -> list[list]:
    """The results of each step of a program."""
    found = []

    def noted(step, *values):
        found.append(jaxpr.evaluate(step, *values))
        return found[-1]

    jaxpr.run(program, args, noted)
    return found
