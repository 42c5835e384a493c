"""A traced function as a flat list of steps, with the calls in it written out.

    program = trace(f, x)             # nothing is computed
    for step in program.steps:        # in an order in which they can run
        print(step.scope, step.name, [program.shape(i) for i in step.outputs])
    run(program, [x])                 # the leaves of f(x)

JAX wraps parts of a program in calls (`jax.jit`, `jax.checkpoint`, functions with
derivatives of their own). Which primitives these are, and how a loop describes its
operands, differs between its versions: that is read here and nowhere else.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax

# Primitives that do no more than run a program, and the parameter that holds it.
CALLS = {
    "checkpoint": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "core_closed_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "remat": "jaxpr",
    "remat2": "jaxpr",
}
CUSTOM = {name for name in CALLS if name.startswith("custom_")}
CUSTOM_JVP = "custom_jvp_call"
LOOPS = ("scan", "while")


class Step(NamedTuple):
    """One operation of a program.

    Attributes:
      equation: JAX's own, for its primitive and parameters.
      inputs: the numbers of the values that it reads.
      outputs: the numbers of the values that it computes.
      scope: path of the name scopes (in linen, the modules) that it was traced in.
      function: name of the function of `jax.nn` that it is part of, or "".
    """

    equation: Any
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    scope: str
    function: str

    @property
    def name(self) -> str:
        """The primitive's name."""
        return self.equation.primitive.name

    @property
    def params(self) -> dict[str, Any]:
        """The primitive's parameters."""
        return self.equation.params


class Scan(NamedTuple):
    """What a `lax.scan` does.

    Attributes:
      body: the program of one step, of the constants, the carry and a slice of each
        array scanned over, to the next carry and the outputs to be stacked.
      constants: number of operands that every step reads.
      carry: number of operands, next to those, that each step replaces. The rest are
        the arrays scanned over.
      length: number of steps.
      reverse: whether the last slice comes first.
    """

    body: Any
    constants: int
    carry: int
    length: int
    reverse: bool


class Program(NamedTuple):
    """Steps in an order in which they can run; values are numbered.

    Attributes:
      steps: the operations.
      inputs: the values of the arguments' leaves, in order.
      outputs: the values of the results' leaves, in order.
      constants: the values known beforehand: literals and arrays closed over.
      avals: shape and type of every value.
    """

    steps: list[Step]
    inputs: list[int]
    outputs: list[int]
    constants: dict[int, Any]
    avals: list[Any]

    def shape(self, value: int) -> tuple[int, ...]:
        """Return the shape of a value."""
        return tuple(self.avals[value].shape)


Opened = Callable[[str, Program], bool]


def trace(f: Callable[..., Any], *args: Any) -> Program:
    """Trace `f(*args)`; the arguments may be `jax.ShapeDtypeStruct`s.

    Example:
      >>> relu_twice = lambda x: jax.nn.relu(jax.jit(jax.nn.relu)(x))
      >>> [step.name for step in trace(relu_twice, 1.0).steps]
      ['max', 'max']
    """
    return flatten(jax.make_jaxpr(f)(*args))


def flatten(jaxpr: Any, opened: Opened | None = None) -> Program:
    """List the steps of a jaxpr, with the steps of a call in the call's place.

    Args:
      jaxpr: from `jax.make_jaxpr`, closed or not.
      opened: `(primitive's name, program called) -> bool`, whether to replace a call by
        its steps; the others stay one step. All are replaced by default.

    Returns:
      The program.
    """
    program = Program([], [], [], {}, [])
    program.inputs.extend(_new(program, v.aval) for v in _open(jaxpr).invars)
    program.outputs.extend(_append(program, jaxpr, program.inputs, "", "", opened))
    return program


def place(scope: str, step: Step) -> str:
    """Return where a step is, for a reader: "Net/block", "Net/block/leaky_relu()".

    Args:
      scope: of the step, as the reader knows it.
      step: of which the function of `jax.nn`, if it is part of one, is named.
    """
    named = step.function and step.function != step.name
    return "/".join(filter(None, (scope, f"{step.function}()" * bool(named))))


def needed(program: Program) -> list[Step]:
    """Return the steps that the results depend on, in order."""
    wanted = set(program.outputs)
    kept = []
    for step in reversed(program.steps):
        if wanted.intersection(step.outputs):
            kept.append(step)
            wanted.update(step.inputs)
    return kept[::-1]


def bodies(step: Step) -> list[Program]:
    """Programs inside a step: bodies of loops, branches, a call that stayed closed."""
    return [flatten(jaxpr) for jaxpr in _inside(step.params)]


def times(step: Step) -> int:
    """How often a step runs its body: a scan's length; 1 where it is not known."""
    return scan(step.params).length if step.name == "scan" else 1


def scan(params: dict[str, Any]) -> Scan:
    """Read the parameters of a `scan` equation, whose names differ between versions."""
    if "ft_in" in params:  # since jax 0.12: the operands as a tree of three parts
        constants, carry, _ = (len(list(part)) for part in params["ft_in"].unpack())
    else:
        constants, carry = params["num_consts"], params["num_carry"]
    return Scan(params["jaxpr"], constants, carry, params["length"], params["reverse"])


def evaluate(step: Step, *values: Any) -> list[Any]:
    """Compute, or trace, the results of one step."""
    primitive = step.equation.primitive
    out = primitive.bind(*values, **primitive.get_bind_params(step.params))
    return list(out) if primitive.multiple_results else [out]


def run(
    program: Program,
    args: Sequence[Any],
    evaluate: Callable[..., list[Any]] = evaluate,
) -> list[Any]:
    """Run a program.

    Args:
      program: from `trace` or `flatten`.
      args: the leaves of its arguments.
      evaluate: `(step, *values) -> results`, to compute a step otherwise.

    Returns:
      The leaves of its results.
    """
    known = program.constants | dict(zip(program.inputs, args, strict=True))
    for step in program.steps:
        results = evaluate(step, *(known[i] for i in step.inputs))
        known.update(zip(step.outputs, results, strict=True))
    return [known[i] for i in program.outputs]


def _append(program, jaxpr, args, scope, function, opened) -> list[int]:
    """Append the steps of a jaxpr; return the values of its results."""
    inner, consts = _open(jaxpr), getattr(jaxpr, "consts", ())
    numbers = dict(zip(inner.invars, args, strict=True))
    for variable, const in zip(inner.constvars, consts, strict=True):
        numbers[variable] = _constant(program, variable.aval, const)

    def read(atom):
        if hasattr(atom, "val"):  # a literal
            return _constant(program, atom.aval, atom.val)
        return numbers[atom]

    for eqn in inner.eqns:
        inputs = [read(atom) for atom in eqn.invars]
        here = "/".join(filter(None, (scope, str(eqn.source_info.name_stack))))
        called = _called(eqn, opened)
        if called is not None:
            name = eqn.params.get("name", "")
            # Of what is jitted inside, e.g. `_where`, the user knows nothing.
            inner_function = name if name in jax.nn.__dict__ else function
            outputs = _append(program, called, inputs, here, inner_function, opened)
        else:
            outputs = [_new(program, v.aval) for v in eqn.outvars]
            step = Step(eqn, tuple(inputs), tuple(outputs), here, function)
            program.steps.append(step)
        numbers.update(zip(eqn.outvars, outputs, strict=True))
    return [read(atom) for atom in inner.outvars]


def _called(eqn: Any, opened: Opened | None) -> Any:
    """Return the jaxpr to write in an equation's place, or None."""
    name = eqn.primitive.name
    called = eqn.params.get(CALLS.get(name, ""))
    if called is None or (opened is not None and not opened(name, flatten(called))):
        return None
    return called


def _new(program: Program, aval: Any) -> int:
    program.avals.append(aval)
    return len(program.avals) - 1


def _constant(program: Program, aval: Any, value: Any) -> int:
    number = _new(program, aval)
    program.constants[number] = value
    return number


def _open(jaxpr: Any) -> Any:
    return getattr(jaxpr, "jaxpr", jaxpr)


def _inside(params: dict[str, Any]) -> Iterator[Any]:
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if hasattr(_open(item), "eqns"):
                yield item
