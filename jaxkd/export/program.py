"""From any inference function to a plain program that runtimes and emitters know.

What training needs is taken out: custom gradients, checkpointed blocks and nested jits
are written in place, BatchNorm's constants are computed, and what only scales and
shifts channels after a convolution moves into its kernel and one bias.
"""

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from jaxkd import _check
from jaxkd.export import fold

Function = Callable[[Array], Array]
# Programs inside an equation that mean no more than their body.
INLINE = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
}
CUTS = ("slice", "squeeze", "gather", "broadcast_in_dim", "concatenate")
NOTHING = ("stop_gradient", "copy", "copy_p", "optimization_barrier")


class Deferred(NamedTuple):
    """`make(scale)` plus `shift`: a value whose channels may still be scaled."""

    make: Callable[[np.ndarray | None], Array]
    rank: int
    scale: np.ndarray | None = None
    shift: np.ndarray | None = None


class Widened(NamedTuple):
    """A constant of narrow integers in a wider type, stored as the narrow ones."""

    narrow: np.ndarray
    params: dict[str, Any]


def inference(net: Any, params: Any, state: Any) -> Function:
    """The function of images that a trained network is: its logits, nothing else.

    Args:
      net: a `jaxkd.models.Net`.
      params: the student's alone; those of `Term`s are not part of the network.
      state: its state.

    Returns:
      `images -> logits`, in inference mode.
    """
    return lambda x: net.apply(params, state, x, train=False)[0].logits


def check_image_shape(image_shape: Sequence[int]) -> tuple[int, ...]:
    """The shape as a tuple of positive integers."""
    shape = tuple(image_shape)
    for size in shape:
        _check.whole(1)("image_shape", size)
    return shape


def image(image_shape: Sequence[int], batch: int | None) -> jax.ShapeDtypeStruct:
    """Images without values; `batch=None` is any number of them."""
    shape = check_image_shape(image_shape)
    if batch is not None:
        _check.whole(1)("batch", batch)
    first = jax.export.symbolic_shape("batch")[0] if batch is None else batch
    return jax.ShapeDtypeStruct((first, *shape), jnp.float32)


def trace(f: Function, image_shape: Sequence[int], batch: int | None) -> Any:
    """The plain program of `f` as a closed jaxpr of images to logits.

    Raises:
      ValueError: if `f` cannot take any number of images and `batch` is None, or does
        not return one array `[batch, ...]`.
    """
    x = image(image_shape, batch)
    try:
        closed = jax.make_jaxpr(plain(f))(x)
    except TypeError as error:
        if batch is None and "_DimExpr" in str(error):
            raise ValueError(
                f"f needs to know how many images there are ({error}): pass batch=1"
            ) from error
        raise
    out = closed.out_avals
    if len(out) != 1 or not out[0].shape or out[0].shape[0] != x.shape[0]:
        raise ValueError(f"f must return logits [batch, classes], got {out}")
    return closed


def plain(f: Function) -> Function:
    """The same function, traced anew as a plain program.

    Calls marked for quantization (`jax.lax.composite`) stay as they are.

    Args:
      f: images to logits, its parameters closed over.

    Returns:
      A function equal to `f` up to rounding.
    """

    def g(x: Array) -> Array:
        closed = jax.make_jaxpr(f)(jax.ShapeDtypeStruct(x.shape, x.dtype))
        if len(closed.out_avals) != 1:
            raise ValueError(f"f must return logits alone, got {closed.out_avals}")
        return value(_run(closed.jaxpr, closed.consts, [x], {})[0])

    return g


def _run(jaxpr: Any, consts: Sequence[Any], args: Sequence[Any], seen: dict) -> list:
    """Evaluates a program; `seen` remembers what a reshaped value was before."""
    known = map(fold.constant, consts)
    env: dict[Any, Any] = dict(zip(jaxpr.constvars, known, strict=True))
    uses = Counter(v for e in jaxpr.eqns for v in e.invars if not _literal(v))
    uses.update(v for v in jaxpr.outvars if not _literal(v))
    # Used twice, a value is computed here, once, and not deferred any further.
    once = lambda variable, x: x if uses[variable] == 1 else value(x)
    for variable, arg in zip(jaxpr.invars, args, strict=True):
        env[variable] = once(variable, arg)
    read = lambda v: fold.constant(v.val) if _literal(v) else env[v]
    for equation in jaxpr.eqns:
        with jax.named_scope(str(equation.source_info.name_stack) or "f"):
            values = [read(v) for v in equation.invars]
            outs = _equation(equation, values, seen)
            for variable, out in zip(equation.outvars, outs, strict=True):
                env[variable] = once(variable, out)
    return [read(v) for v in jaxpr.outvars]


def _literal(variable: Any) -> bool:
    return hasattr(variable, "val")


def value(x: Any) -> Any:
    """What a deferred value is, computed now; everything else as it is."""
    if isinstance(x, Widened):
        return lax.convert_element_type_p.bind(x.narrow, **x.params)
    if not isinstance(x, Deferred):
        return x
    out = x.make(x.scale)
    if x.shift is None:
        return out
    shift = x.shift.reshape((1,) * (x.rank - 1) + (-1,)).astype(out.dtype)
    return lax.add(out, shift)


def _equation(equation: Any, values: list, seen: dict) -> list:
    name, params = equation.primitive.name, equation.params
    if name in INLINE:
        inner = params[INLINE[name]]
        if (window := _tile_window(equation)) is not None:
            return [_tile_max(value(values[0]), window, seen)]
        consts = getattr(inner, "consts", ())
        return _run(getattr(inner, "jaxpr", inner), consts, values, seen)
    if name in NOTHING:
        return values
    if name == "reduce_sum" and isinstance(values[0], Widened):
        wide = values[0].narrow.astype(equation.outvars[0].aval.dtype)
        return [wide.sum(params["axes"], dtype=wide.dtype)]
    if fold.folds(equation, values):
        return fold.evaluate(equation, values)
    if name == "convert_element_type" and fold.is_constant(values[0]):
        return [Widened(values[0], params)]
    moved = _channelwise(equation, values)
    if moved is not None:
        return [moved]
    values = [value(v) for v in values]
    if name == "gather" and (cut := _slice_of(params, values)) is not None:
        return [cut]
    if name == "reshape" and seen.get(id(values[0]), (None,))[0] is not None:
        values[0] = seen[id(values[0])][0]
    outs = equation.primitive.bind(*values, **params)
    if name == "reshape":  # kept with the result, whose id is then not used again
        seen[id(outs)] = (values[0], outs)
    return list(outs) if equation.primitive.multiple_results else [outs]


def _channelwise(equation: Any, values: list) -> Deferred | None:
    """The result as a deferred value, if it is one or becomes one here."""
    name, aval = equation.primitive.name, equation.outvars[0].aval
    if name in ("conv_general_dilated", "dot_general"):
        return _linear(equation, *values)
    if name not in ("add", "sub", "mul", "div") or not aval.shape:
        return None
    left, right = values
    if fold.is_constant(left) and name in ("add", "mul"):
        left, right = right, left
    channels = aval.shape[-1]
    if not fold.per_channel(right, channels) or aval.dtype != jnp.float32:
        return None
    if isinstance(left, Deferred):
        given = left
    elif getattr(left, "shape", None) != aval.shape or fold.is_constant(left):
        return None
    else:
        given = Deferred(functools.partial(_scaled, left), len(aval.shape))
    c = np.asarray(right, np.float32).reshape(-1)
    scale, shift = given.scale, given.shift
    if name in ("mul", "div"):
        times = (lambda a: a * c) if name == "mul" else (lambda a: a / c)
        one = np.ones_like(c)
        return given._replace(
            scale=times(one if scale is None else scale),
            shift=None if shift is None else times(shift),
        )
    c = -c if name == "sub" else c
    return given._replace(shift=c if shift is None else shift + c)


def _scaled(x: Array, scale: np.ndarray | None) -> Array:
    if scale is None:
        return x
    shape = (1,) * (x.ndim - 1) + (-1,)
    return lax.mul(x, scale.reshape(shape).astype(x.dtype))


def _linear(equation: Any, x: Any, kernel: Any) -> Deferred | None:
    """A convolution or product whose constant kernel can take a scale of its outputs.

    Only where the kernel's outputs are its last axis and become the result's.
    """
    params, primitive = equation.params, equation.primitive
    rank = len(equation.outvars[0].aval.shape)
    if not fold.is_constant(kernel) or kernel.dtype != np.float32:
        return None
    if primitive.name == "dot_general":
        (_, contracted), (_, batch) = params["dimension_numbers"]
        last = kernel.ndim == 2 and tuple(contracted) == (0,) and not batch
    else:
        numbers = params["dimension_numbers"]
        last = (numbers.rhs_spec[0], numbers.out_spec[1]) == (rank - 1, rank - 1)
    if not last:
        return None

    def make(scale):
        scaled = kernel if scale is None else kernel * scale
        return primitive.bind(value(x), scaled, **params)

    return Deferred(make, rank)


def _tile_window(equation: Any) -> tuple[int, int] | None:
    """Height and width of the tiles, of a maximum over whole tiles.

    `jaxkd.models.max_pool` cuts images into tiles and takes the maximum of slices. It
    is recognised by what it does: a maximum of as many cuts as a tile has places.
    """
    if equation.primitive.name != "custom_jvp_call" or len(equation.invars) != 1:
        return None
    tiles, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    if len(tiles) != 6 or out != (tiles[0], tiles[1], tiles[3], tiles[5]):
        return None
    steps = Counter(e.primitive.name for e in equation.params["call_jaxpr"].eqns)
    if steps["max"] != tiles[2] * tiles[4] - 1 or set(steps) - {"max", *CUTS}:
        return None
    return tiles[2], tiles[4]


def _slice_of(params: dict, values: list) -> Array | None:
    """A gather from known places of one block, as the slice that it is.

    So `jnp`'s indexing looks where the number of images is not known.
    """
    x, places = values
    numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
    if not fold.is_constant(places) or places.ndim != 1:
        return None
    kept = len(sizes) - len(numbers.collapsed_slice_dims)
    if numbers.offset_dims != tuple(range(kept)) or numbers.operand_batching_dims:
        return None
    starts = [0] * len(sizes)
    for axis, place in zip(numbers.start_index_map, places, strict=True):
        starts[axis] = int(place)
    limits = [start + size for start, size in zip(starts, sizes, strict=True)]
    whole = not any(starts) and tuple(limits) == x.shape
    out = x if whole else lax.slice(x, starts, limits)
    shape = [n for i, n in enumerate(sizes) if i not in numbers.collapsed_slice_dims]
    return out if len(shape) == len(sizes) else lax.reshape(out, shape)


def _tile_max(tiles: Array, window: tuple[int, int], seen: dict) -> Array:
    """The same as one pooling of the images that were cut into tiles."""
    images, rows, height, columns, width, channels = tiles.shape
    shape = (images, rows * height, columns * width, channels)
    whole = seen.get(id(tiles), (None,))[0]
    if whole is None or whole.shape != shape:
        whole = lax.reshape(tiles, shape)
    sizes = (1, *window, 1)
    return lax.reduce_window_max_p.bind(
        whole,
        window_dimensions=sizes,
        window_strides=sizes,
        padding=((0, 0),) * 4,
        base_dilation=(1,) * 4,
        window_dilation=(1,) * 4,
    )
