"""Divergences of two softmaxes, with their differentials written down.

The compiler, left to differentiate the definitions, keeps three or four arrays of the
logits' size between the forward and the backward pass. The differential of a divergence
D(p, q) with respect to the logits is known, one array for each argument, and it does
not cancel where p is close to q. So each divergence here gives its value and these
coefficients, and `_with_differential` makes a function of the logits of it, that can be
differentiated forwards, backwards, and again.

Where either network has no class left (all masked, or logits of -inf) a divergence and
its gradients are 0.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike
from jaxtyping import Array

from jaxkd.losses._chunks import in_chunks
from jaxkd.losses._math import lowest, normalize, only, scaled, without


def _with_differential(divergence: Callable[..., tuple[Any, ...]]) -> Callable:
    """From log-probabilities to logits.

    Args:
      divergence: `(log_p, log_q, *weights) -> (D, D_u, D_v, *D_weights)` with
        p = softmax(u), q = softmax(v): the value and its partial derivatives.

    Returns:
      `(p_logits, q_logits, temperature, class_mask, where, *weights) -> D`, where
      u = p_logits / temperature and v = q_logits / temperature. An excluded example has
      finite partial derivatives whatever it holds, so whoever sets its D to 0 sets its
      gradients to 0 too.
    """

    def rule(primals, tangents):
        p_logits, q_logits, temperature, class_mask, where, *_ = primals
        d_p, d_q, d_temperature, _, _, *d_weights = tangents
        varies = lambda d: not isinstance(d, SymbolicZero)
        wanted = [varies(d) for d in (d_p, d_q, *d_weights)]
        if varies(d_temperature):
            wanted[:2] = True, True
        value, by_p, by_q, *by_weights = _wanted(divergence, [True, *wanted], *primals)
        tangent = jnp.zeros_like(value)
        used = without(where, p_logits, q_logits)
        for logits, partial, d in zip(used, (by_p, by_q), (d_p, d_q), strict=True):
            if varies(d):
                tangent += jnp.sum(partial / temperature * d, axis=-1)
            if varies(d_temperature):
                u, _ = scaled(logits, class_mask, temperature)
                tangent -= jnp.sum(partial * u, axis=-1) / temperature * d_temperature
        for partial, d in zip(by_weights, d_weights, strict=True):
            if varies(d):
                tangent += partial * d
        return value, tangent

    def value(*args):
        return _wanted(divergence, [True], *args)[0]

    function = jax.custom_jvp(value)
    function.defjvp(rule, symbolic_zeros=True)
    return function


def _wanted(
    divergence, wanted, p_logits, q_logits, temperature, class_mask, where, *weights
):
    """Return the wanted ones of what the divergence gives, and None for the others."""

    def pieces(p_logits, q_logits, own_mask, where):
        mask = class_mask if own_mask is None else own_mask
        p_logits, q_logits = without(where, p_logits, q_logits)
        log_p, p_exists = normalize(p_logits, mask, temperature=temperature)
        log_q, q_exists = normalize(q_logits, mask, temperature=temperature)
        out = divergence(log_p, log_q, *weights)
        # A network without a class left has nothing to be compared.
        compared = p_exists & q_exists
        return [
            without(compared, y)[0] if want else None
            for y, want in zip(out, wanted, strict=False)
        ]

    own_mask = None
    if class_mask is not None and class_mask.ndim > 1:
        own_mask = jnp.broadcast_to(class_mask, p_logits.shape)
    return in_chunks(pieces, p_logits, q_logits, own_mask, where)


def _kl(log_p, log_q):
    p, ratio = jnp.exp(log_p), log_p - log_q
    kl = jnp.sum(p * ratio, axis=-1)
    return kl, p * (ratio - kl[..., None]), _difference(log_q, p)


def _difference(log_q, p):
    """Q - p, the derivative of KL(p, q) by q's logits; 0 for a logit of -inf."""
    return jnp.where(log_q <= lowest(log_q.dtype) / 2, 0, jnp.exp(log_q) - p)


def _cross_entropy(log_p, log_q):
    p = jnp.exp(log_p)
    entropy = -jnp.sum(p * log_q, axis=-1)
    return entropy, p * (-log_q - entropy[..., None]), _difference(log_q, p)


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


def _skew(log_p, log_q, skew):
    p, q = jnp.exp(log_p), jnp.exp(log_q)
    # p / m from the ratio alone. Beyond the bound the smaller of the two is 0.
    bound = 0.9 * math.log(jnp.finfo(log_p.dtype).max)
    other = jnp.exp(-jnp.clip(log_p - log_q, -bound, bound))  # q / p
    p_over_m = 1 / (skew + (1 - skew) * other)
    log_ratio = jnp.log(p_over_m)
    kl = jnp.sum(p * log_ratio, axis=-1)
    # The derivatives by p and by q, as if nothing had to sum to 1.
    by_p, by_q = log_ratio - skew * p_over_m, -(1 - skew) * p_over_m
    along = lambda r, by: r * (by - jnp.sum(r * by, axis=-1, keepdims=True))
    by_skew = jnp.sum(p * p_over_m * (other - 1), axis=-1)
    return kl, along(p, by_p), along(q, by_q), by_skew


_kl_of_logits = _with_differential(_kl)
_cross_entropy_of_logits = _with_differential(_cross_entropy)
_jensen_shannon_of_logits = _with_differential(_jensen_shannon)
_skew_of_logits = _with_differential(_skew)


def kl(
    p_logits: Array,
    q_logits: Array,
    temperature: ArrayLike = 1.0,
    class_mask: Array | None = None,
    where: Array | None = None,
) -> Array:
    """KL(p, q) = sum_k p_k (log p_k - log q_k) at a temperature, without its square."""
    return only(
        where, _kl_of_logits(p_logits, q_logits, temperature, class_mask, where)
    )


def cross_entropy(
    p_logits: Array,
    q_logits: Array,
    temperature: ArrayLike = 1.0,
    class_mask: Array | None = None,
    where: Array | None = None,
) -> Array:
    """H(p, q) = -sum_k p_k log q_k, at a temperature, without its square."""
    entropy = _cross_entropy_of_logits(
        p_logits, q_logits, temperature, class_mask, where
    )
    return only(where, entropy)


def jensen_shannon(
    p_logits: Array,
    q_logits: Array,
    beta: ArrayLike,
    temperature: ArrayLike = 1.0,
    class_mask: Array | None = None,
    where: Array | None = None,
) -> Array:
    """With m = beta p + (1 - beta) q: beta KL(p, m) + (1 - beta) KL(q, m)."""
    divergence = _jensen_shannon_of_logits(
        p_logits, q_logits, temperature, class_mask, where, beta
    )
    return only(where, divergence)


def skew_kl(
    p_logits: Array,
    q_logits: Array,
    skew: ArrayLike,
    temperature: ArrayLike = 1.0,
    class_mask: Array | None = None,
    where: Array | None = None,
) -> Array:
    """KL(p, skew p + (1 - skew) q) at a temperature, without its square."""
    divergence = _skew_of_logits(
        p_logits, q_logits, temperature, class_mask, where, skew
    )
    return only(where, divergence)
