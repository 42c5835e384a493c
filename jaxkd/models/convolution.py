"""A convolution whose gradients are fast on the CPU, also inside `lax.scan`.

XLA:CPU has a fast kernel for a convolution in its plain form: channels last, stride
over a dense input, a window of a few pixels. The gradients that JAX derives are
convolutions of other forms: inside a loop they run 10 to 80 times slower, and the one
for the kernel, whose window is the whole image, is slow everywhere. Here both are
written in forms that XLA:CPU is good at. The forward pass is `lax`'s own convolution.

Depthwise convolutions have no fast kernel there at all: while training, and inside
`fast_inference`, they are sums of shifted products, up to 40 times as fast.

Both forms are traced, and lowering keeps the one of the platform that is lowered for:
on a GPU or TPU, and in a program exported for one, everything is `lax`'s own.
"""

import contextlib
import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

Image = Float[Array, "batch height width channels"]
Kernel = Float[Array, "rows columns inputs outputs"]

LAYOUT = ("NHWC", "HWIO", "NHWC")
# Patches of a few images at a time, about one core's second-level cache: all of them
# at once are several times slower, because they travel through memory.
CHUNK_BYTES = 2**21

_plain_only = False
_depthwise_by_shifts = False


class Window(NamedTuple):
    """How a kernel moves over an image; hashable, so that it can be static."""

    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int
    precision: Any


@contextlib.contextmanager
def plain_convolutions() -> Iterator[None]:
    """Inside, convolutions are traced with `lax`'s own gradients for every platform.

    Needed for forward-mode derivatives (`jax.jvp`, `jax.jacfwd`, `jax.hessian`), which
    a function with its own reverse rule does not have. What was compiled outside stays
    as it was: `jit` a function inside to have it traced here.
    """
    global _plain_only
    before, _plain_only = _plain_only, True
    try:
        yield
    finally:
        _plain_only = before


@contextlib.contextmanager
def fast_inference() -> Iterator[None]:
    """Inside, inference is traced in the form that is fastest where it will run.

    For the CPU this makes depthwise convolutions sums of shifted products, which is not
    the program to be analysed, and so not what a call outside gives.
    """
    global _depthwise_by_shifts
    before, _depthwise_by_shifts = _depthwise_by_shifts, True
    try:
        yield
    finally:
        _depthwise_by_shifts = before


def conv_general_dilated(
    lhs: Array,
    rhs: Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    **rest: Any,
) -> Array:
    """`lax.conv_general_dilated`, for `nn.Conv(conv_general_dilated=...)`.

    Equal to it in value and gradient up to rounding. Two-dimensional channels-last
    convolutions have reverse-mode gradients of their own, to any order; lowered for the
    CPU, these are not `lax`'s. All others are.

    Args:
      lhs: images.
      rhs: kernels.
      window_strides: step of the kernel along each spatial axis.
      padding: "SAME", "VALID" or (low, high) for each spatial axis.
      lhs_dilation: dilation of the images; other than 1, `lax`'s gradients are used.
      rhs_dilation: dilation of the kernel.
      dimension_numbers: layouts, as `lax` takes them.
      feature_group_count: number of groups of channels.
      **rest: passed on.

    Returns:
      What `lax.conv_general_dilated` returns.
    """
    plain = functools.partial(
        lax.conv_general_dilated,
        lhs,
        rhs,
        window_strides,
        padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        dimension_numbers=dimension_numbers,
        feature_group_count=feature_group_count,
        **rest,
    )
    numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    precision = rest.pop("precision", None)
    ours = (
        not _plain_only
        and lhs.ndim == 4
        and numbers == lax.conv_dimension_numbers(lhs.shape, rhs.shape, LAYOUT)
        and all(d == 1 for d in lhs_dilation or ())
        and jnp.issubdtype(lhs.dtype, jnp.floating)
        and lhs.dtype == rhs.dtype
        and lhs.size > 0
        and all(v in (None, 1) for v in rest.values())
    )
    if not ours:
        return plain()
    dilation = tuple(rhs_dilation or (1, 1))
    if isinstance(padding, str):
        reach = [(k - 1) * d + 1 for k, d in zip(rhs.shape[:2], dilation, strict=True)]
        padding = lax.padtype_to_pads(lhs.shape[1:3], reach, window_strides, padding)
    pads = tuple((int(low), int(high)) for low, high in padding)
    strides = tuple(window_strides)
    window = Window(strides, pads, dilation, feature_group_count, precision)
    return (_convolve_fast if _depthwise_by_shifts else _convolve)(window, lhs, rhs)


def _plain(window: Window, x: Image, kernel: Kernel) -> Image:
    return lax.conv_general_dilated(
        x,
        kernel,
        window.strides,
        window.padding,
        rhs_dilation=window.dilation,
        dimension_numbers=LAYOUT,
        feature_group_count=window.groups,
        precision=window.precision,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _convolve(window: Window, x: Image, kernel: Kernel) -> Image:
    return _plain(window, x, kernel)


def _convolve_fast(window: Window, x: Image, kernel: Kernel) -> Image:
    """`_convolve`, in the CPU's own form where there is one."""
    convolve = functools.partial(_convolve, window)
    if not _is_depthwise(window, kernel):
        return convolve(x, kernel)
    shifted = functools.partial(_shifted_products, window)
    # With both written down, the program still shows what it costs.
    return lax.platform_dependent(x, kernel, cpu=shifted, default=convolve)


def _forward(window, x, kernel):
    return _convolve_fast(window, x, kernel), (x, kernel)


def _backward(window, residuals, g):
    x, kernel = residuals
    of_kernel = kernel_gradient
    if _is_depthwise(window, kernel):
        of_kernel = _kernel_gradient_of_depthwise

    def plain_input(x, kernel, g):
        return jax.linear_transpose(lambda x: _plain(window, x, kernel), x)(g)[0]

    def plain_kernel(x, kernel, g):
        return jax.linear_transpose(lambda k: _plain(window, x, k), kernel)(g)[0]

    # Two choices, so that a gradient that nobody reads is not computed.
    choose = functools.partial(lax.platform_dependent, x, kernel, g)
    return (
        choose(cpu=functools.partial(input_gradient, window), default=plain_input),
        choose(cpu=functools.partial(of_kernel, window), default=plain_kernel),
    )


_convolve.defvjp(_forward, _backward)


def _is_depthwise(window: Window, kernel: Array) -> bool:
    """One kernel for each channel; few enough offsets to be written out."""
    rows, columns, inputs, outputs = kernel.shape
    return inputs == 1 and outputs == window.groups > 1 and rows * columns <= 49


def _pad(x: Array, pads: Sequence[tuple[int, int]]) -> Array:
    config = [(0, 0, 0), *((*pad, 0) for pad in pads), (0, 0, 0)]
    return lax.pad(x, jnp.zeros((), x.dtype), config)


def _shifts(
    window: Window, x: Image, kernel_size: Sequence[int], size: Sequence[int]
) -> Iterator[Image]:
    """What each offset of the kernel sees: the image shifted, and cut to the output."""
    padded = _pad(x, window.padding)
    images, *_, channels = padded.shape
    for offsets in itertools.product(*map(range, kernel_size)):
        first = [o * d for o, d in zip(offsets, window.dilation, strict=True)]
        last = [
            f + (n - 1) * s + 1
            for f, n, s in zip(first, size, window.strides, strict=True)
        ]
        limits, strides = (images, *last, channels), (1, *window.strides, 1)
        yield lax.slice(padded, (0, *first, 0), limits, strides)


def _shifted_products(window: Window, x: Image, kernel: Kernel) -> Image:
    """A depthwise convolution: the sum over offsets of shifted image times weight."""
    if not _is_depthwise(window, kernel):
        return _convolve(window, x, kernel)
    size = [
        (n + sum(pad) - (k - 1) * d - 1) // s + 1
        for n, pad, k, d, s in zip(
            x.shape[1:3],
            window.padding,
            kernel.shape[:2],
            window.dilation,
            window.strides,
            strict=True,
        )
    ]
    wide = jnp.promote_types(x.dtype, jnp.float32)
    weights = kernel.reshape(-1, 1, 1, 1, kernel.shape[-1]).astype(wide)
    seen = _shifts(window, x, kernel.shape[:2], size)
    products = [a.astype(wide) * w for a, w in zip(seen, weights, strict=True)]
    return functools.reduce(jnp.add, products).astype(x.dtype)


def _kernel_gradient_of_depthwise(
    window: Window, x: Image, kernel: Kernel, g: Image
) -> Kernel:
    """For each offset, the shifted image times the cotangent, summed over positions.

    One image at a time: what is then read nine times lies in a cache.
    """
    wide = jnp.promote_types(x.dtype, jnp.float32)

    def add(total, pair):
        x, g = (a[None].astype(wide) for a in pair)
        seen = _shifts(window, x, kernel.shape[:2], g.shape[1:3])
        return total + jnp.stack([jnp.sum(a * g, axis=(0, 1, 2)) for a in seen]), None

    rows, columns, _, channels = kernel.shape
    total, _ = lax.scan(add, jnp.zeros((rows * columns, channels), wide), (x, g))
    return total.reshape(kernel.shape).astype(kernel.dtype)


def _reversed_pads(
    window: Window, x: Array, kernel: Array, g: Array, axis: int
) -> tuple[int, int]:
    """Zeros around `g` (strided: spread out) so that kernel offset 0 meets the last."""
    step, dilation = window.strides[axis], window.dilation[axis]
    low = (kernel.shape[axis] - 1) * dilation - window.padding[axis][0]
    spread = (g.shape[axis + 1] - 1) * step + 1
    return low, x.shape[axis + 1] + window.padding[axis][0] - spread


def input_gradient(window: Window, x: Image, kernel: Kernel, g: Image) -> Image:
    """The cotangent `g`, convolved with the kernel turned round, outputs to inputs."""
    pads = tuple(_reversed_pads(window, x, kernel, g, axis) for axis in (0, 1))
    if window.strides != (1, 1):
        # A dilated input is not the plain form; the same with its zeros written out is.
        spread = zip(pads, window.strides, strict=True)
        config = [(0, 0, 0), *((*pad, step - 1) for pad, step in spread), (0, 0, 0)]
        g, pads = lax.pad(g, jnp.zeros((), g.dtype), config), ((0, 0), (0, 0))
    rows, columns, inputs, outputs = kernel.shape
    turned = kernel[::-1, ::-1].reshape(rows, columns, inputs, window.groups, -1)
    turned = turned.transpose(0, 1, 4, 3, 2)
    turned = turned.reshape(rows, columns, outputs // window.groups, -1)
    window = window._replace(strides=(1, 1), padding=pads)
    convolve = _shifted_products if _is_depthwise(window, turned) else _convolve
    return convolve(window, g, turned)


def kernel_gradient(window: Window, x: Image, kernel: Kernel, g: Image) -> Kernel:
    """Sums over images of patches times the other side, a few images at a time.

    Either side can be cut into patches; the one with fewer channels makes less of them.
    """
    rows, columns, inputs, outputs = kernel.shape
    places = rows * columns
    if patch_g := window.strides == (1, 1) and outputs // window.groups <= inputs:
        pads = tuple(_reversed_pads(window, x, kernel, g, axis) for axis in (0, 1))
        cut, other = g, x
    else:
        pads, cut, other = window.padding, x, g
    images, *size, channels = other.shape
    padded = lax.pad(
        cut,
        jnp.zeros((), cut.dtype),
        [(0, 0, 0), *((*pad, 0) for pad in pads), (0, 0, 0)],
    )
    wide = jnp.promote_types(x.dtype, jnp.float32)

    def products(total, pair):
        cut, other = pair
        patches = _patches(cut, (rows, columns), size, window)
        return total + _over_positions(patches, other, window, wide), None

    chunk = _chunk(images, size[0] * size[1] * places * cut.shape[-1] * wide.itemsize)
    split = lambda a: a.reshape(-1, chunk, *a.shape[1:])
    shape = (window.groups, channels // window.groups, places, -1)
    start = jnp.zeros((*shape[:-1], cut.shape[-1] // window.groups), wide)
    total, _ = lax.scan(products, start, (split(padded), split(other)))
    total = total.reshape(window.groups, -1, rows, columns, total.shape[-1])
    if patch_g:  # [groups, inputs, places turned round, outputs]
        total = total[:, :, ::-1, ::-1].transpose(2, 3, 1, 0, 4)
    else:  # [groups, outputs, places, inputs]
        total = total.transpose(2, 3, 4, 0, 1)
    return total.reshape(kernel.shape).astype(kernel.dtype)


def _patches(padded, kernel_size, size, window):
    """What the kernel sees at each position: `[images, *size, places, channels]`."""
    seen = []
    for offsets in itertools.product(*map(range, kernel_size)):
        first = [o * d for o, d in zip(offsets, window.dilation, strict=True)]
        last = [
            f + (n - 1) * s + 1
            for f, n, s in zip(first, size, window.strides, strict=True)
        ]
        images, *_, channels = padded.shape
        limits = (images, *last, channels)
        seen.append(lax.slice(padded, (0, *first, 0), limits, (1, *window.strides, 1)))
    return jnp.stack(seen, axis=3)


def _over_positions(patches, other, window, dtype):
    """For each group, `other`'s channels times the patches, summed over positions."""
    groups = window.groups
    *_, places, channels = patches.shape
    if groups == 1:
        left = other.reshape(-1, other.shape[-1])
        right = patches.reshape(-1, places * channels)
        out = lax.dot_general(
            left,
            right,
            (((0,), (0,)), ((), ())),
            precision=window.precision,
            preferred_element_type=dtype,
        )
        return out.reshape(1, -1, places, channels)
    return jnp.einsum(
        "mga,mpgb->gapb",
        other.reshape(-1, groups, other.shape[-1] // groups),
        patches.reshape(-1, places, groups, channels // groups),
        precision=window.precision,
        preferred_element_type=dtype,
    )


def _chunk(images: int, bytes_each: int) -> int:
    """The most images, dividing their number, whose patches fit in `CHUNK_BYTES`."""
    fit = max(1, min(images, CHUNK_BYTES // bytes_each))
    return next(k for k in range(fit, 0, -1) if images % k == 0)
