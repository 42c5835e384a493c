"""Transposed convolutions and views of many axes, as what every runtime has.

LiteRT and ONNX Runtime have no integer kernels for transposed convolutions, and none
for arrays of six axes. Both are rewritten, marks of quantization included.
"""

import functools
import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from jaxkd.export import census, fold
from jaxkd.export.channels import value, within

MOST_AXES = 5  # of an array that LiteRT reshapes and transposes in integers
# With one number, or one for each channel, as the other operand.
POINTWISE = {
    *("add", "sub", "mul", "div", "max", "min", "clamp", "neg", "abs", "exp", "tanh"),
    *("logistic", "sign", "square", "sqrt", "rsqrt", "integer_pow"),
}


class Mark(NamedTuple):
    """A value that is marked as quantized.

    Attributes:
      attributes: of the mark.
      marked: the value, kept so that its id stays its own.
      source: the constant that was marked, or None.
    """

    attributes: dict[str, Any]
    marked: Any
    source: np.ndarray | None


class Phases(NamedTuple):
    """A transposed convolution's result, its phases side by side as channels.

    Attributes:
      phases: `[batch, *sizes, prod(strides) * channels]`.
      strides: how many phases each spatial axis has.
      lengths: of the result's spatial axes.
      scope: the module that it is of.
      attributes: of its mark, or None.
    """

    phases: Any
    strides: tuple[int, ...]
    lengths: tuple[int, ...]
    scope: str
    attributes: dict[str, Any] | None = None

    def value(self) -> Array:
        """Return the phases interleaved: `[batch, *lengths, channels]`."""
        again = functools.partial(_again, self.attributes)
        x, strides = self.phases, self.strides
        n, *sizes, width = x.shape
        channels = width // math.prod(strides)
        with within(self.scope):
            if len(strides) == 2:
                (h, w), (s, t) = sizes, strides
                x = again(lax.reshape(x, (n, h, w, s, t * channels)))
                x = again(lax.transpose(x, (0, 1, 3, 2, 4)))
            long = [q * s for q, s in zip(sizes, strides, strict=True)]
            x = again(lax.reshape(x, (n, *long, channels)))
            if tuple(long) != self.lengths:
                x = again(lax.slice(x, [0] * x.ndim, (n, *self.lengths, channels)))
        return x


class Viewed(NamedTuple):
    """An array of few axes, seen as one of many."""

    base: Any
    shape: tuple
    scope: str
    attributes: dict[str, Any] | None = None

    def value(self) -> Array:
        """Return the array with all its axes."""
        with within(self.scope):
            return _again(self.attributes, lax.reshape(self.base, self.shape))


def marked(x: Any, attributes: dict[str, Any]) -> Array:
    """Mark a value as quantized, as `compress.quantize.deployed` does."""
    scale = np.asarray(attributes["scale"], np.float32).reshape(-1)
    zero = np.asarray(attributes.get("zero_point", 0), np.float32).reshape(-1)
    most = {"i8": 127, "i4": 7}[str(attributes["dtype"])]
    least = -most if attributes.get("narrow_range") else -most - 1
    along = [1] * np.ndim(x)
    if attributes.get("quantization_dimension") is not None:
        along[attributes["quantization_dimension"]] = -1
    elif scale.size == 1:
        along = []
    step, zero = scale.reshape(along), np.broadcast_to(zero, scale.shape)
    zero = zero.reshape(along)

    @functools.partial(lax.composite, name=census.FAKE_QUANT)
    def fake(x, **_):
        q = jnp.clip(jnp.round(x / step) + zero, least, most)
        return ((q - zero) * step).astype(x.dtype)

    return fake(x, **attributes)


def _again(attributes: dict[str, Any] | None, x: Array) -> Array:
    return x if attributes is None else marked(x, attributes)


def remember(marks: dict[int, Mark], equation: Any, x: Any, outs: Any) -> None:
    """Keep what a mark says by the id of the marked value."""
    if census.is_fake_quant(equation):
        (out,) = outs
        source = x if fold.is_constant(x) else None
        marks[id(out)] = Mark(census.attributes(equation), out, source)


def _same(a: dict[str, Any] | None, b: dict[str, Any]) -> bool:
    return a is not None and all(
        np.array_equal(np.asarray(a.get(key)), np.asarray(b.get(key)))
        for key in ("scale", "zero_point", "dtype", "narrow_range")
    )


def rewritten(
    equation: Any, values: list, marks: dict[int, Mark], scope: str
) -> Any | None:
    """Return the result of an equation that is rewritten here, or None of any other.

    Args:
      equation: of the program.
      values: what it reads.
      marks: of the values before.
      scope: the module that it is of.
    """
    name, params = equation.primitive.name, equation.params
    if name == "conv_general_dilated" and set(params["lhs_dilation"]) != {1}:
        return _convolution(params, values, marks, scope)
    if not values:
        return None
    x = values[-1] if name == "composite" else values[0]
    if fold.is_constant(x) and len(values) > 1:  # of a sum, a product or a clamp
        x = values[1]
    if isinstance(x, Phases):
        return _of_phases(equation, values, x, marks, scope)
    if name == "reshape" and params["dimensions"] is None:
        return _reshape(equation.outvars[0].aval.shape, x, marks, scope)
    if isinstance(x, Viewed):
        return _of_view(equation, x, scope)
    return None


def _of_phases(
    equation: Any, values: list, x: Phases, marks: dict[int, Mark], scope: str
) -> Any | None:
    """What is done to each channel is done to all phases of it."""
    if census.is_fake_quant(equation):
        attributes = census.attributes(equation)
        if np.size(attributes["scale"]) != 1:
            return None
        with within(scope):
            phases = marked(value(x.phases), attributes)
        made = x._replace(phases=phases, attributes=attributes, scope=scope)
        out = made.value()
        marks[id(out)] = Mark(attributes, out, None)
        return out
    channels = equation.outvars[0].aval.shape[-1]
    operands = [x.phases if v is x else _tiled(v, channels, x.strides) for v in values]
    known = all(v is not None for v in operands) and x.attributes is None
    if equation.primitive.name not in POINTWISE or not known:
        return None
    with within(scope):
        return x._replace(phases=equation.primitive.bind(*operands, **equation.params))


def _tiled(c: Any, channels: int, strides: tuple[int, ...]) -> Any | None:
    """Return a constant of each channel, for each phase of it; one number as it is."""
    if not fold.is_constant(c):
        return None
    if c.size == 1:
        return c.reshape((1,) * c.ndim)
    if c.shape[-1] != channels or c.size != channels:
        return None
    many = np.tile(c.reshape(-1), math.prod(strides))
    return many.reshape((1,) * (c.ndim - 1) + (-1,))


def _convolution(
    params: dict[str, Any], values: list, marks: dict[int, Mark], scope: str
) -> Phases | None:
    """Return a transposed convolution as an ordinary one that computes all its phases.

    Along one axis, with stride s, kernel w of K places and padding l before::

        y[s q + r] = sum_m x[q + c_r + m] w[t_r + s m]
        t_r = (l - r) mod s        c_r = (r - l + t_r) / s

    Each r is a convolution with every s-th place of the kernel, and all of them are
    one with s times the channels.

    References:
      W. Shi et al. Is the deconvolution layer the same as a convolutional layer? 2016.
      https://arxiv.org/abs/1609.07009
    """
    numbers, rank = params["dimension_numbers"], len(params["lhs_dilation"]) + 2
    last = (0, rank - 1, *range(1, rank - 1))
    mark = marks.get(id(values[1]))
    kernel = values[1] if fold.is_constant(values[1]) else mark and mark.source
    plainly = set(params["window_strides"]) == {1} and params["batch_group_count"] == 1
    layout = (tuple(numbers.lhs_spec), tuple(numbers.out_spec)) == (last, last)
    if kernel is None or not plainly or not layout or rank not in (3, 4):
        return None
    if params["feature_group_count"] != 1:
        return None
    out_axis, in_axis, *space = numbers.rhs_spec
    kernel = np.transpose(kernel, (*space, in_axis, out_axis))
    kernel = _spread(kernel, params["rhs_dilation"])
    with within(scope):
        x = value(values[0])
    padding, lengths = [], []
    for axis, (stride, (low, high)) in enumerate(
        zip(params["lhs_dilation"], params["padding"], strict=True)
    ):
        size, width = x.shape[1 + axis], kernel.shape[axis]
        lengths.append((size - 1) * stride + 1 + low + high - width + 1)
        kernel, first = _phases_of(kernel, axis, stride, low)
        after = -(-lengths[-1] // stride) - 1 + first + kernel.shape[axis] - size
        padding.append((-first, after))
    n_space = len(padding)
    # [*space, in, *phases, out]: the phases become channels.
    kernel = kernel.reshape(*kernel.shape[: n_space + 1], -1)
    kernel = np.ascontiguousarray(kernel)
    with within(scope):
        x = _cut(x, padding, marks)
        operand: Any = kernel
        if mark is not None:
            operand = marked(kernel, _attributes(mark, out_axis, params, rank - 1))
        phases = lax.conv_general_dilated(
            x,
            operand,
            (1,) * n_space,
            [(max(low, 0), max(high, 0)) for low, high in padding],
            dimension_numbers=lax.ConvDimensionNumbers(
                last, (rank - 1, rank - 2, *range(rank - 2)), last
            ),
            preferred_element_type=params["preferred_element_type"],
            precision=params["precision"],
        )
    return Phases(phases, tuple(params["lhs_dilation"]), tuple(lengths), scope)


def _spread(kernel: np.ndarray, dilation: tuple[int, ...]) -> np.ndarray:
    """Return the kernel with zeros between its places."""
    for axis, step in enumerate(dilation):
        if step > 1:
            shape = list(kernel.shape)
            shape[axis] = (shape[axis] - 1) * step + 1
            wide = np.zeros(shape, kernel.dtype)
            wide[(slice(None),) * axis + (slice(None, None, step),)] = kernel
            kernel = wide
    return kernel


def _phases_of(
    kernel: np.ndarray, axis: int, stride: int, low: int
) -> tuple[np.ndarray, int]:
    """Return the kernels of all phases along an axis, and where the first one begins.

    The phases become an axis before the last one, after those of the axes before.
    """
    width = kernel.shape[axis]
    begin = [(low - r) % stride for r in range(stride)]
    start = [(r - low + t) // stride for r, t in enumerate(begin)]
    count = [len(range(t, width, stride)) for t in begin]
    first = min(start)
    reach = max(s + n for s, n in zip(start, count, strict=True)) - first
    at = (slice(None),) * axis
    parts = []
    for t, s, n in zip(begin, start, count, strict=True):
        shape = list(kernel.shape)
        shape[axis] = reach
        part = np.zeros(shape, kernel.dtype)
        part[(*at, slice(s - first, s - first + n))] = kernel[
            (*at, slice(t, None, stride))
        ]
        parts.append(part)
    return np.stack(parts, -2), first


def _cut(x: Array, padding: list[tuple[int, int]], marks: dict[int, Mark]) -> Array:
    """Return the array without what negative padding takes away."""
    starts = [max(-low, 0) for low, _ in padding]
    ends = [min(high, 0) for _, high in padding]
    if not any(starts) and not any(ends):
        return x
    sizes = x.shape[1:-1]
    limits = [n + end for n, end in zip(sizes, ends, strict=True)]
    cut = lax.slice(x, (0, *starts, 0), (x.shape[0], *limits, x.shape[-1]))
    mark = marks.get(id(x))
    return cut if mark is None else marked(cut, mark.attributes)


def _attributes(
    mark: Mark, out_axis: int, params: dict[str, Any], last: int
) -> dict[str, Any]:
    """Return the kernel's mark: its scales once for each phase."""
    attributes = dict(mark.attributes)
    if attributes.get("quantization_dimension") is None:
        return attributes
    if attributes["quantization_dimension"] != out_axis:
        raise NotImplementedError("a transposed kernel with a scale for each input")
    phases = math.prod(params["lhs_dilation"])
    for key in ("scale", "zero_point"):
        attributes[key] = np.tile(np.asarray(attributes[key]).reshape(-1), phases)
    return {**attributes, "quantization_dimension": last}


def _reshape(shape: tuple, x: Any, marks: dict[int, Mark], scope: str) -> Any | None:
    if isinstance(x, Viewed):
        if len(shape) > MOST_AXES:
            return x._replace(shape=tuple(shape))
        with within(scope):
            return _again(x.attributes, lax.reshape(x.base, shape))
    if len(shape) <= MOST_AXES or fold.is_constant(x):
        return None
    x = value(x)
    if x.ndim > MOST_AXES:
        return None
    mark = marks.get(id(x))
    return Viewed(x, tuple(shape), scope, mark and mark.attributes)


def _of_view(equation: Any, x: Viewed, scope: str) -> Any | None:
    """Return a mark that is there already; a transpose, with few axes."""
    if census.is_fake_quant(equation):
        attributes = census.attributes(equation)
        if _same(x.attributes, attributes):
            return x
        if np.size(attributes["scale"]) != 1:
            return None
        with within(scope):
            base = marked(x.base, attributes)
        return x._replace(base=base, attributes=attributes)
    if equation.primitive.name != "transpose":
        return None
    permutation = equation.params["permutation"]
    runs = _runs(permutation)
    if len(runs) > MOST_AXES:
        return None
    inner = sorted(runs)
    sizes = [math.prod(x.shape[axis] for axis in run) for run in inner]
    with within(scope):
        base = _again(x.attributes, lax.reshape(x.base, sizes))
        order = [inner.index(run) for run in runs]
        base = _again(x.attributes, lax.transpose(base, order))
    shape = tuple(x.shape[axis] for axis in permutation)
    return Viewed(base, shape, scope, x.attributes)


def _runs(permutation: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Return the axes of a transpose, those together that stay side by side.

    >>> _runs((0, 1, 3, 2, 4, 5))
    [(0, 1), (3,), (2,), (4, 5)]
    """
    runs: list[tuple[int, ...]] = []
    for axis in permutation:
        if runs and runs[-1][-1] + 1 == axis:
            runs[-1] = (*runs[-1], axis)
        else:
            runs.append((axis,))
    return runs
