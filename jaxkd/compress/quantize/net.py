"""A network that trains and predicts as it will once it is quantized."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxkd.compress.quantize import ranges
from jaxkd.compress.quantize.config import Quantization, check_patterns
from jaxkd.compress.quantize.fake import fake_quant, lsq, lsq_start, weight_grid
from jaxkd.compress.quantize.graph import LINEAR, Graph, equations, trace
from jaxkd.compress.quantize.plan import Plan, Point, plan
from jaxkd.compress.quantize.run import (
    Arithmetic,
    Tensor,
    plainly,
    run,
    same,
    untouched,
)
from jaxkd.models.net import Net
from jaxkd.types import Params, State

RANGES, STEPS = "ranges", "steps"  # where the state and the parameters hold theirs


class Context(NamedTuple):
    """What an arithmetic is built from at a call.

    Attributes:
      config: how the network is quantized.
      steps: the learned step sizes, `{"weights": ..., "activations": ...}`, or {}.
      ranges: the remembered ranges of activations, by `key` of the point's name.
      moved: where an arithmetic that moves ranges puts the new ones.
      train: whether the call is one of training.
    """

    config: Quantization
    steps: dict[str, Any]
    ranges: dict[str, ranges.Range]
    moved: dict[str, ranges.Range]
    train: bool


def key(name: str) -> str:
    """A tensor's name as a key of the state: "a/b" as "a.b"."""
    return name.replace("/", ".")


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
      ValueError: if the network has BatchNorm statistics or no layer to quantize, if a
        layer lies in a loop, or if a pattern of the configuration fits no layer.
    """
    if state.get("batch_stats"):
        raise ValueError(
            "net has BatchNorm statistics (state['batch_stats']); fold them first: "
            "net, params, state = fold(net, params, state, image_shape)"
        )
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    graph, wanted = _planned(net, params, state, image, None, config, train=False)
    _no_layers_in_loops(graph)
    if not wanted.linear:
        raise ValueError("net has no convolution and no matrix product to quantize")
    check_patterns(config, wanted.layers)
    points = {p.name: p for p in wanted.points.values()}
    memory = {key(name): ranges.empty(config) for name in points}
    memory = memory if config.activation == "static" else {}

    @jax.jit
    def extended(params, state):
        steps = _first_steps(graph, wanted, params, points, config)
        params = {**params, STEPS: steps} if steps else params
        return params, {**state, RANGES: jax.tree.map(jnp.copy, memory)}

    def init(rng: Array, x: Array) -> tuple[Params, State]:
        return extended(*net.init(rng, x))

    def apply(params, state, x, *, train, key=None, by=faked):
        if x is None:  # for those who only want to see the kernels
            x = jnp.zeros((1, *image_shape))
        params, state = dict(params), dict(state)
        held = state.pop(RANGES, {})
        context = Context(config, params.pop(STEPS, {}), held, {}, train)
        graph, here = _planned(net, params, state, x, key, config, train=train)
        # Only what inference has: dropout's values exist nowhere else.
        known = {v: points[p.name] for v, p in here.points.items() if p.name in points}
        args = jax.tree.leaves((params, state, x, key))
        here = here._replace(points=known)
        outputs, state = run(graph, here, args, by(context))
        return outputs, {**state, RANGES: {**held, **context.moved}}

    return Net(init, apply), *extended(params, state)


def _planned(
    net: Net,
    params: Params,
    state: State,
    x: Any,
    key: Any,
    config: Quantization,
    *,
    train: bool,
) -> tuple[Graph, Plan]:
    """The graph of a call, and what of it is quantized."""

    def call(params, state, x, key):
        return net.apply(params, state, x, train=train, key=key)

    # Without a gradient nothing needs to stay whole: `deployed` annotates every step.
    graph = trace(call, params, state, x, key, whole=not train)
    marks = jax.tree.unflatten(graph.out_tree, graph.outputs)
    image = graph.inputs[graph.paths.index("2")]
    return graph, plan(graph, image, marks[0].logits, config)


def _no_layers_in_loops(graph: Graph) -> None:
    for op in graph.ops:
        if op.kind in ("scan", "while", "cond"):
            inner = [
                e.primitive.name
                for value in op.equation.params.values()
                for item in (value if isinstance(value, tuple | list) else (value,))
                if hasattr(item, "jaxpr")
                for e in equations(item.jaxpr)
            ]
            if found := LINEAR.intersection(inner):
                raise ValueError(
                    f"a {op.kind} at {op.scope!r} holds {sorted(found)}: layers in a "
                    "loop cannot be quantized; write the loop out"
                )


def _first_steps(
    graph: Graph,
    wanted: Plan,
    params: Params,
    points: dict[str, Point],
    config: Quantization,
) -> dict[str, Any]:
    """The step sizes that learning starts from, or {} if none are learned."""
    if not config.lsq:
        return {}
    leaves = dict(
        zip((p.partition("/")[2] for p in graph.paths), jax.tree.leaves(params),
            strict=False)
    )  # fmt: skip
    weights = {}
    for number, weight in wanted.weights.items():
        if weight.name not in leaves:
            raise ValueError(
                f"lsq learns steps of parameters, but {weight.name!r} is computed"
            )
        kernel = jnp.asarray(leaves[weight.name])
        aval = graph.ops[number].equation.invars[weight.position].aval
        axis = weight.axis if config.per_channel else None
        grid = weight_grid(kernel.reshape(aval.shape), weight.bits, axis)
        weights[key(weight.name)] = lsq_start(kernel.reshape(aval.shape), grid)
    static = points if config.activation == "static" else {}
    # Relative to the remembered range: 1 is that range's own step.
    return {
        "weights": weights,
        "activations": {key(name): jnp.ones(()) for name in static},
    }


def faked(context: Context) -> Arithmetic:
    """Fake quantization; while training, ranges move and are used at once."""

    def activation(point: Point, x: Array) -> Tensor:
        return fake_activation(context, point, x)

    def weight(weight, kernel):
        return fake_weight(context, weight, kernel)

    return Arithmetic(activation, weight, plainly, same, untouched)


def fake_activation(context: Context, point: Point, x: Array) -> Tensor:
    """An activation on its grid."""
    grid = activation_grid(context, point, x)
    steps = context.steps.get("activations", {})
    if key(point.name) not in steps:
        return Tensor(fake_quant(x, grid), grid)
    step = steps[key(point.name)] * grid.scale
    return Tensor(lsq(x, step, grid), grid._replace(scale=step))


def activation_grid(context: Context, point: Point, x: Array) -> Any:
    """The grid of an activation: of this batch, or as remembered."""
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


def fake_weight(context: Context, weight: Any, kernel: Array) -> Tensor:
    """A kernel on its grid, measured now or learned."""
    axis = weight.axis if context.config.per_channel else None
    grid = weight_grid(jax.lax.stop_gradient(kernel), weight.bits, axis)
    steps = context.steps.get("weights", {})
    if key(weight.name) not in steps:
        return Tensor(fake_quant(kernel, grid), grid)
    step = steps[key(weight.name)]
    return Tensor(lsq(kernel, step, grid), grid._replace(scale=step))
