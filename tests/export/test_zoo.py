"""Whole networks of the zoo: float in all formats, and int8 that is small and whole."""

import jax
import numpy as np
import pytest

from jaxkd import export
from jaxkd.compress import quantize
from jaxkd.models import ZOO

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")
pytest.importorskip("litert_converter")
pytest.importorskip("ai_edge_litert")
pytestmark = pytest.mark.slow


def random(name, size, classes=10):
    """A network with random weights and BatchNorm statistics, and some images."""
    net, rng = ZOO[name](classes=classes), np.random.default_rng(0)
    x = rng.normal(size=(2, size, size, 3)).astype(np.float32)
    # Keys of this kind compile in half the time, and any weights will do.
    params, state = jax.jit(net.init)(jax.random.key(0, impl="rbg"), x[:1])

    def moment(path, a):
        spread = path[-1].key == "var"
        draw = rng.uniform(0.5, 2, a.shape) if spread else rng.normal(0, 0.1, a.shape)
        return np.asarray(draw, np.float32)

    return net, params, jax.tree_util.tree_map_with_path(moment, state), x


@pytest.mark.parametrize("format", ["onnx", "tflite", "stablehlo"])
@pytest.mark.parametrize(
    "name",
    ["wrn_16_2", "vgg8", "mobilenet_v2", "shufflenet_v2", "vit_tiny"],
)
def test_float_networks_agree_with_jax(tmp_path, name, format):
    net, params, state, x = random(name, 32)
    f = export.inference(net, params, state)
    how = {"batch": 1} if name == "vit_tiny" or format == "tflite" else {}
    path = tmp_path / f"a.{format}"
    report = getattr(export, format)(
        *export.function(f), path, image_shape=(32, 32, 3), inputs=x, **how
    )
    logits = jax.jit(f)(x)
    assert report.difference < 1e-4 * max(1, float(np.max(np.abs(logits))))
    assert float(np.std(logits)) > 0


@pytest.mark.parametrize("name", ["mobilenet_v1", "resnet18"])
def test_int8_is_small_and_integer(tmp_path, name):
    """At 224 x 224 and 1,000 classes, as the sizes of the literature are."""
    shape, config = (224, 224, 3), quantize.Quantization()
    net, params, state, x = random(name, 224, classes=1000)
    net, params, state = quantize.fold(net, params, state, shape)
    before = export.inference(net, params, state)
    net, params, state = quantize.quantized(net, params, state, config, shape)
    state = quantize.calibrate(net, params, state, [x])
    f = quantize.deployed(net, params, state, config)
    for write in (export.tflite, export.onnx):
        path = tmp_path / "float"
        whole = write(*export.function(before), path, image_shape=shape, inputs=x[:1])
        small = write(
            *export.function(f), tmp_path / "int8", image_shape=shape, inputs=x
        )
        print(whole, small, sep="\n")
        assert whole.bytes >= 3.6 * small.bytes
        assert small.float_ops == {}
        products = sum(n for k, n in whole.float_ops.items() if _product(k))
        assert sum(n for k, n in small.integer_ops.items() if _product(k)) == products
        # Random weights make ties common, and a tie may fall either way.
        assert small.steps <= 3


def _product(name):
    return any(k in name.lower() for k in ("conv", "gemm", "fully"))
