"""Trained on real images, quantized after and in training."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.compress import quantize as Q
from jaxkd.compress.quantize.equalise import pairs
from jaxkd.models.net import from_linen
from jaxkd.types import Outputs
from tests.compress.quantize.nets import (
    SHAPE,
    Small,
    accuracy,
    batches,
    images,
    infer,
    made,
    predicted,
    small,
    trained,
)

MODES = [
    {"activation": "dynamic"},
    *({"estimator": name} for name in ("ema", "window_max", "percentile", "mse")),
]


@functools.cache
def floats():
    """The trained network, folded, and its accuracy on the test images."""
    variables = trained(small, None, epochs=8, rate=3e-3)
    before = accuracy(small, *variables)
    folded = Q.fold(small, *variables, SHAPE)
    return folded, before


def after_training(**knobs):
    folded, before = floats()
    config = Q.Quantization(**knobs)
    net, params, state = Q.quantized(*folded, config, SHAPE)
    return net, params, Q.calibrate(net, params, state, batches()), config, before


def test_the_float_network_has_learned():
    folded, before = floats()
    assert before > 0.93
    assert accuracy(*folded) == pytest.approx(before, abs=0.003)  # one image


@pytest.mark.parametrize(
    "knobs",
    [
        {"activation": "dynamic", "per_channel": False},
        {"estimator": "mse", "per_channel": False, "symmetric": True},
    ],
)
def test_eight_bits_after_training(knobs):
    net, params, state, _, before = after_training(**knobs)
    assert accuracy(net, params, state) >= before - 0.01


@pytest.mark.slow
def test_three_bits_are_bad_after_training_and_better_with_it():
    net, params, state, _, before = after_training(
        weights=3, activations=3, per_channel=False, estimator="ema"
    )
    after = accuracy(net, params, state)
    params, state = trained(net, (params, state), epochs=4, rate=1e-3)
    during = accuracy(net, params, state)
    assert after < before - 0.1
    assert during > after + 0.1


# Half of all combinations, in which every two of the three meet.
GRID = [
    (mode, per_channel, 8 if per_channel == bool(i % 2) else 4)
    for i, mode in enumerate(MODES)
    for per_channel in (False, True)
]


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "per_channel", "bits"), GRID)
def test_grid(mode, per_channel, bits):
    net, params, state, config, before = after_training(
        **mode, per_channel=per_channel, weights=bits, activations=bits
    )
    if bits == 8:
        assert accuracy(net, params, state) >= before - 0.01
    params, state = trained(net, (params, state), epochs=4, rate=1e-3)
    during = accuracy(net, params, state)
    assert during >= before - (0.01 if bits == 8 else 0.06)
    apply, variables = Q.integer(net, params, state, config)
    integer = lambda v, batch: Outputs(apply(v, batch["image"]), {})
    assert predicted(integer, variables) == pytest.approx(during, abs=0.006)


@pytest.mark.slow
def test_learned_steps_in_training():
    net, params, state, _, before = after_training(lsq=True, weights=4, activations=4)
    after = accuracy(net, params, state)
    params, state = trained(net, (params, state), epochs=6, rate=1e-3)
    assert accuracy(net, params, state) > max(after, before - 0.03)


def test_calibration_sees_the_floats():
    folded, _ = floats()
    config = Q.Quantization(estimator="window_max", weights=2, activations=2)
    net, params, state = Q.quantized(*folded, config, SHAPE)
    x = batches(2)
    state = Q.calibrate(net, params, state, x)
    taps = [infer(*folded, b).taps["stem"] for b in x]
    highs = np.asarray(state["ranges"]["stem"]["high"])
    np.testing.assert_allclose(highs[:2], [t.max() for t in taps], rtol=1e-5)
    assert int(state["ranges"]["stem"]["count"]) == 2
    # It starts anew, whatever was there.
    again = Q.calibrate(net, params, state, x[:1])
    assert int(again["ranges"]["stem"]["count"]) == 1


@pytest.mark.bad_input
def test_no_batch():
    folded, _ = floats()
    net, params, state = Q.quantized(*folded, Q.Quantization(), SHAPE)
    with pytest.raises(ValueError, match="batches must hold at least one"):
        Q.calibrate(net, params, state, [])
    with pytest.raises(ValueError, match="batches must hold at least one"):
        Q.bias_correction(net, params, state, [])


def unequal():
    """The network with depthwise channels of very different sizes."""
    net, params, state = Q.fold(small, *made(small), SHAPE)
    sizes = jnp.asarray(np.geomspace(0.01, 10, 32), jnp.float32)
    point, depth = dict(params["point"]), dict(params["depth"])
    wide = sizes[None, None, None]
    point = {"kernel": point["kernel"] / wide, "bias": point["bias"] / sizes}
    depth = {**depth, "kernel": depth["kernel"] * wide}
    return net, {**params, "point": point, "depth": depth}, state


def test_equalisation_keeps_the_function_and_mends_the_ranges():
    net, params, state = unequal()
    found = pairs(net, params, state, SHAPE)
    # Not over the sum, which two layers read, nor over the mean.
    assert [(p.first, p.second) for p in found] == [
        ("conv1/kernel", "conv2/kernel"),
        ("point/kernel", "depth/kernel"),
    ]
    even = Q.equalise(net, params, state, SHAPE)
    x = images(16)
    wanted = infer(net, params, state, x).logits
    np.testing.assert_allclose(
        infer(net, even, state, x).logits, wanted, rtol=1e-4, atol=1e-5
    )
    reach = lambda p: np.abs(p["depth"]["kernel"]).max((0, 1, 2))
    assert reach(params).max() / reach(params).min() > 500
    before = np.abs(even["point"]["kernel"]).max((0, 1, 2))
    np.testing.assert_allclose(reach(even), before, rtol=1e-3)

    def error(params):
        config = Q.Quantization(per_channel=False)
        q, p, s = Q.quantized(net, params, state, config, SHAPE)
        s = Q.calibrate(q, p, s, [x])
        return float(np.abs(infer(q, p, s, x).logits - wanted).mean())

    assert error(even) < 0.5 * error(params)


def test_relu6_is_not_equalised():
    net = from_linen(Small(activate=lambda x: jnp.minimum(nn.relu(x), 6)))
    folded = Q.fold(net, *made(net), SHAPE)
    assert pairs(*folded, SHAPE) == []
    params = Q.equalise(*folded, SHAPE)
    jax.tree.map(np.testing.assert_array_equal, params, folded[1])


def test_bias_correction_mends_the_mean():
    net, params, state = Q.fold(small, *made(small), SHAPE)
    config = Q.Quantization(weights=3, per_channel=False)
    q, params, ranges = Q.quantized(net, params, state, config, SHAPE)
    x = images(32)
    ranges = Q.calibrate(q, params, ranges, [x])
    wanted = infer(net, params, state, x).logits

    def shift(params):
        return np.abs((infer(q, params, ranges, x).logits - wanted).mean(0)).mean()

    corrected = Q.bias_correction(q, params, ranges, [x[:16], x[16:]])
    # The last layer is corrected after all others: what is left is its rounding.
    assert shift(corrected) < 0.3 * shift(params)
    same = lambda a, b: a.shape == b.shape
    assert jax.tree.all(jax.tree.map(same, corrected, params))
    jax.tree.map(
        np.testing.assert_array_equal,
        {k: v["kernel"] for k, v in corrected.items()},
        {k: v["kernel"] for k, v in params.items()},
    )
