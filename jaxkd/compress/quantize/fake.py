"""Fake quantization: rounding to a grid, and what passes for its gradient."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

# Below it a range has no room for a grid in float32: the tensor is as good as zero.
LEAST_SCALE = 1e-30


class Grid(NamedTuple):
    """Numbers that integers stand for: scale * (q - zero), low <= q <= high.

    Attributes:
      scale: step, > 0; one number, or one for each channel along an axis, with axes of
        length 1 for the others.
      zero: the integer that stands for 0, a float array of the same shape.
      low: least integer.
      high: largest integer.
    """

    scale: Any
    zero: Any
    low: int
    high: int


def levels(bits: int, *, narrow: bool) -> tuple[int, int]:
    """The least and the largest signed integer; `narrow` leaves the very least out.

    >>> levels(8, narrow=False), levels(8, narrow=True), levels(4, narrow=True)
    ((-128, 127), (-127, 127), (-7, 7))
    """
    half = 2 ** (bits - 1)
    return (1 - half if narrow else -half), half - 1


def symmetric_grid(reach: ArrayLike, bits: int, *, narrow: bool) -> Grid:
    """The grid about 0 whose largest number is `reach`; of reach 0, whole numbers.

    >>> float(symmetric_grid(2.54, 8, narrow=True).scale)
    0.019999999552965164
    """
    low, high = levels(bits, narrow=narrow)
    scale = _safe(jnp.asarray(reach, jnp.float32) / high)
    return Grid(scale, jnp.zeros_like(scale), low, high)


def affine_grid(least: ArrayLike, most: ArrayLike, bits: int) -> Grid:
    """Return the grid of all levels from `least` to `most`, both moved to enclose 0.

    0 is on it, exactly: padding and ReLU need that.

    >>> grid = affine_grid(0.0, 2.55, 8)  # nowhere negative: 0 is the least level
    >>> float(grid.zero)
    -128.0
    """
    low, high = levels(bits, narrow=False)
    least = jnp.minimum(jnp.asarray(least, jnp.float32), 0)
    most = jnp.maximum(jnp.asarray(most, jnp.float32), 0)
    scale = _safe((most - least) / (high - low))
    return Grid(scale, jnp.clip(jnp.round(low - least / scale), low, high), low, high)


def _safe(scale: Array) -> Array:
    return jnp.where(scale > LEAST_SCALE, scale, 1.0)


def weight_grid(
    kernel: Float[Array, "..."], bits: int, axis: int | None = None
) -> Grid:
    """Return the symmetric grid of a kernel's largest absolute value.

    Args:
      kernel: the weights.
      bits: 2 to 8.
      axis: of the output channels, each with its own scale; None for one scale.
    """
    return symmetric_grid(reach(kernel, axis), bits, narrow=True)


def reach(kernel: Float[Array, "..."], axis: int | None) -> Array:
    """Return the largest absolute value, of all or along an axis (axes kept)."""
    others = tuple(i for i in range(kernel.ndim) if axis is None or i != axis)
    size = jnp.abs(kernel.astype(jnp.float32))
    return jnp.max(size, others, keepdims=axis is not None)


def integers(x: Float[Array, "..."], grid: Grid) -> Float[Array, "..."]:
    """The integer that stands for each number, as floats; outside it is the end's.

    >>> integers(jnp.array([-9.0, 0.24, 0.26]), Grid(0.5, 0.0, -8, 7)).tolist()
    [-8.0, 0.0, 1.0]
    """
    q = jnp.round(x.astype(jnp.float32) / grid.scale) + grid.zero
    return jnp.clip(q, grid.low, grid.high)


@jax.custom_vjp
def fake_quant(x: Float[Array, "..."], grid: Grid) -> Float[Array, "..."]:
    """Return the nearest number of the grid, of the same type as `x`.

    With scale s, zero point z and levels from l to h::

        y = s * (clip(round(x / s) + z, l, h) - z)

    Its gradient is the straight-through estimator: that of the identity between the
    ends of the grid, 0 outside. The grid has none.

    Args:
      x: any numbers.
      grid: from `symmetric_grid`, `affine_grid` or `weight_grid`.

    Returns:
      Of the shape of `x`.

    Example:
      >>> fake_quant(jnp.array([0.2, 0.4, 9.0]), affine_grid(0.0, 7.5, 4)).tolist()
      [0.0, 0.5, 7.5]

    References:
      Y. Bengio, N. Léonard, A. Courville. Estimating or Propagating Gradients Through
      Stochastic Neurons for Conditional Computation. 2013.
      https://arxiv.org/abs/1308.3432

      B. Jacob et al. Quantization and Training of Neural Networks for Efficient
      Integer-Arithmetic-Only Inference. 2018. https://arxiv.org/abs/1712.05877
    """
    return ((integers(x, grid) - grid.zero) * grid.scale).astype(x.dtype)


def _fake_forward(x, grid):
    return fake_quant(x, grid), _inside(x, grid)


def _fake_backward(inside, g):
    return jnp.where(inside, g, 0), None


def _inside(x: Array, grid: Grid) -> Array:
    """Return whether a number lies between the ends of the grid."""
    wide = x.astype(jnp.float32)
    least = (grid.low - grid.zero) * grid.scale
    most = (grid.high - grid.zero) * grid.scale
    return (wide >= least) & (wide <= most)


fake_quant.defvjp(_fake_forward, _fake_backward)


def lsq(
    x: Float[Array, "..."], step: Float[Array, "..."], grid: Grid
) -> Float[Array, "..."]:
    """Fake quantization whose step size has a gradient too (learned step size).

    With s the step, zero point z, levels from l to h and v = x / s + z::

        dy/ds = round(v) - v            l < v < h
                l - z  or  h - z        below or above

    times 1 / sqrt(n h), n the numbers that share a step, so that steps and weights move
    at a like pace. The gradient for `x` is `fake_quant`'s.

    Args:
      x: any numbers.
      step: > 0, of the shape of the grid's scale, which it replaces.
      grid: its zero point and levels.

    Returns:
      Of the shape of `x`.

    Example:
      >>> grid = Grid(jnp.ones(()), jnp.zeros(()), -8, 7)
      >>> g = jax.grad(lambda s: lsq(jnp.array([9.0]), s, grid).sum())(1.0)
      >>> round(float(g), 4)  # the top level, 7, over sqrt(1 * 7)
      2.6458

    References:
      S. K. Esser et al. Learned Step Size Quantization. 2020.
      https://arxiv.org/abs/1902.08153 equations 1 to 3 and section 2.2.
    """
    step = jnp.asarray(step, jnp.float32)
    return _lsq(x, step, grid.zero, grid.low, grid.high)


@jax.custom_vjp
def _lsq(x, step, zero, low, high):
    # A step that an optimiser has carried to 0 or below must not become a NaN.
    grid = Grid(jnp.maximum(step, LEAST_SCALE), zero, low, high)
    return ((integers(x, grid) - zero) * grid.scale).astype(x.dtype)


def _lsq_forward(x, step, zero, low, high):
    return _lsq(x, step, zero, low, high), (x, step, zero, low, high)


def _lsq_backward(residuals, g):
    x, step, zero, low, high = residuals
    v = x.astype(jnp.float32) / jnp.maximum(step, LEAST_SCALE) + zero
    q = jnp.clip(jnp.round(v), low, high)
    inside = (v >= low) & (v <= high)
    change = jnp.where(inside, q - v, q - zero) * g.astype(jnp.float32)
    shared = [i for i in range(x.ndim) if step.ndim == 0 or step.shape[i] == 1]
    change = jnp.sum(change, tuple(shared), keepdims=step.ndim > 0)
    change /= jnp.sqrt(x.size / step.size * high)
    return jnp.where(inside, g, 0), change, None, None, None


_lsq.defvjp(_lsq_forward, _lsq_backward)


def lsq_start(x: Float[Array, "..."], grid: Grid) -> Float[Array, "..."]:
    """The step that learning starts from, 2 mean|x| / sqrt(h); per channel as the grid.

    >>> float(lsq_start(jnp.array([1.0, -3.0]), Grid(jnp.ones(()), 0.0, -4, 4)))
    2.0
    """
    shared = tuple(
        i for i in range(x.ndim) if grid.scale.ndim == 0 or grid.scale.shape[i] == 1
    )
    size = jnp.abs(x.astype(jnp.float32))
    mean = jnp.mean(size, shared, keepdims=grid.scale.ndim > 0)
    return _safe(2 * mean / jnp.sqrt(1.0 * grid.high))
