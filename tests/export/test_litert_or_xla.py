"""Which runtime a network is written for, and that it computes the same there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import export, models
from jaxkd.compress import quantize

SHAPE = (4, 4, 1)


@pytest.mark.parametrize(
    ("how", "installed", "suffix"),
    [
        (None, True, ".tflite"),
        (None, False, ".stablehlo"),
        ({"activation": "static"}, True, ".tflite"),
        ({"activation": "dynamic"}, True, ".tflite"),
        ({"activation": "dynamic", "per_channel": False}, True, ".stablehlo"),
    ],
)
def test_the_runtime_is_one_that_computes_what_the_network_does(
    how, installed, suffix, tmp_path, monkeypatch
):
    pytest.importorskip("litert_converter")
    if not installed:
        found = "jaxkd.export._litert_or_xla.importlib.util.find_spec"
        monkeypatch.setattr(found, lambda name: None)
    net = models.mlp([6], classes=3)
    params, state = net.init(jax.random.key(0), jnp.zeros((1, *SHAPE)))
    images = jax.random.normal(jax.random.key(1), (5, *SHAPE))
    folded = net
    if how is not None:
        bits = quantize.Quantization(**how)
        folded, params, state = quantize.fold(net, params, state, SHAPE)
        net, params, state = quantize.quantized(folded, params, state, bits, SHAPE)
        state = quantize.calibrate(net, params, state, [images])
    written = export.litert_or_xla(
        net, params, state, tmp_path / "of.me", image_shape=SHAPE, folded=folded
    )
    assert written.path == str(tmp_path / f"of.me{suffix}")
    assert bool(sum(written.integer_ops.values())) == (how is not None)
    own = jnp.concatenate(  # a dynamic range is that of one image
        [
            net.apply(params, state, image[None], train=False)[0].logits
            for image in images
        ]
    )
    theirs = np.concatenate([export.load(written.path)(i[None]) for i in images])
    np.testing.assert_allclose(theirs, own, atol=0.03 * float(jnp.abs(own).max()))
