"""Pooling equals linen's in value, and its gradient sums to linen's in each window."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxkd.models import max_pool


def images(*shape):
    """Distinct values, at least 0.01 apart."""
    order = jax.random.permutation(jax.random.key(0), np.prod(shape))
    return order.reshape(shape) / 100


@pytest.mark.parametrize("window", [(2, 2), (3, 2), (1, 1)])
@pytest.mark.parametrize("size", [(6, 8), (7, 5)])
def test_equals_linen_where_no_values_tie(window, size):
    x = images(2, *size, 3)
    value, pull = jax.vjp(lambda x: max_pool(x, window), x)
    wanted, pull_wanted = jax.vjp(lambda x: nn.max_pool(x, window, window), x)
    g = jax.random.normal(jax.random.key(1), value.shape)
    np.testing.assert_array_equal(value, wanted)
    np.testing.assert_array_equal(pull(g)[0], pull_wanted(g)[0])


def test_overlapping_windows_are_linens():
    x = images(1, 7, 7, 2)
    np.testing.assert_array_equal(
        max_pool(x, (3, 3), (2, 2)), nn.max_pool(x, (3, 3), (2, 2))
    )


@pytest.mark.parametrize("sharers", [1, 2, 3, 4])
def test_ties_share_the_gradient_evenly(sharers):
    x = jnp.zeros(4).at[:sharers].set(5.0).reshape(1, 2, 2, 1)
    grad = jax.grad(lambda x: max_pool(x, (2, 2)).sum())(x).ravel()
    np.testing.assert_allclose(grad[:sharers], 1 / sharers, rtol=1e-6)
    assert not grad[sharers:].any()


def test_derivatives_of_both_modes(x64):
    check_grads(lambda x: max_pool(x, (2, 2)), (images(1, 4, 4, 2) * 1.0,), order=1)


def test_nan_and_minus_infinity():
    x = jnp.full((1, 2, 2, 2), -jnp.inf).at[0, 0, 1, 1].set(jnp.nan)
    value = max_pool(x, (2, 2)).ravel()
    assert value[0] == -jnp.inf and jnp.isnan(value[1])


def test_half_precision_stays():
    x = images(1, 4, 4, 1).astype(jnp.bfloat16)
    assert jax.grad(lambda x: max_pool(x, (2, 2)).sum())(x).dtype == jnp.bfloat16


@pytest.mark.bad_input
def test_bad_shapes():
    with pytest.raises(ValueError, match="x must have 4 axes"):
        max_pool(jnp.ones((4, 4, 1)), (2, 2))
    with pytest.raises(ValueError, match=r"window \(5, 2\) does not fit"):
        max_pool(jnp.ones((1, 4, 4, 1)), (5, 2))
