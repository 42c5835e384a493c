"""Networks that were not made for this library, as files: right, or refused by name."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from jaxkd import export
from jaxkd.compress import quantize
from jaxkd.models import from_linen
from tests.compress import foreign

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")
pytest.importorskip("litert_converter")
pytest.importorskip("ai_edge_litert")

FORMATS = ("tflite", "onnx", "stablehlo")
# In integers throughout, in all formats.
WHOLE = (
    *("squeeze_excite", "inverted_residual", "unet", "pixel_shuffle", "inception"),
    *("densenet", "grouped", "shuffle", "same_names", "several_heads", "stacked"),
    *("weight_norm", "spectral_norm", "prototypes", "tied", "std_conv", "binary"),
    "keywords",
)
# What stays in float, with its module, in LiteRT and in ONNX Runtime; "" is integer.
PARTLY = {
    "vit": (r"SOFTMAX \(in attend\)", r"Exp \(in attend\)"),
    "shared": ("", "3 Tanh"),
    "convnext": (r"RSQRT \(in LayerNorm_0", r"Reciprocal \(in LayerNorm_0"),
    "mixer": (r"RSQRT \(in LayerNorm_0", r"Reciprocal \(in LayerNorm_0"),
    "written_out_lstm": (r"TANH \(in cell\)", r"Tanh \(in cell\)"),
    "gated": ("EXP", "Exp"),
    "embedded": (r"GATHER_ND \(in words\)", r"Gather \(in words\)"),
    "tied_embedding": ("CAST", r"Gather \(in words\)"),
    "group_norm": (r"RSQRT \(in GroupNorm_0", r"Reciprocal \(in GroupNorm_0"),
    "fused_qkv": ("SOFTMAX", "Exp"),
    "cut_qkv": ("SOFTMAX", "Exp"),
    "einsum": ("", "MatMul"),
}
LOOPS = ("lstm", "gru", "scanned")
# The converter makes an operation of it that LiteRT then does not open.
UNOPENED = ("cosine",)
# The others take minutes together.
QUICK = ("squeeze_excite", "inverted_residual", "unet", "pixel_shuffle", "vit", "lstm")


def some(names):
    """Those that are not quick are marked as slow."""
    slow = lambda name: () if name in QUICK else (pytest.mark.slow,)
    return [pytest.param(name, marks=slow(name)) for name in names]


def quantized(name):
    """The network in fake quantization, with its images and what it makes of them."""
    made, x = foreign.made(name), foreign.inputs(name)
    folded = quantize.fold(made.net, made.params, made.state, made.shape)
    config = quantize.Quantization()
    net, params, state = quantize.quantized(*folded, config, made.shape)
    state = quantize.calibrate(net, params, state, [x])
    run = jax.jit(lambda p, s, x: net.apply(p, s, x, train=False)[0].logits)
    return (net, params, state), x, np.asarray(run(params, state, x))


def test_every_foreign_network_is_looked_at():
    assert {*WHOLE, *PARTLY, *LOOPS, *UNOPENED} == set(foreign.NETS)


@pytest.mark.parametrize("name", some(WHOLE))
def test_int8_files_are_integer_and_the_fake_quantized_network(name, tmp_path):
    made, x, wanted = quantized(name)
    for format in FORMATS:
        path = tmp_path / format
        report = getattr(export, format)(*made, path, inputs=x, batch=4)
        assert report.float_ops == {} and report.steps <= 5, format
        # Ranges are of float32: the step itself comes back up to rounding.
        difference = np.abs(export.load(path)(x) - wanted).max()
        assert difference == pytest.approx(report.difference, abs=1e-5), format


@pytest.mark.parametrize("name", some(PARTLY))
def test_what_would_stay_in_float_is_refused_with_its_place(name, tmp_path):
    made, x, wanted = quantized(name)
    for format, left in zip(FORMATS, PARTLY[name], strict=False):
        write, path = getattr(export, format), tmp_path / format
        if left:
            match = rf'not written: .*in float are .*{left}.*float_ops="any"'
            with pytest.raises(ValueError, match=match):
                write(*made, path, inputs=x, batch=4)
            assert not list(tmp_path.iterdir())
        report = write(*made, path, inputs=x, batch=4, float_ops="any")
        assert report.steps <= 5 and bool(report.float_ops) == bool(left)
        for name, places in report.float_places.items():
            assert len(places) == report.float_ops[name] and name in str(report)
        difference = np.abs(export.load(path)(x) - wanted).max()
        assert difference == pytest.approx(report.difference, abs=1e-5)
        path.unlink()
    report = export.stablehlo(*made, tmp_path / "a", inputs=x, batch=4, float_ops="any")
    assert report.steps <= 5


@pytest.mark.parametrize("name", some(LOOPS))
def test_loops_are_written_in_every_format(name, tmp_path):
    made, x = foreign.made(name), foreign.inputs(name)
    net = made.net, made.params, made.state
    wanted = made.net.apply(made.params, made.state, x, train=False)[0].logits
    for format in FORMATS:
        report = getattr(export, format)(*net, tmp_path / format, inputs=x, batch=4)
        got = export.load(tmp_path / format)(x)
        np.testing.assert_allclose(got, wanted, atol=1e-5)
        assert report.difference < 1e-5
    with pytest.raises(ValueError, match="scan"):  # with the place and the remedy
        quantize.quantized(*net, quantize.Quantization(), made.shape)


@pytest.mark.slow
@pytest.mark.parametrize("name", UNOPENED)
def test_what_its_runtime_does_not_open_is_not_written(name, tmp_path):
    made, x, _ = quantized(name)
    match = "does not open it .*L2_NORMALIZATION.*Write another format"
    with pytest.raises(ValueError, match=match):
        export.tflite(*made, tmp_path / "a", inputs=x, float_ops="any")
    assert not list(tmp_path.iterdir())
    for write in (export.onnx, export.stablehlo):
        how = {"inputs": x, "batch": 4, "float_ops": "any"}
        assert write(*made, tmp_path / "a", **how).steps <= 5


def test_activations_without_integer_kernels_are_named(tmp_path):
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.leaky_relu(nn.Conv(4, (1, 1))(x))

    class Small(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            return nn.Dense(3)(nn.elu(Block(name="block")(x).mean((1, 2))))

    x = np.random.default_rng(0).normal(size=(4, 2, 2, 3)).astype(np.float32)
    net = from_linen(Small())
    made = (net, *jax.jit(net.init)(jax.random.key(0), x))
    net, params, state = quantize.quantized(*made, quantize.Quantization(), (2, 2, 3))
    made = (net, params, quantize.calibrate(net, params, state, [x]))
    for format, compare in {
        "tflite": "GREATER_EQUAL",
        "onnx": "GreaterOrEqual",
    }.items():
        # The second is not in a module of its own: its network's class is there.
        match = rf"{compare} \(in block/leaky_relu\(\)\), .*\(in Small/elu\(\)\)"
        with pytest.raises(ValueError, match=match):
            getattr(export, format)(*made, tmp_path / "a", inputs=x, batch=4)
