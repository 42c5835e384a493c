"""A traced network as a flat list of operations, to be read and run anew.

One graph serves training, the collection of ranges and deployment, so that what was
trained is what runs on the device.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxkd import _tree, jaxpr
from jaxkd.models.convolution import conv_general_dilated, plain_convolutions

SCOPE = "quantized"  # the name scope whose inside names the layers
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
      place: the same for a reader: with the class of the network before it, and with
        the function of `jax.nn` that it is part of behind it, "Net/block/elu()".
    """

    kind: str
    equation: Any
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    scope: str
    place: str


class OpGraph(NamedTuple):
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


def trace(f: Callable[..., Any], *args: Any, whole: bool = False) -> OpGraph:
    """Return the operations of `f(*args)`.

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
        with jax.named_scope(SCOPE), plain_convolutions():
            return f(*args)

    closed, shapes = jax.make_jaxpr(named, return_shape=True)(*args)
    leaves = jax.tree_util.tree_leaves_with_path(args)
    program = jaxpr.flatten(closed, lambda name, body: _opened(name, body, whole))
    ops = [_op(program, step) for step in program.steps]
    return OpGraph(
        ops,
        program.inputs,
        program.outputs,
        program.constants,
        program.avals,
        [_tree.path(keys) for keys, _ in leaves],
        jax.tree.structure(shapes),
    )


def _op(program: jaxpr.Program, step: jaxpr.Step) -> Op:
    inside = step.scope.split("/")
    inside = inside[inside.index(SCOPE) + 1 :] if SCOPE in inside else inside
    scope = "/".join(inside[1:])  # without the class of the network
    place = jaxpr.place("/".join(inside) or SCOPE, step)
    kind = _kind(program, step)
    return Op(kind, step.equation, step.inputs, step.outputs, scope, place)


def _opened(name: str, body: jaxpr.Program, whole: bool) -> bool:
    """Return whether to put the steps of a call in its place."""
    if name not in jaxpr.CUSTOM:
        return True
    if _what(body) == "select":  # exporters know it as a maximum of windows
        return False
    return whole or bool(LINEAR & _names(body))


def _names(program: jaxpr.Program) -> set[str]:
    """Return the names of all primitives of a program, also inside its loops."""
    inside = [_names(body) for step in program.steps for body in jaxpr.bodies(step)]
    return {step.name for step in program.steps}.union(*inside)


def equations(jaxpr: Any) -> Iterator[Any]:
    """All equations of a program and of those it calls."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for item in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(item, "jaxpr", item)
                if hasattr(inner, "eqns"):
                    yield from equations(inner)


def layers_inside(op: Op) -> set[str]:
    """The convolutions and products in the bodies of a loop, "KIND of MODULE"."""
    found, programs = set(), jaxpr.bodies(jaxpr.Step(op.equation, (), (), "", ""))
    while programs:
        for step in programs.pop().steps:
            programs += jaxpr.bodies(step)
            if step.name in LINEAR:
                found.add(f"{step.name}{f' of {step.scope!r}' if step.scope else ''}")
    return found


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


def _kind(program: jaxpr.Program, step: jaxpr.Step) -> str:
    if step.name in jaxpr.CUSTOM:
        return _what(jaxpr.bodies(step)[0]) or step.name
    return "relu" if _is_relu(program, step) else step.name


def _what(body: jaxpr.Program) -> str | None:
    """Return the kind of a function with a derivative of its own, if it has one."""
    if len(body.steps) == 1 and _is_relu(body, body.steps[0]):
        return "relu"
    return "select" if _names(body) <= MOVES | {"max"} else None


def _is_relu(program: jaxpr.Program, step: jaxpr.Step) -> bool:
    known = [program.constants[i] for i in step.inputs if i in program.constants]
    return step.name == "max" and any(
        not isinstance(value, jax.core.Tracer) and np.ndim(value) == 0 and value == 0
        for value in known
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
