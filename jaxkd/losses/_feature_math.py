"""What the feature and relational losses share: checks, safe norms, pooling."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from jaxkd import _check

# Full precision also on hardware that would round the factors of a product to 8 or 11
# bits: what follows are differences of products.
einsum = functools.partial(jnp.einsum, precision="highest")


def check(
    where: ArrayLike | None, least: int, most: int | None = None, **arrays: ArrayLike
) -> None:
    """Real arrays of `least` to `most` axes, about the same examples."""
    _check.real(**arrays)
    _check.rank(least, most, **arrays)
    _check.not_empty(**arrays)
    _same("batch sizes", 0, arrays)
    _check.mask("where", where, jnp.shape(next(iter(arrays.values())))[:1])


def check_pairs(
    where: ArrayLike | None, least: int, most: int | None = None, **arrays: ArrayLike
) -> None:
    """What `check` asks, of a loss of relations: one example has none to another."""
    check(where, least, most, **arrays)
    for name, array in arrays.items():
        if jnp.shape(array)[0] < 2:
            raise ValueError(
                f"{name} must hold 2 examples or more, because the loss compares "
                f"examples of a batch, got shape {jnp.shape(array)}; use a larger batch"
            )


def same_channels(**arrays: ArrayLike) -> None:
    """The last axes agree: an adapter is the caller's."""
    _same("numbers of channels", -1, arrays)


def _same(what: str, axis: int, arrays: dict[str, ArrayLike]) -> None:
    sizes = {name: jnp.shape(array)[axis] for name, array in arrays.items()}
    if len(set(sizes.values())) > 1:
        got = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise ValueError(f"{what} must be equal, got {got}")


def same_length(*shapes: tuple[int, ...]) -> None:
    """Refuse token sequences `[batch, tokens, dim]` of different lengths.

    A sequence is not a map: resized or averaged as a line of pixels, its class tokens
    and its rows of patches would mix.
    """
    sequences = [shape for shape in shapes if len(shape) == 3]
    if len({tokens for _, tokens, _ in sequences}) > 1:
        got = " and ".join(map(str, sequences))
        raise ValueError(
            "token sequences [batch, tokens, dim] must have equal lengths, because "
            f"they cannot be resized like maps, got {got}; compare taps with equal "
            "numbers of tokens, or drop the class tokens and reshape the patches to "
            "maps [batch, height, width, dim]"
        )


def widen(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Half precision becomes float32: means and differences need the digits."""
    return x.astype(jnp.float32) if x.dtype in (jnp.bfloat16, jnp.float16) else x


def flat_space(
    features: Float[Array, "batch *space channels"],
) -> Float[Array, "batch positions channels"]:
    """One axis for all positions."""
    return features.reshape(len(features), -1, features.shape[-1])


def average(
    features: Float[Array, "batch *space channels"],
) -> Float[Array, "batch channels"]:
    """The mean over the positions, if there are any; of half precision in float32."""
    features = widen(features)
    return features if features.ndim == 2 else jnp.mean(flat_space(features), axis=1)


def flat(features: Float[Array, "batch *rest"]) -> Float[Array, "batch size"]:
    """Everything an example has, in one vector."""
    return features.reshape(len(features), -1)


def mean_of_example(values: Float[Array, "batch *rest"]) -> Float[Array, " batch"]:
    """The mean over everything but the batch."""
    return jnp.mean(values, axis=tuple(range(1, values.ndim)))


def unit(x: Float[Array, "*shape"], axis: int = -1) -> Float[Array, "*shape"]:
    """Divides by the Euclidean norm along an axis; 0, without a gradient, at 0.

    Vectors shorter than about 1e-14 (float32) count as 0: further down the
    derivative leaves the range of the floating-point format.
    """
    square = jnp.sum(jnp.square(x), axis=axis, keepdims=True)
    alive = square > float(jnp.finfo(x.dtype).tiny) ** 0.75
    return x * jnp.where(alive, 1 / jnp.sqrt(jnp.where(alive, square, 1)), 0)


@jax.custom_jvp
def gram(x: Float[Array, "batch dims"]) -> Float[Array, "batch batch"]:
    """All inner products of rows.

    Its own derivative, because the compiler does not see that both sides of the product
    have the same one: backward, this is one product of matrices in place of two.
    """
    return einsum("id,jd->ij", x, x)


@gram.defjvp
def _gram_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    half = einsum("id,jd->ij", tangents[0], primals[0])
    return gram(primals[0]), half + half.T


def kept(
    where: Bool[Array, " batch"] | None, like: Float[Array, "batch *rest"]
) -> Float[Array, ""]:
    """How many examples there are, at least 1."""
    if where is None:
        return jnp.asarray(len(like), like.dtype)
    return jnp.maximum(jnp.sum(where, dtype=like.dtype), 1)


def smooth_l1(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Huber's function with threshold 1: x**2 / 2 up to 1, |x| - 1/2 beyond."""
    size = jnp.abs(x)
    return jnp.where(size < 1, 0.5 * jnp.square(x), size - 0.5)


def pool(
    features: Float[Array, "batch *space channels"], space: tuple[int, ...]
) -> Float[Array, "batch *smaller channels"]:
    """Adaptive average pooling: cell i of n covers floor(i s/n) to ceil((i+1) s/n).

    Means of half precision are in float32; a map that has this size stays as it is.
    """
    if features.shape[1:-1] != tuple(space):
        features = widen(features)
    for axis, cells in enumerate(space, start=1):
        features = _pool_axis(features, axis, cells)
    return features


def _pool_axis(x: Array, axis: int, cells: int) -> Array:
    size = x.shape[axis]
    if size == cells:
        return x
    if size % cells == 0:
        split = (*x.shape[:axis], cells, size // cells, *x.shape[axis + 1 :])
        return jnp.mean(x.reshape(split), axis=axis + 1)
    weights = np.zeros((size, cells), x.dtype)
    for i in range(cells):
        cell = slice(i * size // cells, math.ceil((i + 1) * size / cells))
        weights[cell, i] = 1 / (cell.stop - cell.start)
    pooled = jnp.tensordot(x, weights, axes=(axis, 0), precision="highest")
    return jnp.moveaxis(pooled, -1, axis)


def to_smaller(*maps: Float[Array, "batch ..."]) -> tuple[Array, ...]:
    """Pool maps `[batch, *space, channels]` to the least size along each axis.

    Raises:
      ValueError: if their numbers of axes differ, or they are token sequences of
        different lengths.
    """
    if len({m.ndim for m in maps}) > 1:
        shapes = " and ".join(str(m.shape) for m in maps)
        raise ValueError(f"maps must have equally many spatial axes, got {shapes}")
    same_length(*(m.shape for m in maps))
    space = tuple(
        min(sizes) for sizes in zip(*(m.shape[1:-1] for m in maps), strict=True)
    )
    return tuple(pool(m, space) for m in maps)
