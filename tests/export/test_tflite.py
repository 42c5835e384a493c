"""LiteRT files: float, full int8, weight-only, dynamic."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import export
from jaxkd.export import _tflite
from tests.export import nets

pytest.importorskip("litert_converter")
pytest.importorskip("ai_edge_litert")

WHOLE = {"CONV_2D": 2, "DEPTHWISE_CONV_2D": 1, "FULLY_CONNECTED": 1}
REST = {"ADD": 1, "MAX_POOL_2D": 1, "MEAN": 1}


def write(tmp_path, f, **how):
    path = tmp_path / "a.tflite"
    return export.tflite(*export.function(f), path, inputs=nets.images(), **how)


@pytest.mark.parametrize("per_channel", [True, False])
def test_int8_is_integer_throughout(tmp_path, per_channel):
    report = write(tmp_path, nets.int8_net(per_channel=per_channel))
    assert report.integer_ops == WHOLE | REST and report.float_ops == {}
    assert report.steps <= 1


def test_weights_alone_are_stored_as_integers(tmp_path):
    report = write(tmp_path, nets.int8_net(weights_only=True))
    assert report.float_ops == WHOLE | REST and report.integer_ops == {}
    assert report.difference < 1e-5
    stored = [
        t.type
        for t in _tflite._model((tmp_path / "a.tflite").read_bytes())
        .subgraphs[0]
        .tensors
    ]
    int8 = _tflite._schema().TensorType.INT8
    assert stored.count(int8) == 4


def test_dynamic_ranges_by_the_runtime(tmp_path, capsys):
    pytest.importorskip("ai_edge_quantizer")
    report = write(tmp_path, nets.float_net(), quantize="dynamic")
    assert report.integer_ops == {f"{k} (hybrid)": n for k, n in WHOLE.items()}
    assert report.float_ops == REST
    # Kernels are rounded to 8 bits, so it is near but not equal.
    assert 1e-4 < report.difference < 0.05
    report = write(tmp_path, nets.float_net(), quantize="weight_only")
    assert report.float_ops == WHOLE | REST and 1e-4 < report.difference < 0.05
    assert capsys.readouterr().out == ""


def test_a_batch_is_filled_up(tmp_path):
    write(tmp_path, nets.float_net(), batch=3)
    program = export.load(tmp_path / "a.tflite")
    assert program.batch == 3
    x = nets.images(7)
    np.testing.assert_allclose(program(x), nets.float_net()(x), atol=1e-5)


def test_what_stays_float_is_an_error_that_lists_it(tmp_path):
    def f(x):
        x = nets.marked(x, 0.03).mean((1, 2))
        x = nets.marked(jnp.sin(nets.marked(x, 0.01)), 0.01)
        return nets.marked(x @ nets.marked(np.eye(3, 5, dtype=np.float32), 0.01), 0.01)

    with pytest.raises(ValueError, match="1 quantized products 1 became integer.* SIN"):
        write(tmp_path, f)
    assert not list(tmp_path.iterdir())
    report = write(tmp_path, f, float_ops=("SIN",))
    assert report.float_ops == {"SIN": 1}


@pytest.mark.bad_input
def test_what_the_converter_lacks_is_named_with_its_module(tmp_path):
    def f(x):
        with jax.named_scope("Net/middle"):
            return jnp.linalg.svd(x[..., 0])[1]

    match = r"the operation stablehlo.custom_call \(svd in middle\): write it as onnx"
    with pytest.raises(NotImplementedError, match=match):
        write(tmp_path, f)
    assert not list(tmp_path.iterdir())


@pytest.mark.bad_input
def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(ValueError, match="quantize must be one of"):
        write(tmp_path, nets.float_net(), quantize="int3")
    for quantized in ("weight_only", "dynamic"):
        with pytest.raises(ValueError, match="net is quantized"):
            write(tmp_path, nets.int8_net(), quantize=quantized)


@pytest.mark.parametrize("package", ["litert_converter", "ai_edge_litert"])
@pytest.mark.bad_input
def test_a_missing_package_says_what_to_install(tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r"pip install 'jaxkd-distill\[litert\]'"):
        write(tmp_path, nets.float_net())
