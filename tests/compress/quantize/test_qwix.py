"""Against an independent library: qwix's integers and integer convolutions."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.compress import quantize as Q
from jaxkd.compress.quantize.fake import integers
from jaxkd.models._layers import conv
from jaxkd.models.net import from_linen
from tests.compress.quantize.nets import SHAPE, images, infer

qwix = pytest.importorskip("qwix", reason="pip install 'jaxkd-distill[test]'")


class Plain(nn.Module):
    """No groups: qwix's own gradients fail on them, and so might others."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(conv(8, 3, use_bias=True, name="first")(x))
        x = nn.relu(conv(6, 3, 2, use_bias=True, name="second")(x))
        return nn.Dense(5, name="head")(x.reshape(len(x), -1)), {}


def quantized_kernel(kernel, bits, axis):
    # qwix's symmetric range ends half a step beyond the last integer, ours on it.
    last = 2 ** (bits - 1) - 1
    return qwix.quantize(
        kernel,
        {8: jnp.int8, 4: jnp.int4}[bits],
        channelwise_axes=() if axis is None else (axis,),
        calibration_method=f"absmax,{(last + 0.5) / last!r}",
    )


@pytest.mark.parametrize("axis", [None, 3])
@pytest.mark.parametrize("bits", [8, 4])
def test_integers_and_scales_of_kernels(bits, axis):
    kernel = jax.random.normal(jax.random.key(0), (3, 3, 4, 8))
    theirs = quantized_kernel(kernel, bits, axis)
    grid = Q.weight_grid(kernel, bits, axis)
    ours = np.asarray(integers(kernel, grid))
    # A tie may be rounded to either side.
    difference = np.abs(ours - np.asarray(theirs.qvalue, np.float32))
    assert difference.max() <= 1 and (difference > 0).mean() < 0.01
    scale = np.broadcast_to(grid.scale, theirs.scale.shape)
    np.testing.assert_allclose(theirs.scale, scale, rtol=1e-5)


def test_asymmetric_activations():
    x = jax.random.normal(jax.random.key(1), (4, 6)) + 1
    theirs = qwix.quantize(x, jnp.int8, calibration_method="minmax")
    grid = Q.affine_grid(x.min(), x.max(), 8)
    assert int(theirs.zero_point.ravel()[0]) == int(grid.zero)
    np.testing.assert_allclose(
        qwix.dequantize(theirs), Q.fake_quant(x, grid), atol=1.01 * float(grid.scale)
    )
    same = np.asarray(theirs.qvalue) == np.asarray(integers(x, grid))
    assert same.mean() > 0.99


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits, per_channel", [(8, True), (8, False)])
def test_a_whole_network_of_their_integer_products(bits, per_channel, symmetric):
    net, x = from_linen(Plain()), jnp.asarray(images(6))
    params, state = jax.jit(net.init)(jax.random.key(0), x)
    config = Q.Quantization(
        weights=bits, per_channel=per_channel, activation="dynamic", symmetric=symmetric
    )
    ours = Q.quantized(net, params, state, config, SHAPE)
    how = f"absmax,{127.5 / 127!r}" if symmetric else "minmax"

    def product(name, x, strides=1):
        kernel = params[name]["kernel"]
        w = quantized_kernel(kernel, bits, kernel.ndim - 1 if per_channel else None)
        q = qwix.quantize(x, jnp.int8, calibration_method=how)
        if kernel.ndim == 2:
            out = qwix.dot_general(q, w, (((1,), (0,)), ((), ())))
        else:
            numbers = ("NHWC", "HWIO", "NHWC")
            pads = ((1, 1), (1, 1))
            if not symmetric:  # their zeros are of integers, not of numbers
                x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
                pads = ((0, 0), (0, 0))
                q = qwix.quantize(x, jnp.int8, calibration_method=how)
            out = qwix.conv_general_dilated(
                q, w, (strides, strides), pads, dimension_numbers=numbers
            )
        return out + params[name]["bias"].reshape((1,) * (out.ndim - 1) + (-1,))

    def forward(x):
        y = nn.relu(product("second", nn.relu(product("first", x)), 2))
        return product("head", y.reshape(len(y), -1))

    theirs = np.asarray(jax.jit(forward)(x))
    found = np.asarray(infer(*ours, x).logits)
    floats = np.asarray(infer(net, params, state, x).logits)
    # Equal but for ties: far nearer to each other than either to the floats.
    error = np.abs(found - floats).mean()
    assert np.abs(found - theirs).mean() < 0.1 * error
