"""A network that trains and predicts as it will once it is quantized."""

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxkd import _tree
from jaxkd.compress.quantize import finite, ranges
from jaxkd.compress.quantize.config import Quantization, bits_of, check_patterns
from jaxkd.compress.quantize.fake import fake_quant, lsq, lsq_start, weight_grid
from jaxkd.compress.quantize.graph import OpGraph, layers_inside, trace
from jaxkd.compress.quantize.kernels import Weight
from jaxkd.compress.quantize.names import key
from jaxkd.compress.quantize.plan import QuantizationPlan, QuantizedTensor, plan
from jaxkd.compress.quantize.run import Arithmetic, Tensor, run
from jaxkd.models.net import Net, naming_images
from jaxkd.types import Params, State

RANGES, STEPS = "ranges", "steps"  # where the state and the parameters hold theirs
BIAS_LEVELS = 2**30  # of the 2**31 that a bias of 32 bits has on either side of 0


class Context(NamedTuple):
    """What an arithmetic is built from at a call.

    Attributes:
      config: how the network is quantized.
      steps: the learned step sizes, `{"weights": ..., "activations": ...}`, or {}.
      ranges: the remembered ranges of activations, by `key` of the point's name.
      moved: where an arithmetic that moves ranges puts the new ones.
      train: whether the call is one of training.
      plan: what of the network is quantized.
    """

    config: Quantization
    steps: dict[str, Any]
    ranges: dict[str, ranges.Range]
    moved: dict[str, ranges.Range]
    train: bool
    plan: QuantizationPlan


def quantized(
    net: Net,
    params: Params,
    state: State,
    config: Quantization,
    image_shape: tuple[int, ...],
) -> tuple[Net, Params, State]:
    """The network with fake-quantized kernels and activations, and its variables.

    It is a `Net` like any other: train it in a `distiller` (quantization-aware
    training), or `calibrate` its ranges and use it (post-training quantization). It
    computes in floats what integers compute on a device, up to rounding in the last
    step. Gradients pass the rounding straight through.

    Fold its BatchNorms first (`fold`): what is trained is then what is exported. One
    that still moves statistics is refused.

    The parameters are the network's own, at the same paths, and with `config.lsq` also
    `params["steps"]`. The state has in addition `state["ranges"]`, of static ranges,
    which only calls with `train=True` and `calibrate` move; of a tensor that only
    inference has (the mean of a vision transformer's two heads) only `calibrate`.

    Args:
      net: to be quantized, of unmodified linen modules or anything that JAX traces.
      params: its parameters.
      state: its state.
      config: how to quantize.
      image_shape: of one image, without the batch axis.

    Returns:
      The quantized network, its parameters and its state, with empty ranges.

    Raises:
      ValueError: if the network does not take images of this shape, if it has
        BatchNorm statistics or no layer to quantize, if a layer lies in a loop that the
        configuration does not leave in floats, if a pattern of the configuration fits
        no layer, or if a variable is not finite.
    """
    _no_statistics(state)
    finite.check_variables(params, state)
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    call = lambda p, s, x: net.apply(p, s, x, train=False)
    with naming_images(call, params, state, image):
        graph, wanted = _planned(net, params, state, image, None, config, train=False)
    loops = _loops(graph)
    check_patterns(config, [*wanted.layers, *loops])
    _no_layers_in_loops(loops, config)
    if not wanted.linear:
        raise ValueError("net has no convolution and no matrix product to quantize")
    points = {p.name: p for p in wanted.points.values()}
    memory = {key(name): ranges.empty(config) for name in points}
    memory = memory if config.activation == "static" else {}
    # Relative to the remembered range: 1 is that range's own step.
    relative = {name: jnp.ones(()) for name in memory}

    def first_steps(params: Params, state: State) -> dict[str, Any]:
        if not config.lsq:
            return {}
        found: dict[str, Array] = {}
        held = {**state, RANGES: memory}
        apply(params, held, None, train=False, by=partial(_starting, found))
        return {"weights": found, "activations": relative}

    @jax.jit
    def extended(params, state):
        steps = first_steps(params, state)
        params = {**params, STEPS: steps} if steps else params
        return params, {**state, RANGES: jax.tree.map(jnp.copy, memory)}

    def init(rng: Array, x: Array) -> tuple[Params, State]:
        return extended(*net.init(rng, x))

    def apply(params, state, x, *, train, key=None, by=faked):
        if x is None:  # for those who only want to see the kernels
            x = jnp.zeros((1, *image_shape))
        params, state = dict(params), dict(state)
        held = state.pop(RANGES, {})
        steps = params.pop(STEPS, {})
        with _images_as_at_first(x, image_shape):
            graph, here = _planned(net, params, state, x, key, config, train=train)
        context = Context(config, steps, held, {}, train, here)
        # Only what inference has: dropout's values exist nowhere else.
        known = {v: points[p.name] for v, p in here.points.items() if p.name in points}
        args = jax.tree.leaves((params, state, x, key))
        here = here._replace(points=known)
        outputs, state = run(graph, here, args, by(context))
        return outputs, {**state, RANGES: {**held, **context.moved}}

    return Net(init, apply), *extended(params, state)


@contextlib.contextmanager
def _images_as_at_first(x: Any, image_shape: tuple[int, ...]) -> Iterator[None]:
    """Say which images the network was quantized for, where it cannot take others.

    A network of convolutions may take images of another size.

    Raises:
      ValueError: with the shapes.
    """
    shape = tuple(getattr(x, "shape", ()))
    message = (
        f"images must be [batch, {', '.join(map(str, image_shape))}], as image_shape "
        f"was given to quantized, got {list(shape)}"
    )
    if len(shape) != len(image_shape) + 1:
        raise ValueError(message)
    try:
        yield
    except Exception as error:  # each library has its own
        if shape[1:] == tuple(image_shape):
            raise
        raise ValueError(message) from error


def _planned(
    net: Net,
    params: Params,
    state: State,
    x: Any,
    key: Any,
    config: Quantization,
    *,
    train: bool,
) -> tuple[OpGraph, QuantizationPlan]:
    """Return the graph of a call, and what of it is quantized."""

    def call(params, state, x, key):
        return net.apply(params, state, x, train=train, key=key)

    # Without a gradient nothing needs to stay whole: `deployed` annotates every step.
    graph = trace(call, params, state, x, key, whole=not train)
    marks = jax.tree.unflatten(graph.out_tree, graph.outputs)
    image = graph.inputs[graph.paths.index("2")]
    return graph, plan(graph, image, marks[0].logits, config)


def _no_statistics(state: State) -> None:
    """Refuse BatchNorm's; others in the same collection (SpectralNorm's) may stay."""
    found = [
        path
        for path in _tree.flatten(state.get("batch_stats", {}))
        if path.rpartition("/")[2] in ("mean", "var")
    ]
    if found:
        raise ValueError(
            f"net has BatchNorm statistics (state['batch_stats']: {found[0]!r}); fold "
            "them first: net, params, state = fold(net, params, state, image_shape)"
        )


def _loops(graph: OpGraph) -> dict[str, str]:
    """Return the paths of the loops that hold layers, and in words what they hold."""
    found: dict[str, str] = {}
    for op in graph.ops:
        if op.kind in ("scan", "while", "cond") and (inner := layers_inside(op)):
            path = op.scope or op.kind
            some, more = sorted(inner)[:3], f" and {len(inner) - 3} more"
            listed = ", ".join(some) + more * (len(inner) > 3)
            found[path] = f"a {op.kind} at {path!r} holds {listed}"
    return found


def _no_layers_in_loops(loops: dict[str, str], config: Quantization) -> None:
    """Refuse loops that hold layers and are not left in floats."""
    for path, held in loops.items():
        if bits_of(config, path).weights is not None:
            raise ValueError(
                f"{held}: layers in a loop cannot be quantized; write the loop out, or "
                f"leave it in floats with layers={{{path!r}: FLOAT}}"
                f"{', before the patterns that also fit' * bool(config.layers)}"
            )


def _starting(found: dict[str, Array], context: Context) -> Arithmetic:
    """Nothing is quantized; puts down the steps that learning starts from."""

    def weight(w: Weight, kernel: Array, x: Tensor, bias: Array | None) -> Tensor:
        grid = weight_grid(kernel, w.bits, _axis(context, w))
        found[key(w.name)] = lsq_start(kernel, grid)
        return Tensor(kernel)

    return Arithmetic(weight=weight)


def faked(context: Context) -> Arithmetic:
    """Fake quantization; while training, ranges move and are used at once."""

    def activation(point: QuantizedTensor, x: Array) -> Tensor:
        return fake_activation(context, point, x)

    return Arithmetic(activation=activation, weight=partial(fake_weight, context))


def fake_activation(context: Context, point: QuantizedTensor, x: Array) -> Tensor:
    """Return an activation on its grid."""
    grid = activation_grid(context, point, x)
    steps = context.steps.get("activations", {})
    if key(point.name) not in steps:
        return Tensor(fake_quant(x, grid), grid)
    step = steps[key(point.name)] * grid.scale
    return Tensor(lsq(x, step, grid), grid._replace(scale=step))


def activation_grid(context: Context, point: QuantizedTensor, x: Array) -> Any:
    """Return the grid of an activation: of this batch, or as remembered."""
    config = context.config
    if config.activation == "dynamic":
        ends = ranges.measure(x, config, point.bits)
    else:
        memory = context.ranges[key(point.name)]
        if context.train:
            memory = context.moved[key(point.name)] = _moved(context, memory, point, x)
        ends = ranges.read(memory, config)
    return ranges.grid(*ends, config, point.bits)


def _moved(context, memory, point, x):
    config = context.config
    new = ranges.move(memory, ranges.measure(x, config, point.bits), config)
    if not config.lsq:
        return new
    # Steps are learned relative to the range, which therefore stays once it is there.
    first = memory["count"] == 0
    return jax.tree.map(lambda a, b: jnp.where(first, a, b), new, memory)


def fake_weight(
    context: Context, weight: Weight, kernel: Array, x: Tensor, bias: Array | None
) -> Tensor:
    """Return a kernel on its grid, measured now or learned.

    Args:
      context: of the call.
      weight: which kernel.
      kernel: its numbers.
      x: what it is multiplied with.
      bias: what is added to the product, or None.
    """
    axis = _axis(context, weight)
    grid = weight_grid(jax.lax.stop_gradient(kernel), weight.bits, axis)
    steps = context.steps.get("weights", {})
    # Biases are of 32 bits only where the scales of what is read are fixed.
    bias = bias if context.config.activation == "static" else None
    least = _least_scale(x, bias, kernel.ndim, axis)
    if key(weight.name) not in steps:
        grid = grid._replace(scale=jnp.maximum(grid.scale, least))
        return Tensor(fake_quant(kernel, grid), grid)
    step = jnp.maximum(steps[key(weight.name)], least)
    return Tensor(lsq(kernel, step, grid), grid._replace(scale=step))


def _axis(context: Context, weight: Weight) -> int | None:
    return weight.axis if context.config.per_channel else None


def _least_scale(x: Tensor, bias: Array | None, rank: int, axis: int | None) -> Any:
    """Return the least scale t of a kernel with which the bias b fits in 32 bits.

    A device adds round(b / (s t)) to the sums, with the scale s of what the kernel is
    multiplied with. Half of the range is left for the sums::

        t >= |b| / (s 2^30)

    Only channels of a kernel near 0 have a smaller scale of their own, e.g. after
    folding a BatchNorm whose scale pruning has made small.
    """
    if bias is None or x.grid is None:
        return 0.0
    size = jnp.abs(jax.lax.stop_gradient(bias).astype(jnp.float32)).ravel()
    least = size / (jax.lax.stop_gradient(x.grid.scale) * BIAS_LEVELS)
    if axis is None:
        return jnp.max(least)
    return least.reshape([-1 if i == axis else 1 for i in range(rank)])
