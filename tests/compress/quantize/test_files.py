"""Files of quantized networks whose numbers converters have got wrong."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import export
from jaxkd.compress import quantize as Q
from jaxkd.models.net import from_foreign
from tests.compress import foreign


class Biases(nn.Module):
    """Two convolutions and a head; after the first a bias for each channel, or one."""

    one: bool = False

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(8, (3, 3), use_bias=not self.one, name="one")(x)
        x = nn.relu(x + 0.5 if self.one else x)
        x = nn.relu(nn.Conv(8, (3, 3), feature_group_count=8, name="two")(x))
        return nn.Dense(5, name="head")(x.mean((1, 2)))


def equal_biases(one=False):
    """The same number in every channel, and channels of different size."""
    net = from_foreign(Biases(one), {})
    x = foreign.inputs("keywords")
    params, state = jax.jit(net.init)(jax.random.key(0), x)
    for layer in params.values():
        kernel = np.asarray(layer["kernel"])
        wide = np.linspace(0.1, 3, kernel.shape[-1], dtype=np.float32)
        layer.update(kernel=jnp.asarray(kernel * wide))
        if "bias" in layer:
            layer.update(bias=jnp.full_like(wide, 0.5))
    return net, params, state, x.shape[1:]


def one_number():
    """A number that is added to all channels, where a bias could be."""
    return equal_biases(one=True)


def dead_channels():
    """Channels of a BatchNorm that pruning has made small, with a bias."""
    net, params, state, shape = foreign.made("keywords")
    norm = params["BatchNorm_0"]
    norm.update(scale=norm["scale"].at[:4].set(1e-6), bias=jnp.linspace(0.5, 1.5, 8))
    return *Q.fold(net, params, state, shape), shape


def stacked():
    return foreign.made("stacked")


@pytest.mark.parametrize("made", [equal_biases, one_number, dead_channels, stacked])
@pytest.mark.parametrize("format", ["onnx", "tflite"])
def test_a_file_is_the_fake_quantized_network(made, format, tmp_path):
    for package in {"onnx": ["onnx", "onnxruntime"], "tflite": ["litert_converter"]}[
        format
    ]:
        pytest.importorskip(package)
    net, params, state, shape = made()
    x = np.random.default_rng(1).normal(size=(8, *shape)).astype(np.float32)
    net, params, state = Q.quantized(net, params, state, Q.Quantization(), shape)
    state = Q.calibrate(net, params, state, [x])
    path = tmp_path / f"a.{format}"
    report = getattr(export, format)(net, params, state, path, inputs=x, batch=8)
    assert report.float_ops == {} and report.steps <= 1.01
    wanted = jax.jit(lambda x: net.apply(params, state, x, train=False)[0].logits)(x)
    head = state["ranges"]["head"]
    step = float(head["high"] - head["low"]) / 255
    np.testing.assert_allclose(export.load(path)(x), wanted, atol=1.01 * step)
