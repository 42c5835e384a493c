"""The walk over a traced program, which applies the rules to every step."""

from typing import Any

import numpy as np

from jaxkd import cost, jaxpr
from jaxkd.compress.prune.trace import rules
from jaxkd.compress.prune.trace.labels import (
    Axis,
    Equation,
    Ledger,
    Product,
    Traced,
    constant,
)


def interpret(
    ledger: Ledger, program: jaxpr.Program, args: list[Traced], scope: str = ""
) -> list[Traced]:
    """Return the values of a program's results; write all that it ties to the ledger.

    Args:
      ledger: filled as the walk goes.
      program: what is walked over.
      args: of the program's inputs.
      scope: of the program itself, where it is a loop's body.
    """
    known = {i: _constant(ledger, value) for i, value in program.constants.items()}
    known.update(zip(program.inputs, args, strict=True))
    for step in program.steps:
        values = [known[i] for i in step.inputs]
        results = _step(ledger, program, step, values, scope)
        known.update(zip(step.outputs, results, strict=True))
    return [known[i] for i in program.outputs]


def _constant(ledger: Ledger, value: Any) -> Traced:
    if np.shape(value) == () and np.asarray(value).dtype.kind in "biuf":
        return Traced((), float(value))
    return constant(ledger, np.shape(value), "a constant array")


def _step(ledger, program, step, values, scope) -> list[Traced]:
    equation = Equation(
        step.name,
        step.params,
        tuple(program.shape(i) for i in step.inputs),
        tuple(program.shape(i) for i in step.outputs),
        "/".join(filter(None, (scope, step.scope))),
    )
    if step.name == "scan":
        (body,) = jaxpr.bodies(step)
        results = _scan(ledger, equation, body, values)
    elif step.name in rules.RULES:
        results = rules.RULES[step.name](ledger, equation, values)
    else:
        macs = cost.step_macs(program, step)
        ledger.products.append(Product(macs * ledger.times, ()))
        results = rules.unknown(ledger, equation, values)
    for value, shape in zip(results, equation.outputs, strict=True):
        _check_lengths(equation, value, shape)
    ledger.trace.append((equation, results))
    return results


def _check_lengths(equation, value, shape):
    """A rule that breaks an operation's shape is a mistake of ours, found here."""
    if len(value.axes) != len(shape):
        raise AssertionError(f"{len(value.axes)} axes for a result {shape}: {equation}")
    lengths = [
        n if a.labels is None else len(a.labels)
        for a, n in zip(value.axes, shape, strict=True)
    ]
    if lengths != list(shape):
        raise AssertionError(f"labels {lengths} for a result {shape} of {equation}")


def _scan(
    ledger: Ledger, equation: Equation, body: jaxpr.Program, values: list[Traced]
) -> list[Traced]:
    """Walk over a loop; a carried value has the same labels in every iteration."""
    loop = jaxpr.scan(equation.params)
    length, consts, carries = loop.length, loop.constants, loop.carry
    carry = consts + carries
    ledger.fix([v.axes[0] for v in values[carry:]], equation.at("looped over"))
    carried = [
        _carry(ledger, value, shape)
        for value, shape in zip(
            values[consts:carry], equation.inputs[consts:carry], strict=True
        )
    ]
    each = [v._replace(axes=v.axes[1:]) for v in values[carry:]]
    ledger.times *= length
    steps = len(ledger.trace)
    results = interpret(
        ledger, body, [*values[:consts], *carried, *each], equation.scope
    )
    ledger.times //= length
    del ledger.trace[steps:]  # the trace has the loop as one step
    for before, after in zip(carried, results, strict=False):
        for a, b in zip(before.axes, after.axes, strict=True):
            ledger.tie(a.labels, b.labels)
    stacked = Axis()
    if length > 1:
        stacked = Axis(np.full(length, ledger.stay(equation.at("looped over"))))
    rest = [v._replace(axes=(stacked, *v.axes)) for v in results[carries:]]
    return [*carried, *rest]


def _carry(ledger: Ledger, value: Traced, shape: tuple[int, ...]) -> Traced:
    """Return what is known in every iteration: the labels, and no more."""
    axes = tuple(
        Axis(ledger.fresh(n)) if a.labels is None and n > 1 else Axis(a.labels)
        for a, n in zip(value.axes, shape, strict=True)
    )
    return Traced(axes, learned=False)
