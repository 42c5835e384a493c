"""A traced network as a flat list of operations, to be read and run anew.

One graph serves training, the collection of ranges and deployment, so that what was
trained is what runs on the device.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxkd import _tree
from jaxkd.models.convolution import conv_general_dilated, plain_convolutions

ROOM = "quantized"  # the name scope whose inside names the layers
CALLS = {"jit", "pjit", "closed_call", "core_call", "checkpoint", "remat", "remat2"}
CUSTOM = {"custom_jvp_call", "custom_vjp_call"}
LINEAR = {"conv_general_dilated", "dot_general"}


class Op(NamedTuple):
    """One operation.

    Attributes:
      kind: the primitive's name; "relu" for ReLU however it is written; "select" for a
        function with its own derivative that only picks and moves numbers.
      equation: as traced.
      inputs: which values it reads.
      outputs: which values it makes.
      scope: path of the module that it belongs to.
    """

    kind: str
    equation: Any
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    scope: str


class Graph(NamedTuple):
    """Operations in an order in which they can run; values are numbered.

    Attributes:
      ops: the operations.
      inputs: the arguments' leaves, in order.
      outputs: the results' leaves, in order.
      constants: values known beforehand.
      avals: shape and type of every value.
      paths: of the arguments' leaves, e.g. "0/head/kernel".
      out_tree: structure of the results.
    """

    ops: list[Op]
    inputs: list[int]
    outputs: list[int]
    constants: dict[int, Any]
    avals: list[Any]
    paths: list[str]
    out_tree: Any


def trace(f: Callable[..., Any], *args: Any, whole: bool = False) -> Graph:
    """The operations of `f(*args)`.

    Calls are replaced by what they call. Functions with derivatives of their own stay
    whole, unless they hold a convolution or a matrix product, whose fast derivatives
    `evaluate` restores.

    Args:
      f: any function that `jax.make_jaxpr` traces.
      *args: its arguments.
      whole: also open the functions with derivatives of their own; for graphs that
        nobody differentiates.

    Returns:
      The graph.
    """

    def named(*args):
        # Convolutions as such, whatever form is fast here: `evaluate` sees to that.
        with jax.named_scope(ROOM), plain_convolutions():
            return f(*args)

    closed, shapes = jax.make_jaxpr(named, return_shape=True)(*args)
    leaves = jax.tree_util.tree_leaves_with_path(args)
    paths = [_tree.path(keys) for keys, _ in leaves]
    builder = _Builder([], {}, [], whole)
    inputs = [_new(builder, v.aval) for v in closed.jaxpr.invars]
    outputs = _inline(builder, closed.jaxpr, closed.consts, inputs, "")
    return Graph(
        builder.ops,
        inputs,
        outputs,
        builder.constants,
        builder.avals,
        paths,
        jax.tree.structure(shapes),
    )


class _Builder(NamedTuple):
    ops: list[Op]
    constants: dict[int, Any]
    avals: list[Any]
    whole: bool


def _new(builder: _Builder, aval: Any) -> int:
    builder.avals.append(aval)
    return len(builder.avals) - 1


def _constant(builder: _Builder, value: Any, aval: Any) -> int:
    number = _new(builder, aval)
    builder.constants[number] = value
    return number


def _inline(
    builder: _Builder, jaxpr: Any, consts: Any, args: list[int], scope: str
) -> list[int]:
    """Appends the operations of a program; returns the values of its results."""
    values = dict(zip(jaxpr.invars, args, strict=True))
    for variable, value in zip(jaxpr.constvars, consts, strict=True):
        values[variable] = _constant(builder, value, variable.aval)

    def read(atom):
        if hasattr(atom, "val"):  # a literal
            return _constant(builder, atom.val, atom.aval)
        return values[atom]

    for equation in jaxpr.eqns:
        inputs = [read(atom) for atom in equation.invars]
        here = _join(scope, str(equation.source_info.name_stack))
        inner = _opened(equation, builder.whole)
        if inner is not None:
            outputs = _inline(builder, *_parts(inner), inputs, here)
        else:
            outputs = [_new(builder, v.aval) for v in equation.outvars]
            kind = _kind(equation)
            builder.ops.append(
                Op(kind, equation, tuple(inputs), tuple(outputs), _module(here))
            )
        values.update(zip(equation.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _join(scope: str, name: str) -> str:
    return f"{scope}/{name}" if scope and name else scope or name


def _module(scope: str) -> str:
    """The path of the module, without what is outside it and its own class's name."""
    inside = scope.split("/")
    inside = inside[inside.index(ROOM) + 1 :] if ROOM in inside else inside
    return "/".join(inside[1:])


def _opened(equation: Any, whole: bool) -> Any:
    """The program to put in an operation's place, or None."""
    name, params = equation.primitive.name, equation.params
    if name in CALLS:
        return params.get("jaxpr", params.get("call_jaxpr"))
    if name in CUSTOM:
        inner = params["call_jaxpr"]
        if _kind(equation) == "select":  # exporters know it as a maximum of windows
            return None
        body = equations(_parts(inner)[0])
        if whole or any(e.primitive.name in LINEAR for e in body):
            return inner
    return None


def _parts(program: Any) -> tuple[Any, Any]:
    """A program and its constants; not every version of JAX keeps them together."""
    return getattr(program, "jaxpr", program), getattr(program, "consts", ())


def equations(jaxpr: Any) -> Iterator[Any]:
    """All equations of a program and of those it calls."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for item in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(item, "jaxpr", item)
                if hasattr(inner, "eqns"):
                    yield from equations(inner)


MOVES = {
    "broadcast_in_dim",
    "copy",
    "copy_p",
    "dynamic_slice",
    "expand_dims",
    "gather",
    "name",
    "reduce_max",
    "reduce_window_max",
    "reshape",
    "rev",
    "slice",
    "split",
    "squeeze",
    "stop_gradient",
    "transpose",
}  # what they give are numbers that they were given


def _kind(equation: Any) -> str:
    name = equation.primitive.name
    if name in CUSTOM:
        body = [
            e
            for e in equations(_parts(equation.params["call_jaxpr"])[0])
            if e.primitive.name not in CALLS
        ]
        if len(body) == 1 and _is_relu(body[0]):
            return "relu"
        if {e.primitive.name for e in body} <= MOVES | {"max"}:
            return "select"
    return "relu" if _is_relu(equation) else name


def _is_relu(equation: Any) -> bool:
    return equation.primitive.name == "max" and any(
        hasattr(v, "val") and np.ndim(v.val) == 0 and v.val == 0
        for v in equation.invars
    )


def evaluate(op: Op, *args: Any) -> list[Any]:
    """The results of one operation; convolutions with gradients fast on the CPU."""
    params, primitive = op.equation.params, op.equation.primitive
    if op.kind == "conv_general_dilated":
        return [_convolution(params, *args)]
    out = primitive.bind(*args, **primitive.get_bind_params(params))
    return list(out) if primitive.multiple_results else [out]


def _convolution(params: dict[str, Any], x: Any, kernel: Any) -> Any:
    rest = {k: v for k, v in params.items() if k not in ("out_sharding",)}
    if rest.get("preferred_element_type") == x.dtype:
        rest["preferred_element_type"] = None
    return conv_general_dilated(
        x,
        kernel,
        rest.pop("window_strides"),
        rest.pop("padding"),
        **rest,
    )
