"""The walk over a traced program, which applies the rules to every equation."""

from typing import Any

import numpy as np

from jaxkd import cost
from jaxkd.compress.prune import _rules
from jaxkd.compress.prune._labels import (
    Axis,
    Equation,
    Ledger,
    Product,
    Value,
    constant,
)

# Where a call keeps the program that it calls; all that a call has besides are
# gradients and compiler's hints.
CALLED = ("jaxpr", "call_jaxpr", "fun_jaxpr")
CALLS = {"jit", "pjit", "closed_call", "core_call", "checkpoint", "remat", "remat2"} | {
    "custom_jvp_call",
    "custom_vjp_call",
    "custom_vjp_call_jaxpr",
}


def interpret(
    ledger: Ledger, jaxpr: Any, consts: Any, args: list[Value], scope: str = ""
) -> list[Value]:
    """The values of a program's results, with all it ties written into the ledger."""
    known = dict(zip(jaxpr.invars, args, strict=True))
    for variable, const in zip(jaxpr.constvars, consts, strict=True):
        known[variable] = _constant(ledger, const)

    def read(atom):
        return _constant(ledger, atom.val) if hasattr(atom, "val") else known[atom]

    for eqn in jaxpr.eqns:
        values = [read(atom) for atom in eqn.invars]
        results = _equation(ledger, eqn, values, scope)
        known.update(zip(eqn.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def inner(eqn: Any) -> tuple[Any, Any] | None:
    """The program that an equation calls, (program, its constants), or None."""
    if eqn.primitive.name not in CALLS:
        return None
    found = next((eqn.params[k] for k in CALLED if k in eqn.params), None)
    if found is None:
        return None
    program = getattr(found, "jaxpr", found)
    if len(program.invars) != len(eqn.invars):
        return None
    return program, getattr(found, "consts", ())


def below(scope: str, eqn: Any) -> str:
    """The module that an equation is from."""
    return "/".join(filter(None, (scope, str(eqn.source_info.name_stack))))


def _constant(ledger: Ledger, value: Any) -> Value:
    if np.shape(value) == () and np.asarray(value).dtype.kind in "biuf":
        return Value((), float(value))
    return constant(ledger, np.shape(value), "a constant array")


def _equation(ledger, eqn, values, scope) -> list[Value]:
    scope = below(scope, eqn)
    if called := inner(eqn):
        program, consts = called
        return interpret(ledger, program, consts, values, scope)
    shapes = lambda atoms: tuple(tuple(np.shape(atom.aval)) for atom in atoms)
    name = eqn.primitive.name
    equation = Equation(
        name, eqn.params, shapes(eqn.invars), shapes(eqn.outvars), scope
    )
    if name == "scan":
        results = _scan(ledger, equation, values)
    elif name in _rules.RULES:
        results = _rules.RULES[name](ledger, equation, values)
    else:
        ledger.products.append(Product(_whole(eqn) * ledger.times, ()))
        results = _rules.unknown(ledger, equation, values)
    for value, shape in zip(results, equation.outputs, strict=True):
        _check_lengths(equation, value, shape)
    ledger.trace.append((equation, results))
    return results


def _whole(eqn) -> int:
    """Multiply-accumulates inside an operation that has no rule."""
    bind = lambda *args: eqn.primitive.bind(*args, **eqn.params)
    if not any(hasattr(getattr(p, "jaxpr", p), "eqns") for p in _flat(eqn.params)):
        return 0
    return cost.macs(bind, *(atom.aval for atom in eqn.invars))


def _flat(params):
    for value in params.values():
        yield from value if isinstance(value, tuple | list) else (value,)


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


def _scan(ledger: Ledger, equation: Equation, values: list[Value]) -> list[Value]:
    """A loop: what is carried keeps its labels from one turn to the next."""
    length, body = equation.params["length"], equation.params["jaxpr"]
    program = getattr(body, "jaxpr", body)
    # What is looped over or stacked has one more axis outside than inside. (The
    # parameters that say how many there are differ between JAX's versions.)
    more = lambda outer, inner: sum(
        len(shape) > len(v.aval.shape) for shape, v in zip(outer, inner, strict=True)
    )
    carry = len(values) - more(equation.inputs, program.invars)
    carries = len(equation.outputs) - more(equation.outputs, program.outvars)
    consts = carry - carries
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
        ledger,
        program,
        getattr(body, "consts", ()),
        [*values[:consts], *carried, *each],
        equation.scope,
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


def _carry(ledger: Ledger, value: Value, shape: tuple[int, ...]) -> Value:
    """What is known of it on every turn: its labels, and no more."""
    axes = tuple(
        Axis(ledger.fresh(n)) if a.labels is None and n > 1 else Axis(a.labels)
        for a, n in zip(value.axes, shape, strict=True)
    )
    return Value(axes, learned=False)
