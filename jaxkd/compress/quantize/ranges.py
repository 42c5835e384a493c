"""Ranges of activations: measured in a batch, remembered over batches."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxkd.compress.quantize.config import Quantization
from jaxkd.compress.quantize.fake import (
    Grid,
    affine_grid,
    fake_quant,
    symmetric_grid,
)

Range = dict[str, Array]  # what is remembered of one tensor

SAMPLE = 2**16  # entries of a tensor that "percentile" and "mse" look at
PRIME = 32749  # its product with SAMPLE fits in 32 bits
RATIOS = 46  # parts of the whole range that "mse" tries, from 1/10 to 1


def empty(config: Quantization) -> Range:
    """Return the memory of a tensor that nobody has seen."""
    count = jnp.zeros((), jnp.int32)
    ends = jnp.zeros((config.window,) if config.estimator == "window_max" else ())
    return {"low": ends, "high": ends, "count": count}


def measure(
    x: Float[Array, "..."], config: Quantization, bits: int
) -> tuple[Array, Array]:
    """Return the ends of a batch's range, as the estimator sees it.

    Args:
      x: a tensor, of any shape.
      config: its `activation`, `estimator`, `percentile` and `symmetric` count.
      bits: for which "mse" minimises the rounding error.

    Returns:
      The two ends, float32 scalars.

    Example:
      >>> low, high = measure(jnp.array([-1.0, 0.5, 3.0]), Quantization(), 8)
      >>> float(low), float(high)
      (-1.0, 3.0)
    """
    x = jax.lax.stop_gradient(x).astype(jnp.float32).ravel()
    low, high = jnp.min(x), jnp.max(x)
    if config.activation == "dynamic" or config.estimator in ("ema", "window_max"):
        return low, high
    sample = _sample(x)
    if config.estimator == "percentile":
        return _percentile(sample, config)
    return _least_error(sample, low, high, config, bits)


def _sample(x: Array) -> Array:
    """All entries, or many of them from everywhere."""
    if x.size <= SAMPLE:
        return x
    # Steps of a prime, round and round: even steps would meet a few channels only.
    return x[(jnp.arange(SAMPLE, dtype=jnp.uint32) * PRIME) % x.size]


def _percentile(x, config):
    if config.symmetric:
        reach = jnp.percentile(jnp.abs(x), config.percentile)
        return -reach, reach
    inner = jnp.array([100 - config.percentile, config.percentile])
    low, high = jnp.percentile(x, inner)
    return low, high


def _least_error(x, low, high, config, bits):
    """Return the range, shrunk towards 0, whose grid is nearest to the numbers."""
    ratios = jnp.linspace(1.0, 0.1, RATIOS)

    def error(ratio):
        near = fake_quant(x, grid(ratio * low, ratio * high, config, bits))
        return jnp.mean(jnp.square(near - x))

    best = ratios[jnp.argmin(jax.lax.map(error, ratios))]  # of equals the widest
    return best * low, best * high


def move(memory: Range, ends: tuple[Array, Array], config: Quantization) -> Range:
    """Return the memory after one more batch, of these ends.

    A moving average with decay d starts as a plain mean: after n batches the newest
    counts max(1 - d, 1 / n), so that no made-up start has to be forgotten.

    Example:
      >>> memory = empty(config := Quantization(decay=0.5))
      >>> for high in (4.0, 2.0, 1.0):
      ...     memory = move(memory, (jnp.array(0.0), jnp.array(high)), config)
      >>> float(memory["high"])  # ((4 + 2) / 2 + 1) / 2
      2.0
    """
    count = memory["count"]
    if config.estimator == "window_max":
        place = count % config.window
        low, high = (
            memory[name].at[place].set(end)
            for name, end in zip(("low", "high"), ends, strict=True)
        )
    else:
        share = jnp.maximum(1 - config.decay, 1 / (count + 1.0))
        low, high = (
            memory[name] + share * (end - memory[name])
            for name, end in zip(("low", "high"), ends, strict=True)
        )
    return {"low": low, "high": high, "count": count + 1}


def read(memory: Range, config: Quantization) -> tuple[Array, Array]:
    """Return the ends that are remembered; of nothing seen, 0 and 0."""
    low, high = memory["low"], memory["high"]
    if config.estimator == "window_max":
        seen = jnp.arange(config.window) < memory["count"]
        low = jnp.min(jnp.where(seen, low, jnp.inf))
        high = jnp.max(jnp.where(seen, high, -jnp.inf))
        none = memory["count"] == 0
        return jnp.where(none, 0.0, low), jnp.where(none, 0.0, high)
    return low, high


def grid(low: Array, high: Array, config: Quantization, bits: int) -> Grid:
    """Return the grid of activations between these ends."""
    if config.symmetric:
        reach = jnp.maximum(jnp.abs(low), jnp.abs(high))
        return symmetric_grid(reach, bits, narrow=False)
    return affine_grid(low, high, bits)
