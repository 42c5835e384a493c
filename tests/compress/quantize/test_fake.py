import hypothesis.extra.numpy as arrays
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from jaxkd.compress import quantize as Q
from jaxkd.compress.quantize.fake import LEAST_SCALE, Grid, integers, levels, lsq_start

floats = st.floats(-100, 100, width=32)
tensors = arrays.arrays(np.float32, (12,), elements=floats)
bits_of = st.integers(2, 8)
fake = jax.jit(Q.fake_quant)


@settings(max_examples=60, deadline=None)
@given(tensors, bits_of)
def test_nearest_number_of_the_affine_grid(x, bits):
    grid = Q.affine_grid(x.min(), x.max(), bits)
    y = np.asarray(fake(x, grid))
    scale = float(grid.scale)
    # Every level, written out; what is nearest is at most half a step away.
    every = scale * (np.arange(grid.low, grid.high + 1) - float(grid.zero))
    assert len(every) == 2**bits
    nearest = np.abs(x[:, None] - every[None]).min(1)
    np.testing.assert_allclose(np.abs(y - x), nearest, atol=scale * 1e-4)
    # The zero point is rounded: an end may be half a step outside.
    assert np.abs(y - x).max() <= scale * 1.001
    assert 0.0 in every
    np.testing.assert_array_equal(fake(y, grid), y)  # on the grid already


@settings(max_examples=60, deadline=None)
@given(tensors, bits_of)
def test_symmetric_grid_commutes_with_the_sign(x, bits):
    grid = Q.symmetric_grid(np.abs(x).max(), bits, narrow=True)
    y = np.asarray(fake(x, grid))
    np.testing.assert_array_equal(fake(-x, grid), -y)
    assert np.abs(y - x).max() <= 0.5001 * float(grid.scale)
    q = np.asarray(integers(x, grid))
    assert q.min() >= -(2 ** (bits - 1)) + 1
    assert q.max() <= 2 ** (bits - 1) - 1


def test_closed_forms():
    # scale 5.1 / 255 = 0.02, zero = -128 - (-2.54 / 0.02) = -1
    grid = Q.affine_grid(-2.54, 2.56, 8)
    assert float(grid.scale) == pytest.approx(0.02)
    assert float(grid.zero) == -1
    # Nowhere negative: 0 is the least level. Nowhere positive: the largest.
    assert float(Q.affine_grid(1.0, 2.0, 8).zero) == -128
    assert float(Q.affine_grid(-2.0, -1.0, 8).zero) == 127
    assert levels(2, narrow=True) == (-1, 1)


def test_a_kernel_has_a_scale_for_each_output():
    kernel = jnp.array([[1.0, 20.0, 0.0], [-2.0, 5.0, 0.0]])
    assert float(Q.weight_grid(kernel, 8).scale) == pytest.approx(20 / 127)
    per = Q.weight_grid(kernel, 8, axis=1)
    # A channel of zeros stays: its scale is 1, and no division fails.
    np.testing.assert_allclose(per.scale, [[2 / 127, 20 / 127, 1.0]], rtol=1e-6)
    np.testing.assert_array_equal(Q.fake_quant(kernel, per)[:, 2], [0, 0])
    other = Q.weight_grid(kernel, 8, axis=0)
    assert other.scale.shape == (2, 1)


@pytest.mark.parametrize("value", [0.0, 1e-38, -1e-38])
def test_tensors_without_a_range_stay_finite(value):
    x = jnp.full(3, value)
    for grid in (
        Q.affine_grid(x.min(), x.max(), 8),
        Q.symmetric_grid(jnp.abs(x).max(), 8, narrow=False),
    ):
        y, pull = jax.vjp(lambda x, grid=grid: Q.fake_quant(x, grid), x)
        np.testing.assert_allclose(y, x, atol=LEAST_SCALE)
        assert np.isfinite(pull(jnp.ones(3))[0]).all()


def test_gradient_is_straight_through_inside_and_zero_outside():
    grid = Q.affine_grid(-1.0, 2.0, 4)  # scale 0.2, zero -3: from -1 to 2
    x = jnp.array([-5.0, -1.1, -0.99, 0.0, 0.33, 1.99, 2.1, 9.0])
    g = jax.grad(lambda x: (jnp.arange(1.0, 9) * Q.fake_quant(x, grid)).sum())(x)
    np.testing.assert_array_equal(g, [0, 0, 3, 4, 5, 6, 0, 0])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_inputs_are_rounded_in_float32(dtype):
    x = jnp.linspace(-1, 1, 9).astype(dtype)
    grid = Q.symmetric_grid(1.0, 8, narrow=True)
    y = Q.fake_quant(x, grid)
    assert y.dtype == dtype
    wide = Q.fake_quant(x.astype(jnp.float32), grid)
    np.testing.assert_array_equal(y, wide.astype(dtype))


@settings(max_examples=40, deadline=None)
@given(tensors, st.floats(0.0625, 3, width=32), bits_of)
def test_learned_step_has_the_papers_gradients(x, step, bits):
    low, high = levels(bits, narrow=False)
    grid = Grid(jnp.ones(()), jnp.zeros(()), low, high)
    y, pull = jax.vjp(lambda x, s: Q.lsq(x, s, grid), x, jnp.asarray(step))
    gx, gs = pull(jnp.ones_like(y))
    v = x.astype(np.float64) / step
    # Esser et al., equations 1 to 3, case by case.
    by_step = np.where(v < low, low, np.where(v > high, high, np.round(v) - v))
    near = (np.abs(v - low) < 1e-4) | (np.abs(v - high) < 1e-4)
    near |= np.abs(v - np.floor(v) - 0.5) < 1e-3  # rounding may differ there
    if near.any():
        return
    np.testing.assert_allclose(y, np.clip(np.round(v), low, high) * step, rtol=1e-5)
    np.testing.assert_array_equal(gx, (v >= low) & (v <= high))
    wanted = by_step.sum() / np.sqrt(x.size * high)
    np.testing.assert_allclose(gs, wanted, rtol=1e-3, atol=2e-3 * high)


def test_learned_step_beyond_the_ends_is_the_numerical_derivative():
    # There the value is step * (low or high - zero), which has a derivative.
    grid = Grid(jnp.ones(()), jnp.asarray(-3.0), -8, 7)
    x = jnp.array([-100.0, 50.0, 80.0])
    value = lambda s: Q.lsq(x, s, grid).sum()
    slope = (value(0.51) - value(0.49)) / 0.02
    gradient = jax.grad(value)(0.5)
    np.testing.assert_allclose(gradient, slope / np.sqrt(3 * 7), rtol=1e-4)


def test_learned_steps_per_channel():
    kernel = jax.random.normal(jax.random.key(0), (3, 3, 2, 4))
    grid = Q.weight_grid(kernel, 4, axis=3)
    step = lsq_start(kernel, grid)
    assert step.shape == (1, 1, 1, 4)
    wanted = 2 * np.abs(kernel).mean((0, 1, 2)) / np.sqrt(7)
    np.testing.assert_allclose(step.ravel(), wanted, rtol=1e-6)
    whole = jax.grad(lambda s: (Q.lsq(kernel, s, grid) ** 2).sum())(step)
    for c in range(4):  # a channel's gradient is that of the channel alone
        one = Grid(grid.scale[..., c].reshape(()), jnp.zeros(()), -7, 7)
        alone = jax.grad(
            lambda s, c=c, one=one: (Q.lsq(kernel[..., c], s, one) ** 2).sum()
        )
        np.testing.assert_allclose(
            whole[..., c].reshape(()), alone(step[0, 0, 0, c]), rtol=1e-4
        )


def test_a_step_carried_below_zero_gives_no_nan():
    grid = Grid(jnp.ones(()), jnp.zeros(()), -8, 7)
    value, slope = jax.value_and_grad(lambda s: Q.lsq(jnp.ones(3), s, grid).sum())(-0.1)
    assert np.isfinite([value, slope]).all()
