"""Divergences of two softmaxes, with their differentials written down.

The compiler, left to differentiate the definitions, keeps three or four arrays of the
logits' size between the forward and the backward pass. The differential of a divergence
D(p, q) with respect to the logits is known, one array for each argument, and it does
not cancel where p is close to q. So each divergence here gives its value and these
coefficients, and `_with_differential` makes a function of the logits of it, that can be
differentiated forwards, backwards, and again.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike
from jaxtyping import Array

from jaxkd.losses._math import log_softmax, scaled

CHUNK = 2**24  # logits, 64 MiB of float32


def _with_differential(divergence: Callable[..., tuple[Any, ...]]) -> Callable:
    """From log-probabilities to logits.

    Args:
      divergence: `(log_p, log_q, *weights) -> (D, D_u, D_v, *D_weights)` with
        p = softmax(u), q = softmax(v): the value and its partial derivatives.

    Returns:
      `(p_logits, q_logits, temperature, class_mask, *weights) -> D`, where
      u = p_logits / temperature and v = q_logits / temperature.
    """

    def pieces(p_logits, q_logits, temperature, class_mask, *weights):
        log_p = log_softmax(p_logits, class_mask, temperature=temperature)
        log_q = log_softmax(q_logits, class_mask, temperature=temperature)
        return divergence(log_p, log_q, *weights)

    def rule(primals, tangents):
        p_logits, q_logits, temperature, class_mask, *_ = primals
        d_p, d_q, d_temperature, _, *d_weights = tangents
        given = [not isinstance(d, SymbolicZero) for d in (d_p, d_q, *d_weights)]
        if not isinstance(d_temperature, SymbolicZero):
            given[:2] = True, True
        value, *computed = _in_chunks(pieces, (True, *given), *primals)
        partials = iter(computed)
        d_p_logits, d_q_logits, *by_weight = (
            next(partials) if is_given else None for is_given in given
        )
        tangent = jnp.zeros_like(value)
        for logits, partial, d_logits in (
            (p_logits, d_p_logits, d_p),
            (q_logits, d_q_logits, d_q),
        ):
            if partial is not None and not isinstance(d_logits, SymbolicZero):
                tangent += jnp.sum(partial / temperature * d_logits, axis=-1)
            if partial is not None and not isinstance(d_temperature, SymbolicZero):
                u, _ = scaled(logits, class_mask, temperature)
                tangent -= jnp.sum(partial * u, axis=-1) / temperature * d_temperature
        for partial, d_weight in zip(by_weight, d_weights, strict=True):
            if partial is not None:
                tangent += partial * d_weight
        return value, tangent

    function = jax.custom_jvp(lambda *args: _in_chunks(pieces, (True,), *args)[0])
    function.defjvp(rule, symbolic_zeros=True)
    return function


def _chunks(rows: int, classes: int) -> int:
    """How many equal chunks keep each at `CHUNK` logits, or 1 if there are none."""
    least = -(-rows * classes // CHUNK)
    fitting = (n for n in range(least, min(rows, 8 * least) + 1) if rows % n == 0)
    return next(fitting, 1)


def _in_chunks(pieces, wanted, p_logits, q_logits, temperature, class_mask, *weights):
    """The wanted ones of `pieces`, for some examples at a time if there are many.

    What is held on the way is then a chunk's size, whatever the compiler fuses. A chunk
    takes its examples from all over the batch, so that a sharded batch stays sharded.
    """
    batch, classes = p_logits.shape[:-1], p_logits.shape[-1]
    rows = math.prod(batch)
    n = _chunks(rows, classes)

    def chosen(p_logits, q_logits, class_mask):
        out = pieces(p_logits, q_logits, temperature, class_mask, *weights)
        return [piece for piece, want in zip(out, wanted, strict=False) if want]

    if n == 1:
        return chosen(p_logits, q_logits, class_mask)
    arrays = [p_logits, q_logits]
    if class_mask is not None and class_mask.ndim > 1:
        arrays.append(jnp.broadcast_to(class_mask, p_logits.shape))
    arrays = [x.reshape(rows // n, n, classes) for x in arrays]

    def chunk(i):
        p, q, *mask = (
            jax.lax.dynamic_index_in_dim(x, i, axis=1, keepdims=False) for x in arrays
        )
        return chosen(p, q, mask[0] if mask else class_mask)

    def step(i, done):
        update = jax.lax.dynamic_update_index_in_dim
        return [update(x, y, i, 1) for x, y in zip(done, chunk(i), strict=True)]

    empty = [
        jnp.zeros((rows // n, n, *x.shape[1:]), x.dtype)
        for x in jax.eval_shape(chunk, 0)
    ]
    done = jax.lax.fori_loop(0, n, step, empty)
    return [x.reshape(*batch, *x.shape[2:]) for x in done]


def _kl(log_p, log_q):
    p, ratio = jnp.exp(log_p), log_p - log_q
    kl = jnp.sum(p * ratio, axis=-1)
    return kl, p * (ratio - kl[..., None]), jnp.exp(log_q) - p


def _cross_entropy(log_p, log_q):
    p = jnp.exp(log_p)
    q = jnp.exp(log_q)
    # The derivative of 0 * -1e38 overflows before it meets the 0.
    log_q = jnp.where(p > 0, log_q, 0)
    entropy = -jnp.sum(p * log_q, axis=-1)
    return entropy, p * (-log_q - entropy[..., None]), q - p


def _jensen_shannon(log_p, log_q, beta):
    p, q = jnp.exp(log_p), jnp.exp(log_q)
    # log(p / m) from the ratio of p and q alone: one exponential and one logarithm
    # where logaddexp has more. Beyond the bound the smaller of the two is 0.
    bound = 0.9 * math.log(jnp.finfo(log_p.dtype).max)
    ratio = jnp.clip(log_p - log_q, -bound, bound)
    p_to_m = -jnp.log(beta + (1 - beta) * jnp.exp(-ratio))
    q_to_m = p_to_m - ratio
    kl_p, kl_q = jnp.sum(p * p_to_m, axis=-1), jnp.sum(q * q_to_m, axis=-1)
    return (
        beta * kl_p + (1 - beta) * kl_q,
        beta * p * (p_to_m - kl_p[..., None]),
        (1 - beta) * q * (q_to_m - kl_q[..., None]),
        kl_p - kl_q,
    )


_kl_of_logits = _with_differential(_kl)
_cross_entropy_of_logits = _with_differential(_cross_entropy)
_jensen_shannon_of_logits = _with_differential(_jensen_shannon)


def kl(
    p_logits: Array,
    q_logits: Array,
    temperature: ArrayLike = 1.0,
    class_mask: Array | None = None,
) -> Array:
    """KL(p, q) = sum_k p_k (log p_k - log q_k) at a temperature, without its square."""
    return _kl_of_logits(p_logits, q_logits, temperature, class_mask)


def cross_entropy(
    p_logits: Array,
    q_logits: Array,
    temperature: ArrayLike = 1.0,
    class_mask: Array | None = None,
) -> Array:
    """H(p, q) = -sum_k p_k log q_k, at a temperature, without its square."""
    return _cross_entropy_of_logits(p_logits, q_logits, temperature, class_mask)


def jensen_shannon(
    p_logits: Array,
    q_logits: Array,
    beta: ArrayLike,
    temperature: ArrayLike = 1.0,
    class_mask: Array | None = None,
) -> Array:
    """With m = beta p + (1 - beta) q: beta KL(p, m) + (1 - beta) KL(q, m)."""
    return _jensen_shannon_of_logits(p_logits, q_logits, temperature, class_mask, beta)
