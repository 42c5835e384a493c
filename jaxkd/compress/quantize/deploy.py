"""The quantized network as a function that a converter turns into integers."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxkd.compress.quantize import finite
from jaxkd.compress.quantize.config import Quantization
from jaxkd.compress.quantize.fake import Grid, integers, levels
from jaxkd.compress.quantize.kernels import Weight
from jaxkd.compress.quantize.net import (
    RANGES,
    Context,
    fake_activation,
    fake_weight,
    faked,
)
from jaxkd.compress.quantize.plan import QuantizationPlan, QuantizedTensor
from jaxkd.compress.quantize.run import Arithmetic, Tensor, real_activation, untouched
from jaxkd.models.convolution import plain_convolutions
from jaxkd.models.net import Net
from jaxkd.types import Params, State

COMPOSITE = "quant.fake_quant"


@dataclasses.dataclass(frozen=True, eq=False)
class Deployed:
    """A quantized network for a converter: a function of images, and what it must give.

    Attributes:
      marked: `images -> logits`, with the quantized tensors marked; what a call runs.
      fake: `images -> logits` of the fake-quantized network, without marks: what a file
        must give up to a step. With dynamic ranges activations are in floats here.
      floats: the operations that stay in floats, "KIND at SCOPE".
    """

    marked: Callable[[Array], Array]
    fake: Callable[[Array], Array]
    floats: tuple[str, ...]

    def __call__(self, x: Array) -> Array:
        """Return the logits of images, by the marked network."""
        return self.marked(x)


def deployed(net: Net, params: Params, state: State, config: Quantization) -> Deployed:
    """The network as `f(x) -> logits`, its quantized tensors marked for a converter.

    Every quantized tensor passes through `jax.lax.composite`, of the name
    "quant.fake_quant" and with these attributes:

    * `scale`: float32 `[1]`, or `[channels]`;
    * `zero_point`: int64 of the same shape;
    * `dtype`: "i8", or "i4" of 4 bits or fewer;
    * `narrow_range`: whether the least integer is left out, as in kernels;
    * `quantization_dimension`: the axis of the channels, if there are several scales.

    The tensor is the composite's last operand. What merely moves quantized numbers
    (reshape, the maximum of a window) is marked again, so that every operation between
    two marks can be an integer one. With dynamic ranges, or none, only kernels are
    marked: a runtime measures activations by itself.

    The values are those of the network itself with `train=False`; with dynamic ranges
    those of the network with only its kernels quantized.

    Args:
      net: from `quantized`.
      params: its parameters; they become constants.
      state: its state, calibrated or trained.
      config: as given to `quantized`.

    Returns:
      A pure function of images `[batch, height, width, channels]`, with the
      fake-quantized network to compare a file with. JAX cannot lower a composite of
      symbolic shape: export it at a fixed batch size.

    Raises:
      ValueError: if a static range was never measured, or a variable is not finite,
        naming the tensors.
    """
    check_ready(params, state, config)
    params, state = jax.tree.map(_on_host, (params, state))
    found, plan = grids(net, params, state)

    def logits(x: Array, by: Callable[[Context], Arithmetic]) -> Array:
        with plain_convolutions():  # no rules for gradients in what is exported
            return net.apply(params, state, x, train=False, by=by)[0].logits

    return Deployed(
        marked=partial(logits, by=partial(_marked, found)),
        fake=partial(logits, by=_faked_without_dynamic_ranges),
        floats=plan.floats,
    )


def _on_host(leaf: Any) -> Any:
    """Return a leaf as a NumPy array; random keys are none."""
    dtype = getattr(leaf, "dtype", None)
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.extended):
        return leaf
    return np.asarray(leaf)


def _faked_without_dynamic_ranges(context: Context) -> Arithmetic:
    if context.config.activation == "static":
        return faked(context)
    return faked(context)._replace(activation=real_activation)


def check_ready(params: Params, state: State, config: Quantization) -> None:
    """Refuse variables that are not finite and static ranges that were never measured.

    Raises:
      ValueError: naming the tensors.
    """
    finite.check_variables(params, state)
    if config.activation != "static":
        return
    if RANGES not in state:
        raise ValueError("state has no ranges: is it the one that quantized() gave?")
    unseen = [k for k, memory in state[RANGES].items() if not int(memory["count"])]
    if unseen:
        names = ", ".join(unseen[:5]) + (" ..." if len(unseen) > 5 else "")
        first = "train the network or calibrate() it first"
        if len(unseen) < len(state[RANGES]):
            first = "calibrate() it: training does not see what only inference computes"
        raise ValueError(
            f"{len(unseen)} of {len(state[RANGES])} static ranges were never measured "
            f"({names}); {first}"
        )


def grids(
    net: Net, params: Params, state: State
) -> tuple[dict[str, Grid], QuantizationPlan]:
    """Return the grid of every kernel, and of every activation with a static range.

    Returns:
      NumPy arrays, by "kernel:PATH" and "activation:NAME"; and the plan they follow.
    """
    plans: list[QuantizationPlan] = []

    def all_grids(params, state):
        found: dict[str, Grid] = {}

        def by(context):
            plans.append(context.plan)
            return collect(found, context)

        net.apply(params, state, None, train=False, by=by)
        return found

    # One program, in which nothing but the grids is computed.
    found = jax.tree.map(np.asarray, jax.jit(all_grids)(params, state))
    return found, plans[-1]


def collect(found: dict[str, Grid], context: Context) -> Arithmetic:
    """Nothing is quantized; puts down every grid."""

    def activation(point: QuantizedTensor, x: Array) -> Tensor:
        if context.config.activation != "static":
            return Tensor(x)
        grid = fake_activation(context, point, x).grid
        found[f"activation:{point.name}"] = grid
        return Tensor(x, grid)

    def weight(w: Weight, kernel: Array, x: Tensor, bias: Array | None) -> Tensor:
        grid = fake_weight(context, w, kernel, x, bias).grid
        known = found.get(f"kernel:{w.name}", grid)
        # Each use may ask for a larger scale, for the sake of its bias.
        scale = jnp.maximum(grid.scale, known.scale)
        found[f"kernel:{w.name}"] = grid._replace(scale=scale)
        return Tensor(kernel)

    return Arithmetic(activation=activation, weight=weight)


def _marked(found: dict[str, Grid], context: Context) -> Arithmetic:
    """Marks instead of fake quantization."""
    static = context.config.activation == "static"

    def activation(point: QuantizedTensor, x: Array) -> Tensor:
        if not static:
            return Tensor(x)
        grid = found[f"activation:{point.name}"]
        return Tensor(mark(x, grid, point.bits), grid)

    def weight(w: Weight, kernel: Array, x: Tensor, bias: Array | None) -> Tensor:
        grid = found[f"kernel:{w.name}"]
        axis = w.axis if context.config.per_channel else None
        return Tensor(mark(kernel, grid, w.bits, axis, narrow=True), grid)

    def again(grid: Grid, x: Array) -> Array:
        return mark(x, grid, int(grid.high + 1).bit_length())

    def requantized(point: QuantizedTensor, tensors: list[Tensor]) -> list[Tensor]:
        grid = found[f"activation:{point.name}"]
        return [Tensor(mark(t.value, grid, point.bits), grid) for t in tensors]

    return Arithmetic(
        activation=activation,
        weight=weight,
        again=again,
        requantized=requantized if static else untouched,
        now=True,
    )


def mark(
    x: Array, grid: Grid, bits: int, axis: int | None = None, *, narrow: bool = False
) -> Array:
    """Fake quantization as a composite; the grid must be known while tracing."""
    scale, zero = np.asarray(grid.scale), np.asarray(grid.zero)
    attributes: dict[str, Any] = {
        "scale": scale.reshape(-1).astype(np.float32),
        "zero_point": np.broadcast_to(zero, scale.shape).reshape(-1).astype(np.int64),
        "dtype": "i8" if bits > 4 else "i4",
        "narrow_range": narrow,
    }
    if axis is not None:
        attributes["quantization_dimension"] = axis
    low, high = levels(bits, narrow=narrow)
    fixed = Grid(scale, zero, low, high)

    @partial(jax.lax.composite, name=COMPOSITE)
    def fake(x, **_):
        return ((integers(x, fixed) - fixed.zero) * fixed.scale).astype(x.dtype)

    return fake(x, **attributes)
