"""Check that a pruned network computes what the masked one does."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxkd import cost, jaxpr
from jaxkd.compress.prune import _trial
from jaxkd.compress.prune.analysis import logits_of, walk
from jaxkd.compress.prune.plan import Plan


class CheckResult(NamedTuple):
    """The result of a check.

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
) -> CheckResult:
    """Run the network pruned and masked, compare the results, count operations.

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
      The report. If the plan allowed reductions over channels (`Plan.inexact`), the
      difference is reported and not judged.

    Raises:
      ValueError: if the pruned network does not run, has other operations or results
        than the masked one, or another number of multiply-accumulates than predicted:
        with the module and the operation where they first differ.
    """
    small, masked = plan.apply(variables, dropped), _masked(plan, variables, dropped)
    # Accelerators would round float32 to fewer bits, and see a difference in that.
    exactly = functools.partial(jax.default_matmul_precision, "highest")
    try:
        with exactly():
            program = _trial.pruned_program(apply, variables, small, inputs)
    except ValueError as error:
        raise ValueError(
            f"{error}\nIts code may decide by a width or reshape to one; take these "
            "channels out of the plan with exclude=."
        ) from error
    with exactly():
        whole = jaxpr.trace(apply, masked, *inputs)
    if operation := _trial.other_operation(whole, program):
        raise ValueError(operation)
    macs = cost.program_macs(program)
    if cost.program_macs(whole) == plan.macs() and macs != plan.macs(dropped):
        marks = _marks(apply, plan, variables, inputs)
        where = _trial.other_shape(marks, plan.keep(dropped), program)
        raise ValueError(
            f"the pruned network has {macs} multiply-accumulates, its plan predicts "
            f"{plan.macs(dropped)}; first {where}"
        )
    report = CheckResult(np.nan, macs, plan.params(dropped))
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
) -> CheckResult:
    """Check a `jaxkd.models.Net` by its logits in inference, on a batch of images.

    Args:
      net: the network.
      plan: from `analyse_net`.
      params: of the whole network.
      state: of the whole network.
      dropped: the units to remove.
      x: images, `[batch, height, width, channels]`, as the network sees them.
      **how: `tolerance`.

    Returns:
      The report.
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
    for mark, masked, small in zip(marks, *runs, strict=True):
        for of, a, b in zip(mark.units, masked, small, strict=True):
            if not jax.dtypes.issubdtype(a.dtype, np.number):
                continue
            a = _kept(np.asarray(a), of, keep, b.shape)
            if a.shape != b.shape or _relative(b, a) > tolerance:
                return f"first at {mark.equation.at('a result')}"
    return "no operation alone differs by so much"


def _marks(apply, plan, variables, inputs) -> list[_trial.Prediction]:
    """What the plan predicts of each step, with reductions over channels followed."""
    _, values, ledger = walk(apply, variables, inputs, True, plan._equal)
    unit = np.full(ledger.labels, -2)
    for value, leaf in zip(values, plan.leaves, strict=True):
        for axis, units in zip(value.axes, leaf.units, strict=True):
            if axis.labels is not None:
                unit[axis.labels] = -1 if units is None else units
    return _trial.marks(ledger, unit)


def _kept(a: np.ndarray, units: list, keep: np.ndarray, shape: tuple) -> np.ndarray:
    """Return the entries of a masked result that the pruned one has too."""
    for k, (of, n) in enumerate(zip(units, shape, strict=True)):
        indices = range(min(a.shape[k], n)) if of is None else np.flatnonzero(keep[of])
        a = np.take(a, indices, axis=k)
    return a


def _results(program: jaxpr.Program, args: list) -> list[list]:
    """Return the results of each step of a program."""
    found = []

    def noted(step, *values):
        found.append(jaxpr.evaluate(step, *values))
        return found[-1]

    jaxpr.run(program, args, noted)
    return found
