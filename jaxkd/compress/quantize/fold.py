"""Folding BatchNorm into the layer before it: the network that is deployed."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array

from jaxkd import _tree
from jaxkd.compress.quantize import finite, kernels
from jaxkd.compress.quantize.graph import LINEAR, Graph, equations, trace
from jaxkd.models.convolution import conv_general_dilated
from jaxkd.models.net import Net
from jaxkd.types import Params, State

MARK = "fold:"  # names values of layers while the network is traced
NO_VALUE = -1
ROUNDING = 10  # times the root of the type's epsilon: .003 of the logits in float32


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


def fold(
    net: Net,
    params: Params,
    state: State,
    image_shape: tuple[int, ...],
    *,
    examples: Any = None,
    check: bool = True,
) -> tuple[Net, Params, State]:
    """The network without BatchNorm statistics, equal to the given one in inference.

    A BatchNorm that reads nothing but the output of a Conv or Dense, which nobody else
    reads, goes into its kernel W and bias b (which it gains if it has none), with the
    running mean m and variance v, scale g, bias h and epsilon e::

        W' = W g / sqrt(v + e)        b' = (b - m) g / sqrt(v + e) + h

    and is the identity from then on. Any other BatchNorm stays (see `unfolded`), as the
    same affine map: scale g / sqrt(v + e), bias h - m g / sqrt(v + e). So does that of
    a layer whose kernel is not a parameter as it is, but computed from one (weight
    normalisation), or shared. The logits are compared before anything is returned.

    Both are trained as they are: the network has no batch statistics any more, and
    behaves in training as it does in inference, dropout apart. That is what
    quantization-aware training wants. The ranges that it trains for are those of the
    kernels that are exported; were statistics still moving, W' would change with each
    batch under a grid that was made for another.

    Args:
      net: from `models.from_linen` or `from_foreign`, or a model made with them.
      params: its parameters, trained.
      state: its state, with the running statistics.
      image_shape: of one image, without the batch axis.
      examples: inputs to compare the two networks on, `[n, *image_shape]`; two of
        normal noise by default.
      check: False leaves the comparison out, for variables that only have shapes.

    Returns:
      The folded network and its variables; `init` folds those of the given network.
      Taps are the same, but for outputs of a Conv or Dense before its BatchNorm.

    Raises:
      ValueError: if a BatchNorm normalises another axis than the last, or lies in a
        loop; if a variable is not finite; or if the folded network gives other logits.

    References:
      B. Jacob et al. Quantization and Training of Neural Networks for Efficient
      Integer-Arithmetic-Only Inference. 2018. https://arxiv.org/abs/1712.05877
      section 3.2, equation 14.
    """
    norms = _norms(net, params, state, image_shape)
    if examples is None:
        examples = np.random.default_rng(0).normal(size=(2, *image_shape))
    x = jnp.asarray(examples, jnp.float32)
    folded = {n.layer: path for path, n in norms.items() if n.layer is not None}

    # One program for all layers, where each operation would be compiled alone.
    variables = jax.jit(lambda params, state: _variables(norms, params, state))

    def init(rng: Array, x: Array) -> tuple[Params, State]:
        return variables(*net.init(rng, x))

    def apply(params, state, x, **how):
        with nn.intercept_methods(_replaced(norms, set(folded))):
            return net.apply(params, state, x, **how)

    new = Net(init, apply)
    new_params, new_state = variables(params, state)
    if check and norms:
        finite.check_variables(params, state)
        _same_logits(net, (params, state), new, (new_params, new_state), x)
    return new, new_params, new_state


def _same_logits(old: Net, variables: Any, new: Net, folded: Any, x: Any) -> None:
    """Refuse a folded network whose logits are not those of the given one."""

    @jax.jit
    def compared(variables, folded, x):
        a = old.apply(*variables, x, train=False)[0].logits
        b = new.apply(*folded, x, train=False)[0].logits
        size = jnp.finfo(a.dtype).eps ** 0.5 * ROUNDING * jnp.max(jnp.abs(a))
        return jnp.max(jnp.abs(a - b)), size

    difference, most = map(float, compared(variables, folded, x))
    if not difference <= most:
        raise ValueError(
            f"the folded network's logits differ by {difference:.3g} from the given "
            f"one's, by rounding at most {most:.3g}: a layer before a BatchNorm does "
            "more than multiply by its kernel and add its bias. Fold this network by "
            "hand, or replace its BatchNorms"
        )


def unfolded(
    net: Net, params: Params, state: State, image_shape: tuple[int, ...]
) -> list[str]:
    """Paths of the BatchNorms that `fold` cannot put into a layer before them.

    They follow a sum, a concatenation or the like (pre-activation networks), or a layer
    whose output somebody else reads, that is called in several places, or whose kernel
    is computed from its parameter or read by somebody else (tied weights).
    """
    norms = _norms(net, params, state, image_shape)
    return [path for path, norm in norms.items() if norm.layer is None]


def _is_call(context: Any, *kinds: type) -> bool:
    return context.method_name == "__call__" and isinstance(context.module, kinds)


@contextlib.contextmanager
def _marked(norms: dict[str, nn.BatchNorm]) -> Iterator[None]:
    """Inside, layers name what they return and BatchNorms what they read."""

    def mark(call, args, kwargs, context):
        path = "/".join(context.module.path)
        if _is_call(context, nn.BatchNorm):
            norms[path] = context.module
            x, *rest = args or (kwargs.pop("x"),)
            return call(_named(x, f"norm:{path}"), *rest, **kwargs)
        out = call(*args, **kwargs)
        if _is_call(context, nn.Conv, nn.Dense):
            return _named(out, f"layer:{path}")
        return out

    with nn.intercept_methods(mark):
        yield


def _named(x: Array, name: str) -> Array:
    return checkpoint_name(x, MARK + name)


def _norms(
    net: Net, params: Params, state: State, image_shape: tuple[int, ...]
) -> dict[str, Norm]:
    """Every BatchNorm by its path."""
    modules: dict[str, nn.BatchNorm] = {}
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    with _marked(modules):
        graph = trace(
            lambda p, s, x: net.apply(p, s, x, train=False), params, state, image,
            whole=True,
        )  # fmt: skip
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
    return {
        path: Norm(m.epsilon, m.use_scale, m.use_bias, _only(pairs, path))
        for path, m in modules.items()
    }


def _marks(graph: Graph) -> dict[int, tuple[str, str]]:
    """For each operation that marks a value "layer" or "norm", and the path."""
    names = {n: op.equation.params["name"] for n, op in enumerate(graph.ops)
             if op.kind == "name"}  # fmt: skip
    split = {n: name.removeprefix(MARK).partition(":") for n, name in names.items()
             if name.startswith(MARK)}  # fmt: skip
    return {n: (kind, path) for n, (kind, _, path) in split.items()}


def _plain(graph: Graph, marks: dict[int, tuple[str, str]]) -> set[str]:
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
    graph: Graph, made: dict[int, int], layer: str, value: int
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
    graph: Graph, name: dict[int, tuple[str, str]]
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


def _no_norm_in_loops(graph: Graph) -> None:
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


def _replaced(norms: dict[str, Norm], layers: set[str]) -> Callable[..., Any]:
    """The interceptor that runs a folded network."""

    def call_folded(call, args, kwargs, context):
        module, path = context.module, "/".join(context.module.path)
        if _is_call(context, nn.BatchNorm) and path in norms:
            x = args[0] if args else kwargs["x"]
            return x if norms[path].layer is not None else _affine(module, x)
        out = call(*args, **kwargs)
        linear = path in layers and _is_call(context, nn.Conv, nn.Dense)
        if linear and not module.use_bias:
            bias = module.get_variable("params", "bias").astype(out.dtype)
            out += bias.reshape((1,) * (out.ndim - 1) + (-1,))
        return out

    return call_folded


def _affine(module: nn.BatchNorm, x: Array) -> Array:
    """Its scale and bias. On images a depthwise convolution, which devices have."""
    scale: Array = module.get_variable("params", "kernel").astype(x.dtype)
    bias: Array = module.get_variable("params", "bias").astype(x.dtype)
    whole = (1,) * (x.ndim - 1) + (-1,)
    if x.ndim != 4:
        return x * scale.reshape(whole) + bias.reshape(whole)
    out = conv_general_dilated(
        x,
        scale.reshape(1, 1, 1, -1),
        (1, 1),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )
    return out + bias.reshape(whole)


def _variables(
    norms: dict[str, Norm], params: Params, state: State
) -> tuple[Params, State]:
    """The variables of the folded network."""
    params, state = _copied(params), _copied(state)
    for path, norm in norms.items():
        own = _tree.get(params, path) if norm.use_scale or norm.use_bias else {}
        statistics = _tree.get(state["batch_stats"], path)
        scale = jax.lax.rsqrt(statistics["var"] + norm.epsilon) * own.get("scale", 1.0)
        bias = own.get("bias", 0.0) - statistics["mean"] * scale
        _remove(params, path)
        if norm.layer is None:
            _insert(params, path, {"kernel": scale, "bias": bias})
        else:
            layer = _tree.get(params, norm.layer)
            wide = scale.reshape((1,) * (layer["kernel"].ndim - 1) + (-1,))
            layer["bias"] = layer.get("bias", 0.0) * scale + bias
            layer["kernel"] = layer["kernel"] * wide
        _remove(state["batch_stats"], path)
    if not state.get("batch_stats", True):
        del state["batch_stats"]
    return params, state


def _copied(tree: Any) -> Any:
    """The same leaves in dicts of their own."""
    if not isinstance(tree, dict):
        return tree
    return {key: _copied(branch) for key, branch in tree.items()}


def _insert(tree: dict[str, Any], path: str, leaf: Any) -> None:
    *above, last = path.split("/")
    for name in above:
        tree = tree.setdefault(name, {})
    tree[last] = leaf


def _remove(tree: dict[str, Any], path: str) -> None:
    """Takes a branch out, and the branches above it that are then empty."""
    first, _, rest = path.partition("/")
    if first not in tree:
        return
    if rest:
        _remove(tree[first], rest)
    if not rest or not tree[first]:
        del tree[first]
