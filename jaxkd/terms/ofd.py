"""A comprehensive overhaul of feature distillation (Heo et al., 2019)."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxkd import _check, _tree, distill, losses
from jaxkd.distill import Term
from jaxkd.terms import _pairs
from jaxkd.terms._given import given
from jaxkd.terms.adapters import Adapter
from jaxkd.types import Batch, Outputs, Params, State

FRACTIONS = 40  # of the continued fraction; at z = 2 its error is below 1e-12


def negative_mean(
    shift: Float[Array, " channels"], scale: Float[Array, " channels"]
) -> Float[Array, " channels"]:
    """Return the mean of N(shift, scale**2) below zero, E[x | x < 0].

    With z = shift / abs(scale) and phi, Phi the density and distribution of N(0, 1)::

        E[x | x < 0] = shift - abs(scale) phi(z) / Phi(-z)

    Where z is large both factors vanish and the difference cancels; there phi(z) /
    Phi(-z) is Laplace's continued fraction z + 1/(z + 2/(z + 3/(z + ...))), whose first
    summand cancels with the shift exactly.

    Args:
      shift: the mean, such as a BatchNorm's bias.
      scale: the standard deviation up to its sign, such as a BatchNorm's scale.

    Returns:
      The conditional mean, < 0; `min(shift, 0)` where the scale is 0.

    Example:
      The half-normal distribution: -sqrt(2 / pi).

      >>> print(negative_mean(jnp.zeros(1), jnp.ones(1)).round(4))
      [-0.7979]
    """
    _check.same_shape(shift=shift, scale=scale)
    spread = jnp.abs(scale)
    alive = spread > 0
    safe = jnp.where(alive, spread, 1)
    z = shift / safe
    far = z > 2
    x = jnp.where(far, z, 2)
    fraction = functools.reduce(
        lambda below, k: x + k / below, range(FRACTIONS, 1, -1), x
    )
    near = jnp.where(far, 2, z)
    log_ratio = jax.scipy.stats.norm.logpdf(near) - jax.scipy.stats.norm.logcdf(-near)
    mean = jnp.where(far, -safe / fraction, shift - safe * jnp.exp(log_ratio))
    return jnp.where(alive, mean, jnp.minimum(shift, 0))


def margins(params: Any, batch_norms: Mapping[str, str]) -> dict[str, Array]:
    """Return the margins of `ofd` from the teacher's BatchNorm layers.

    Args:
      params: the teacher's parameters, arrays or only their shapes.
      batch_norms: from the teacher's tap to the path of the BatchNorm whose output it
        is, e.g. `{"stage1_pre": "stage1/norm"}`.

    Returns:
      For each tap `[channels]`: the mean of the normal distribution that scale and
      shift describe, below zero.

    Raises:
      KeyError: if there is nothing at a path; lists the nearest.
      ValueError: if what is there has no "scale" and "bias".
    """

    def of(path: str) -> Array:
        found = _tree.get(params, path)
        if not isinstance(found, Mapping) or not {"scale", "bias"} <= set(found):
            kind = sorted(found) if isinstance(found, Mapping) else type(found).__name__
            raise ValueError(f"{path!r} must have scale and bias, got {kind}")
        layer = found["bias"], found["scale"]
        if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in layer):
            return jax.eval_shape(negative_mean, *layer)
        return negative_mean(*layer)

    return {tap: of(path) for tap, path in batch_norms.items()}


def measured_margins(teacher: Outputs, taps: _pairs.Pairs) -> dict[str, Array]:
    """The margins of `ofd` for a teacher without BatchNorm: means of what is negative.

    Args:
      teacher: its outputs on a few hundred examples.
      taps: the teacher's taps before the activation.

    Returns:
      For each tap `[channels]`; 0 for a channel that was never negative.
    """

    def mean(features: Array) -> Array:
        units = features.reshape(-1, features.shape[-1])
        below = units < 0
        return jnp.where(below, units, 0).sum(0) / jnp.maximum(below.sum(0), 1)

    return {name: mean(teacher.tap(name)) for name in _pairs.of(taps).values()}


def ofd(pairs: _pairs.Pairs, *, margins: Mapping[str, Array]) -> Term:
    """Distance to the teacher's features behind a margin ReLU, `losses.ofd`.

    With r_i(s) the student's features of pair i of n after a connector (1x1 convolution
    and BatchNorm), t the teacher's, both before the ReLU, and m_c the margin of a
    channel::

        loss = sum_i 2**(i - n) sum_u (r_i(s)_u - max(t_u, m_c))**2,
               but 0 where r_i(s)_u <= max(t_u, m_c) <= 0

    The last pair counts fully, the one before it half. The authors' weight for this sum
    over units is 1e-3, beside a cross-entropy of weight 1. Their code replaces the
    margin of a channel that is negative in under one case of 1,000 by -3 scales; here
    it is the conditional mean for every channel.

    Args:
      pairs: taps before the ReLU, from the first to the last layer.
      margins: for each of the teacher's taps `[channels]`, from `margins` or
        `measured_margins`; they are kept in the state and never moved.

    Returns:
      The term. Its parameters are the connectors'; its state the margins and the
      connectors' batch statistics.

    Raises:
      ValueError: if a pair has no margin; at `init`, if its length is not that of the
        channels.

    References:
      Heo, Kim, Yun, Park, Kwak, Choi. `A Comprehensive Overhaul of Feature Distillation
      <https://arxiv.org/abs/1904.01866>`_, ICCV 2019.
    """
    names = _pairs.of(pairs)
    if missing := sorted(set(names.values()) - set(margins)):
        raise ValueError(f"margins must have every tap of the teacher, not {missing}")
    shares = {name: 0.5**i for i, name in enumerate(reversed(names))}

    def one(student: str, teacher: str) -> Term:
        def connected(loss: Any) -> Term:
            connector = functools.partial(Adapter, norm=True)
            return distill.on_taps(loss, student, teacher, adapter=connector)

        def init(key: Array, s: Outputs, t: Outputs, batch: Batch):
            # The connector's variables do not depend on the loss behind it.
            params, state = connected(losses.hint).init(key, s, t, batch)
            return params, {"connector": state, "margin": given(margins[teacher])}

        def apply(params: Params, state: State, s: Outputs, t: Outputs, batch: Batch):
            loss = lambda s, t: losses.ofd(s, t, state["margin"])
            value, moved = connected(loss).apply(
                params, state["connector"], s, t, batch
            )
            return shares[student] * value, {**state, "connector": moved}

        return distill.fitting(Term(init, apply))

    return _pairs.total(names, one)
