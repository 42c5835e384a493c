"""Files whose own input and output are int8, and what is refused for them."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import data, export
from jaxkd.compress import quantize
from jaxkd.data import augment
from jaxkd.export import _latency, _tflite, edges, files
from jaxkd.models import cnn
from jaxkd.pipeline import applying
from tests.export import nets

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
litert = pytest.importorskip("ai_edge_litert.interpreter")
pytest.importorskip("litert_converter")

FORMATS = ("tflite", "onnx")
SHAPE = (8, 8, 1)
# Pixels stand 0.15 of a step beside integers: halves may be rounded either way.
VIEW = augment.chain(augment.to_float(), augment.normalise([0.13], [0.31]))


def seen(split):
    return np.asarray(VIEW(jax.random.key(0), {"image": split.images})["image"])


@pytest.fixture(scope="module")
def digits():
    """Random convolutions of digits, and the head of least squares on them."""
    split = data.load("digits", "train")
    net, x = cnn([[4], [8]], hidden=[], classes=10), seen(split)
    params, state = net.init(jax.random.key(0), x[:1])
    features = np.asarray(net.apply(params, state, x, train=False)[0].taps["pooled"])
    flat = np.c_[features.reshape(len(x), -1), np.ones(len(x))]
    head, *_ = np.linalg.lstsq(flat, np.eye(10)[split.labels], rcond=None)
    head = head.astype(np.float32)
    params = {**params, "head": {"kernel": head[:-1], "bias": head[-1]}}
    return quantize.fold(net, params, state, SHAPE), x[:64]


def made(digits, **config):
    folded, x = digits
    net, params, state = quantize.quantized(
        *folded, quantize.Quantization(**config), SHAPE
    )
    return net, params, quantize.calibrate(net, params, state, [x])


@pytest.fixture(scope="module")
def written(digits, tmp_path_factory):
    """A file of each format, in float and in int8 at its ends, and their reports."""
    folder, network = tmp_path_factory.mktemp("edges"), made(digits)
    reports = {
        f"{io}.{format}": getattr(export, format)(
            *network, folder / f"{io}.{format}", inputs=digits[1], batch=1, io=io
        )
        for format in FORMATS
        for io in edges.TYPES
    }
    return folder, reports


@pytest.mark.parametrize("format", FORMATS)
def test_logits_are_those_of_the_file_with_float_ends(written, format):
    folder, reports = written
    test = data.load("digits", "test")
    plain, whole = (export.load(folder / f"{io}.{format}") for io in edges.TYPES)
    # Normal noise is also beyond the range that was calibrated.
    noise = np.random.default_rng(0).normal(scale=2, size=(50, *SHAPE))
    for x in (seen(test)[:100], noise.astype(np.float32)):
        logits = whole(x)
        assert logits.dtype == np.float32
        np.testing.assert_array_equal(logits, plain(x))
    found = export.evaluate(whole, test, view=VIEW)
    assert found == export.evaluate(plain, test, view=VIEW)
    assert found["accuracy"] > 0.7
    evaluated = [
        applying.measure(str(folder / f"{io}.{format}"), "digits", "test")
        for io in edges.TYPES
    ]
    assert evaluated[0] == evaluated[1]
    before, after = (reports[f"{io}.{format}"] for io in edges.TYPES)
    assert after.integer_ops == before.integer_ops and not after.float_ops
    assert after.steps == before.steps < 1.5


def test_litert_itself_takes_and_gives_int8(written, digits):
    path = written[0] / "int8.tflite"
    program, run = export.load(path), litert.Interpreter(str(path))
    (x,), (y,) = run.get_input_details(), run.get_output_details()
    for end, detail in ((program.input, x), (program.output, y)):
        assert end.dtype == "int8" and detail["dtype"] == np.int8
        assert detail["quantization"] == (end.scale, end.zero_point)
    images = digits[1][:1]
    entered = edges.quantized(program.input, images)
    integers = run.get_signature_runner()(image=entered)["logits"]
    assert integers.dtype == np.int8
    given = program.output.scale * (integers.astype(np.float64) - y["quantization"][1])
    np.testing.assert_allclose(program(images), given, rtol=1e-6)
    np.testing.assert_array_equal(program.run(entered), program(images))


def test_nothing_of_the_floats_stays_in_the_tflite_file(written):
    model = _tflite._model((written[0] / "int8.tflite").read_bytes())
    kinds = _tflite._kinds(model, model.subgraphs[0].operators)
    assert not {"QUANTIZE", "DEQUANTIZE"} & set(kinds)
    assert len(model.operatorCodes) == len(set(kinds))
    types = {tensor.type for tensor in model.subgraphs[0].tensors}
    kind = _tflite._schema().TensorType
    assert types == {kind.INT8, kind.INT32}


def test_onnx_runtime_itself_takes_and_gives_int8(written, digits):
    path = written[0] / "int8.onnx"
    program, run = export.load(path), onnxruntime.InferenceSession(path)
    assert [v.type for v in (*run.get_inputs(), *run.get_outputs())] == [
        "tensor(int8)"
    ] * 2
    graph = onnx.load(path).graph
    arrays = {c.name: onnx.numpy_helper.to_array(c) for c in graph.initializer}
    ends = {"image": program.input, "logits": program.output}
    for held in graph.quantization_annotation:
        grid = {e.key: arrays[e.value] for e in held.quant_parameter_tensor_names}
        end = ends.pop(held.tensor_name)
        assert grid == {"SCALE_TENSOR": end.scale, "ZERO_POINT_TENSOR": end.zero_point}
        assert grid["ZERO_POINT_TENSOR"].dtype == np.int8
    assert not ends
    images = digits[1][:1]
    entered = edges.quantized(program.input, images)
    (integers,) = run.run(None, {"image": entered})
    logits = edges.dequantized(program.output, integers)
    np.testing.assert_array_equal(program(images), logits)


def test_any_number_of_images(digits, tmp_path):
    """And an image that two operations read."""

    def f(x):
        x = nets.marked(x, 0.02, 3)
        y = nets.marked(jax.nn.relu(x), 0.01, -128)
        y = nets.marked(y.mean((1, 2)), 0.01, -128)
        z = nets.marked(x.mean((1, 2)), 0.01)
        kernel = nets.marked(np.eye(1, 3, dtype=np.float32), 0.01, narrow=True)
        return nets.marked(nets.marked(y + z, 0.02) @ kernel, 0.02, 5)

    x = digits[1][:5]
    for write, batch in ((export.onnx, None), (export.tflite, 2)):
        report = write(
            *export.function(f), tmp_path / "a", inputs=x, batch=batch, io="int8"
        )
        program = export.load(tmp_path / "a")
        assert (program.batch, report.steps <= 1) == (batch, True)
        assert program.input == ("int8", float(np.float32(0.02)), 3)
        assert program.output == ("int8", float(np.float32(0.02)), 5)
        assert program(x).shape == (5, 3)


def test_files_without_ends_in_their_notes_are_float(written, tmp_path):
    model = onnx.load(written[0] / "float32.onnx")
    (entry,) = [e for e in model.metadata_props if e.key == files.KEY]
    notes = json.loads(entry.value)
    del notes["input"], notes["output"]
    entry.value = json.dumps(notes)
    onnx.save(model, tmp_path / "old.onnx")
    program = export.load(tmp_path / "old.onnx")
    assert (program.input, program.output) == edges.FLOAT


def test_quantizing_the_images_is_no_part_of_the_latency(written, monkeypatch):
    def while_timed(calls, **_):
        def never(edge, x):
            assert x.dtype == np.int8
            return x

        monkeypatch.setattr(edges, "quantized", never)
        for call in calls:
            assert call().dtype == np.float32
        return [0.0]

    monkeypatch.setattr(_latency, "medians", while_timed)
    assert export.latency([written[0] / f"int8.{f}" for f in FORMATS]) == [0.0]


@pytest.mark.parametrize(
    "format",
    [FORMATS[0], *(pytest.param(f, marks=pytest.mark.slow) for f in FORMATS[1:])],
)
@pytest.mark.bad_input
def test_what_has_no_integers_at_its_ends_is_refused(digits, tmp_path, format):
    write, (folded, x) = getattr(export, format), digits
    how = {"inputs": x[:2], "batch": 1, "io": "int8"}
    path = tmp_path / "a"
    with pytest.raises(ValueError, match="io must be one of.*got 'uint8'"):
        write(*folded, path, **{**how, "io": "uint8"})
    with pytest.raises(ValueError, match=r"net is in float: first net.*calibrate\("):
        write(*folded, path, **how)
    for activation in ("dynamic", "float"):
        network = made(digits, activation=activation)
        with pytest.raises(ValueError, match=r'static ranges.*activation="static"'):
            write(*network, path, **how)
    float_ops = {**how, "float_ops": "any"}
    layers = {"stage1_conv1": quantize.FLOAT}
    with pytest.raises(ValueError, match="8-bit images.*float.*stage1_conv1.*layers="):
        write(*made(digits, layers=layers), path, **float_ops)
    layers = {"head": quantize.FLOAT}
    with pytest.raises(ValueError, match=r"needs 8-bit logits.*float.*head.*layers="):
        write(*made(digits, layers=layers), path, **float_ops)
    layers = {"stage1_conv1": quantize.Bits(8, 4)}
    with pytest.raises(ValueError, match="needs 8-bit images.*4-bit"):
        write(*made(digits, layers=layers), path, **float_ops)
    assert not list(tmp_path.iterdir())


@pytest.mark.bad_input
def test_two_scales_of_the_images_are_refused(tmp_path):
    def f(x):
        y = nets.marked(nets.marked(x, 0.02).mean((1, 2)), 0.01)
        z = nets.marked(nets.marked(x, 0.03).max((1, 2)), 0.01)
        kernel = nets.marked(np.eye(3, dtype=np.float32), 0.01, narrow=True)
        return nets.marked(nets.marked(y + z, 0.02) @ kernel, 0.02)

    with pytest.raises(ValueError, match="one scale of the images, and there are 2"):
        export.onnx(
            *export.function(f), tmp_path / "a", inputs=nets.images(2), io="int8"
        )


@pytest.mark.bad_input
def test_a_converter_that_does_otherwise_is_noticed(written):
    folder, _ = written
    right = export.load(folder / "int8.tflite")
    ends = right.input, right.output
    blob = (folder / "float32.tflite").read_bytes()
    _tflite.with_integer_ends(blob, ends)
    for wrong in (ends[0]._replace(scale=1.0), ends[0]._replace(zero_point=7)):
        with pytest.raises(NotImplementedError, match="another grid.*leave io out"):
            _tflite.with_integer_ends(blob, (wrong, ends[1]))
    with pytest.raises(NotImplementedError, match="int8 at the ends needs"):
        _tflite.with_integer_ends((folder / "int8.tflite").read_bytes(), ends)


def test_integers_are_those_of_the_network():
    """By the definition that the network itself is quantized with."""
    end = edges.Edge("int8", 0.013, -7)
    x = np.random.default_rng(0).normal(size=10_000).astype(np.float32)
    grid = quantize.Grid(jnp.float32(end.scale), jnp.float32(-7), -128, 127)
    fake = np.asarray(quantize.fake_quant(x, grid))
    again = edges.dequantized(end, edges.quantized(end, x))
    np.testing.assert_allclose(again, fake, rtol=0, atol=1e-6)
