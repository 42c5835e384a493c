"""Which BatchNorms a network has, and into which layer each can be folded."""

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array

from jaxkd.compress.quantize import kernels
from jaxkd.compress.quantize.graph import LINEAR, OpGraph, equations, trace
from jaxkd.models.interception import arguments, intercept_calls
from jaxkd.models.net import Net, naming_images
from jaxkd.types import Params, State

MARK = "fold:"  # names values of layers while the network is traced
NO_VALUE = -1
NORMS = (nn.BatchNorm, nnx.BatchNorm)
LAYERS = (nn.Conv, nn.Dense, nnx.Conv, nnx.Linear)


class Norm(NamedTuple):
    """A BatchNorm as it was called.

    Attributes:
      epsilon: added to the variance.
      use_scale: whether it has a scale.
      use_bias: whether it has a bias.
      layer: path of the Conv or Dense that it is folded into, or None if it stays, as
        a scale and a bias of its own.
    """

    epsilon: float
    use_scale: bool
    use_bias: bool
    layer: str | None


def batch_norms(
    net: Net, params: Params, state: State, image_shape: tuple[int, ...]
) -> tuple[OpGraph, dict[str, Norm]]:
    """Return the traced network, and every BatchNorm by its path."""
    modules: dict[str, Any] = {}
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    with _marked(modules):
        call = lambda p, s, x: net.apply(p, s, x, train=False)
        with naming_images(call, params, state, image):
            graph = trace(call, params, state, image, whole=True)
    marks = _marks(graph)
    plain = _plain(graph, marks)
    pairs = [(a if a in plain else None, b) for a, b in _pairs(graph, marks)]
    _no_norm_in_loops(graph)
    for path, module in modules.items():
        axes = module.axis if isinstance(module.axis, tuple) else (module.axis,)
        if axes != (-1,):
            raise ValueError(
                f"BatchNorm {path!r} normalises axis {module.axis}; only the last axis "
                "(-1) can be folded"
            )
    return graph, {
        path: Norm(m.epsilon, m.use_scale, m.use_bias, _only(pairs, path))
        for path, m in modules.items()
    }


@contextlib.contextmanager
def _marked(norms: dict[str, Any]) -> Iterator[None]:
    """Inside, layers name what they return and BatchNorms what they read."""

    def mark(call, args, kwargs, called):
        if isinstance(called.module, NORMS):
            norms[called.path] = called.module
            given = arguments(call, args, kwargs)
            return call(**given | {"x": _named(given["x"], f"norm:{called.path}")})
        out = call(*args, **kwargs)
        if isinstance(called.module, LAYERS):
            return _named(out, f"layer:{called.path}")
        return out

    with intercept_calls(mark):
        yield


def _named(x: Array, name: str) -> Array:
    return checkpoint_name(x, MARK + name)


def _marks(graph: OpGraph) -> dict[int, tuple[str, str]]:
    """For each operation that marks a value "layer" or "norm", and the path."""
    names = {n: op.equation.params["name"] for n, op in enumerate(graph.ops)
             if op.kind == "name"}  # fmt: skip
    split = {n: name.removeprefix(MARK).partition(":") for n, name in names.items()
             if name.startswith(MARK)}  # fmt: skip
    return {n: (kind, path) for n, (kind, _, path) in split.items()}


def _plain(graph: OpGraph, marks: dict[int, tuple[str, str]]) -> set[str]:
    """Paths of the layers that are x * kernel + bias of parameters which they own.

    Others compute their kernel from a parameter, do more with the product, or share a
    parameter with somebody: scaling that parameter is not scaling their output.
    """
    made = kernels.makers(graph)
    own: dict[str, set[int] | None] = {}  # the operations of all calls of a layer
    for number, (kind, path) in marks.items():
        if kind == "layer":
            value = graph.ops[number].inputs[0]
            call, known = _call(graph, made, path, value), own.get(path, set())
            own[path] = None if call is None or known is None else call | known
    readers: dict[str | None, set[int]] = {}
    for number, op in enumerate(graph.ops):
        if op.kind not in kernels.VIEWS:
            for value in op.inputs:
                root = kernels.view(graph, made, value).path
                readers.setdefault(root, set()).add(number)
    for value in graph.outputs:
        readers.setdefault(kernels.view(graph, made, value).path, set()).add(-1)
    return {
        layer
        for layer, ops in own.items()
        if ops is not None
        and all(
            readers.get(f"{layer}/{name}", set()) <= ops for name in ("kernel", "bias")
        )
    }


def _call(
    graph: OpGraph, made: dict[int, int], layer: str, value: int
) -> set[int] | None:
    """The operations of a call of a layer with this result, or None of another form."""
    ops: set[int] = set()
    while value in made:
        op = graph.ops[made[value]]
        if op.kind in ("reshape", "squeeze", "convert_element_type"):
            value = op.inputs[0]
            continue
        ops.add(made[value])
        seen = [kernels.view(graph, made, v) for v in op.inputs]
        if op.kind in LINEAR:
            return ops if seen[1][1:3] == (f"{layer}/kernel", ()) else None
        if op.kind != "add" or len(ops) > 1:
            return None
        bias = (f"{layer}/bias", ())
        value = next(
            (op.inputs[1 - i] for i in (1, 0) if seen[i][1:3] == bias), NO_VALUE
        )
    return None


def _pairs(
    graph: OpGraph, name: dict[int, tuple[str, str]]
) -> list[tuple[str | None, str | None]]:
    """For each call the layer and the BatchNorm that alone reads it; None if none."""
    readers: dict[int, list[int]] = {}
    for number, op in enumerate(graph.ops):
        for value in op.inputs:
            readers.setdefault(value, []).append(number)
    for value in graph.outputs:
        readers.setdefault(value, []).append(-1)
    made = {graph.ops[n].outputs[0]: path for n, (kind, path) in name.items()
            if kind == "layer"}  # fmt: skip
    pairs: list[tuple[str | None, str | None]] = []
    for number, (kind, path) in name.items():
        if kind == "norm":
            value = graph.ops[number].inputs[0]
            alone = readers[value] == [number]
            pairs.append((made.get(value) if alone else None, path))
        elif not any(
            name.get(n, ("",))[0] == "norm"
            for n in readers.get(graph.ops[number].outputs[0], [])
        ):
            pairs.append((path, None))
    return pairs


def _only(pairs: list[tuple[str | None, str | None]], norm: str) -> str | None:
    """The layer that a BatchNorm always follows and that it always follows alone."""
    layers = {layer for layer, other in pairs if other == norm}
    if len(layers) != 1 or None in layers:
        return None
    (layer,) = layers
    return layer if {other for a, other in pairs if a == layer} == {norm} else None


def _no_norm_in_loops(graph: OpGraph) -> None:
    for op in graph.ops:
        if op.kind in ("scan", "while", "cond"):
            for value in op.equation.params.values():
                for item in value if isinstance(value, tuple | list) else (value,):
                    for e in equations(item.jaxpr) if hasattr(item, "jaxpr") else ():
                        if str(e.params.get("name", "")).startswith(f"{MARK}norm"):
                            raise ValueError(
                                f"{e.params['name'].removeprefix(MARK)} lies in a "
                                f"{op.kind}, where it cannot be folded"
                            )
