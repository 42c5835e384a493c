"""Folding BatchNorm into the layer before it: the network that is deployed."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxkd import _tree
from jaxkd.compress.quantize import finite
from jaxkd.compress.quantize.graph import OpGraph
from jaxkd.compress.quantize.norms import LAYERS, NORMS, Norm, batch_norms
from jaxkd.models.convolution import conv_general_dilated
from jaxkd.models.interception import Called, arguments, intercept_calls
from jaxkd.models.net import Net
from jaxkd.types import Params, State

# Of the coarsest type's epsilon: .0017 of the logits in float32, .14 in bfloat16.
ROUNDING = 0.4


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
      net: from `models.from_linen`, `from_nnx` or `from_foreign`, or a model
        made with them.
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
    graph, norms = batch_norms(net, params, state, image_shape)
    if examples is None:
        examples = np.random.default_rng(0).normal(size=(2, *image_shape))
    x = jnp.asarray(examples, jnp.float32)
    folded = {n.layer: path for path, n in norms.items() if n.layer is not None}

    # One program for all layers, where each operation would be compiled alone.
    variables = jax.jit(lambda params, state: _variables(norms, params, state))

    def init(rng: Array, x: Array) -> tuple[Params, State]:
        return variables(*net.init(rng, x))

    def apply(params, state, x, **how):
        with intercept_calls(_replaced(norms, set(folded))):
            return net.apply(params, state, x, **how)

    new = Net(init, apply)
    new_params, new_state = variables(params, state)
    if check and norms:
        finite.check_variables(params, state)
        rounding = _coarsest(graph) ** ROUNDING
        _same_logits(net, (params, state), new, (new_params, new_state), x, rounding)
    return new, new_params, new_state


def _coarsest(graph: OpGraph) -> float:
    """Return the largest epsilon of the types that a network computes in."""
    types = {aval.dtype for aval in graph.avals}
    return max(
        float(jnp.finfo(t).eps) for t in types if jnp.issubdtype(t, jnp.floating)
    )


def _same_logits(
    old: Net, variables: Any, new: Net, folded: Any, x: Any, rounding: float
) -> None:
    """Refuse a folded network whose logits are not those of the given one."""

    @jax.jit
    def compared(variables, folded, x):
        a = old.apply(*variables, x, train=False)[0].logits
        b = new.apply(*folded, x, train=False)[0].logits
        return jnp.max(jnp.abs(a - b)), jnp.max(jnp.abs(a))

    # Accelerators would round float32 to fewer bits, and see a difference in that.
    with jax.default_matmul_precision("highest"):
        difference, size = map(float, compared(variables, folded, x))
    most = rounding * size
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
    _, norms = batch_norms(net, params, state, image_shape)
    return [path for path, norm in norms.items() if norm.layer is None]


def _replaced(norms: dict[str, Norm], layers: set[str]) -> Callable[..., Any]:
    """Return the interceptor that runs a folded network."""

    def call_folded(call, args, kwargs, called):
        if isinstance(called.module, NORMS) and called.path in norms:
            x = arguments(call, args, kwargs)["x"]
            return x if norms[called.path].layer is not None else _affine(called, x)
        out = call(*args, **kwargs)
        linear = called.path in layers and isinstance(called.module, LAYERS)
        if linear and not called.module.use_bias:
            bias = called.leaf("bias").astype(out.dtype)
            out += bias.reshape((1,) * (out.ndim - 1) + (-1,))
        return out

    return call_folded


def _affine(norm: Called, x: Array) -> Array:
    """Apply its scale and bias, on images as the depthwise convolution devices have."""
    scale: Array = norm.leaf("kernel").astype(x.dtype)
    bias: Array = norm.leaf("bias").astype(x.dtype)
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
    """Return the variables of the folded network."""
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
    """Return the same leaves in dicts of their own."""
    if not isinstance(tree, dict):
        return tree
    return {key: _copied(branch) for key, branch in tree.items()}


def _insert(tree: dict[str, Any], path: str, leaf: Any) -> None:
    *above, last = path.split("/")
    for name in above:
        tree = tree.setdefault(name, {})
    tree[last] = leaf


def _remove(tree: dict[str, Any], path: str) -> None:
    """Take a branch out, and the branches above it that are then empty."""
    first, _, rest = path.partition("/")
    if first not in tree:
        return
    if rest:
        _remove(tree[first], rest)
    if not rest or not tree[first]:
        del tree[first]
