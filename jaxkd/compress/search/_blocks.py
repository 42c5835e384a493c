"""A network as the sum of its blocks: the modules that the outermost one calls.

Candidates of a space share most of their blocks. A block is traced once for each of its
configurations and input shapes; in other networks a placeholder of its output stands in
for it, so that what a candidate costs is known in milliseconds.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxkd import cost as costs
from jaxkd.models.interception import by_position
from jaxkd.models.net import Net

UNTOLD = ("parent", "name")


class TracedBlock(NamedTuple):
    """A module with its arguments, and what they cost.

    Attributes:
      run: from the array arguments to the block's output, with variables of its own.
      inputs: shapes and types of the array arguments.
      output: likewise, of what it returns.
      macs: multiply-accumulates of one image.
      parameters: numbers that training moves.
    """

    run: Callable[..., Any]
    inputs: tuple[jax.ShapeDtypeStruct, ...]
    output: Any
    macs: int
    parameters: int


class Whole(NamedTuple):
    """A network taken apart.

    Attributes:
      keys: of its blocks, in the order of their calls.
      macs: multiply-accumulates of one image, of the blocks and what joins them.
      parameters: numbers that training moves.
    """

    keys: tuple[str, ...]
    macs: int
    parameters: int


def taken_apart(
    net: Net, image_shape: tuple[int, ...], known: dict[str, TracedBlock]
) -> Whole:
    """Find the blocks of a network, and add to `known` those that are new.

    A network that is not of linen, or that calls no modules, has none: its cost is
    that of what joins them.
    """
    keys: list[str] = []
    paths: dict[tuple[str, ...], str] = {}

    tracing = False  # a block by itself, whose own modules are not to be replaced

    def intercept(following, args, kwargs, context):
        nonlocal tracing
        module = context.module
        if tracing or context.method_name != "__call__" or len(module.path) != 1:
            return following(*args, **kwargs)
        args, kwargs = by_position(following, args, kwargs)
        key = _key(module, args, kwargs)
        if key not in known:
            tracing = True
            known[key] = _block(module, args, kwargs)
            tracing = False
        keys.append(key)
        paths[module.path] = key  # one that is called twice has its parameters once
        module.put_variable("params", "none", jnp.zeros((0,)))  # `init` asks for some
        return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), known[key].output)

    shapes = []

    def start(key, x):
        variables = net.init(key, x)
        shapes.append(jax.tree.map(_shape, variables))
        return variables

    x = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    with nn.intercept_methods(intercept):
        joint = costs.macs(start, jax.random.key(0), x)
    return Whole(
        tuple(keys),
        joint + sum(known[key].macs for key in keys),
        costs.parameters(shapes[0][0])
        + sum(known[key].parameters for key in paths.values()),
    )


def _block(module: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> TracedBlock:
    """Trace a module by itself, with its variables' initialisation."""
    alone = module.clone(parent=None, name=None)
    inputs = tuple(_shape(a) for a in args if _is_array(a))
    traced = []

    def filled(arrays):
        rest = iter(arrays)
        return [next(rest) if _is_array(a) else a for a in args]

    def start(key, *arrays):
        out = alone.init_with_output(key, *filled(arrays), **kwargs)
        traced.append(jax.tree.map(_shape, out))
        return out

    def run(*arrays):
        zeros = [jnp.zeros(a.shape, a.dtype) for a in inputs]
        # Concrete also where `run` is being traced: constants of the exported program.
        with jax.ensure_compile_time_eval():
            variables = start(jax.random.key(0, impl="rbg"), *zeros)[1]
        return alone.apply(variables, *filled(arrays), **kwargs)

    macs = costs.macs(start, jax.random.key(0), *inputs)
    output, variables = traced[0]
    params = costs.parameters(variables.get("params", {}))
    return TracedBlock(run, inputs, output, macs, params)


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _shape(value: Any) -> Any:
    return jax.ShapeDtypeStruct(value.shape, value.dtype)


def _key(module: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> str:
    """Return the configuration of a module and the shapes of its inputs, in words."""
    told = [*args, *(kwargs[name] for name in sorted(kwargs))]
    return f"{_described(module)} of {', '.join(map(_described, told))}"


def _described(value: Any) -> str:
    if _is_array(value):
        return f"{value.dtype}{list(value.shape)}"
    if isinstance(value, nn.Module):
        fields = (f for f in dataclasses.fields(value) if f.name not in UNTOLD)
        told = (f"{f.name}={_described(getattr(value, f.name, None))}" for f in fields)
        return f"{type(value).__qualname__}({', '.join(told)})"
    if callable(value):  # without its address, which changes from run to run
        module = getattr(value, "__module__", "")
        return f"{module}.{getattr(value, '__qualname__', type(value).__qualname__)}"
    return repr(value)
