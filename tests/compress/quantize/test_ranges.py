import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.compress import quantize as Q
from jaxkd.compress.quantize import ranges

ENDS = [(-1.0, 4.0), (0.0, 2.0), (-3.0, 1.0), (-0.5, 8.0)]


def after(config, ends=ENDS):
    memory = ranges.empty(config)
    for low, high in ends:
        memory = ranges.move(memory, (jnp.asarray(low), jnp.asarray(high)), config)
    return memory


def test_moving_average_starts_as_a_mean():
    # decay 0.5: shares 1, 1/2, 1/2, 1/2 of the newest.
    config = Q.Quantization(decay=0.5)
    low, high = ranges.read(after(config), config)
    assert float(low) == ((-1 + 0) / 2 - 3) / 2 / 2 - 0.25
    assert float(high) == (((4 + 2) / 2 + 1) / 2 + 8) / 2
    # decay 0.9: all of the first ten count the same.
    config = Q.Quantization(decay=0.9)
    low, high = ranges.read(after(config), config)
    np.testing.assert_allclose([low, high], np.mean(ENDS, 0), rtol=1e-6)


def test_long_moving_average_forgets_geometrically():
    config = Q.Quantization(decay=0.5)
    memory = after(config, [(0.0, 100.0)] * 3 + [(0.0, 0.0)] * 4)
    assert float(memory["high"]) == 100 / 2**4


def test_window_forgets_what_is_older():
    config = Q.Quantization(estimator="window_max", window=2)
    assert [float(v) for v in ranges.read(after(config, ENDS[:1]), config)] == [-1, 4]
    assert [float(v) for v in ranges.read(after(config, ENDS[:2]), config)] == [-1, 4]
    assert [float(v) for v in ranges.read(after(config, ENDS[:3]), config)] == [-3, 2]
    assert [float(v) for v in ranges.read(after(config), config)] == [-3, 8]
    assert [float(v) for v in ranges.read(ranges.empty(config), config)] == [0, 0]


@pytest.mark.parametrize("symmetric", [False, True])
def test_percentile_leaves_outliers_out(symmetric):
    x = np.random.default_rng(0).normal(size=10_000).astype(np.float32)
    x[0] = 1e4
    config = Q.Quantization(
        estimator="percentile", percentile=99.0, symmetric=symmetric
    )
    low, high = ranges.measure(jnp.asarray(x), config, 8)
    if symmetric:
        wanted = np.percentile(np.abs(x), 99) * np.array([-1, 1])
    else:
        wanted = np.percentile(x, [1, 99])
    np.testing.assert_allclose([low, high], wanted, rtol=1e-4)


@pytest.mark.parametrize("bits", [4, 8])
def test_mse_is_no_worse_than_any_shrunk_range(bits):
    x = np.random.default_rng(1).laplace(size=4_000).astype(np.float32)
    config = Q.Quantization(estimator="mse")

    def error(low, high):
        grid = Q.affine_grid(low, high, bits)
        return float(jnp.mean((Q.fake_quant(jnp.asarray(x), grid) - x) ** 2))

    low, high = ranges.measure(jnp.asarray(x), config, bits)
    best = error(low, high)
    others = [error(r * x.min(), r * x.max()) for r in np.linspace(0.1, 1, 46)]
    assert best == pytest.approx(min(others), rel=1e-3)
    if bits == 4:
        assert best < 0.7 * error(x.min(), x.max())  # clipping pays with few levels


@pytest.mark.parametrize("channels", [16, 24, 64])
def test_a_sample_sees_every_channel(channels):
    x = np.full((2**20 // channels, channels), 0.01, np.float32)
    for loud in (0, 3, channels - 1):
        one = jnp.asarray(x).at[:, loud].set(loud + 1.0)
        for estimator in ("percentile", "mse"):
            config = Q.Quantization(estimator=estimator)
            _, high = ranges.measure(one, config, 8)
            assert float(high) == pytest.approx(loud + 1, rel=0.03)


def test_no_gradient_and_a_constant_tensor():
    config = Q.Quantization()
    measured = lambda x: sum(ranges.measure(x, config, 8))
    assert not np.any(jax.grad(measured)(jnp.arange(3.0)))
    for estimator in ("ema", "window_max", "percentile", "mse"):
        config = Q.Quantization(estimator=estimator)
        ends = ranges.measure(jnp.zeros(5), config, 8)
        memory = ranges.move(ranges.empty(config), ends, config)
        grid = ranges.grid(*ranges.read(memory, config), config, 8)
        np.testing.assert_array_equal(Q.fake_quant(jnp.zeros(5), grid), np.zeros(5))


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "knobs, message",
    [
        ({"weights": 9}, "weights must be 2 to 8 bits, got 9"),
        ({"activations": 1}, "activations must be >= 2"),
        ({"activation": "sometimes"}, "activation must be one of"),
        ({"estimator": "kl"}, "estimator must be one of"),
        ({"decay": 1.0}, "decay must be in the open interval"),
        ({"window": 0}, "window must be >= 1"),
        ({"percentile": 40.0}, r"percentile must be in \(50, 100\]"),
        ({"per_channel": "yes"}, "per_channel must be one of"),
        ({"lsq": True, "activation": "dynamic"}, "lsq learns a step size"),
        (
            {"layers": {"head": Q.Bits(12, 8)}},
            r"layers\['head'\].weights must be 2 to 8",
        ),
    ],
)
def test_refused_configurations(knobs, message):
    with pytest.raises(ValueError, match=message):
        Q.Quantization(**knobs)
