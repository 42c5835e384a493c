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
        value, *partials = pieces(*primals)
        tangent = jnp.zeros_like(value)
        for logits, partial, d_logits in zip(
            (p_logits, q_logits), partials, (d_p, d_q), strict=False
        ):
            if not isinstance(d_logits, SymbolicZero):
                tangent += jnp.sum(partial / temperature * d_logits, axis=-1)
            if not isinstance(d_temperature, SymbolicZero):
                u, _ = scaled(logits, class_mask, temperature)
                tangent -= jnp.sum(partial * u, axis=-1) / temperature * d_temperature
        for partial, d_weight in zip(partials[2:], d_weights, strict=True):
            if not isinstance(d_weight, SymbolicZero):
                tangent += partial * d_weight
        return value, tangent

    function = jax.custom_jvp(lambda *args: pieces(*args)[0])
    function.defjvp(rule, symbolic_zeros=True)
    return function


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
