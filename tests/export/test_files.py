"""Files of all three formats: written whole, read back, run by their runtimes alone."""

import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest
from jax import lax

from jaxkd import _files, data, export
from jaxkd.compress import quantize
from jaxkd.data import augment
from jaxkd.export import files
from jaxkd.models import cnn
from tests.export import nets

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")
pytest.importorskip("litert_converter")
pytest.importorskip("ai_edge_litert")

FORMATS = ("stablehlo", "tflite", "onnx")
CLASSES = tuple("abcde")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """One float file of each format, with its report."""
    folder = tmp_path_factory.mktemp("files")
    f, reports = nets.float_net(), {}
    for format in FORMATS:
        write = getattr(export, format)
        path = folder / f"net.{format}"
        reports[format] = write(f, nets.SHAPE, path, name="toy", classes=CLASSES)
    return folder, f, reports


@pytest.mark.parametrize("format", FORMATS)
def test_a_file_comes_back_with_its_notes_and_its_logits(written, format):
    folder, f, reports = written
    program = export.load(folder / f"net.{format}")
    assert program.format == format and program.name == "toy"
    assert program.image_shape == nets.SHAPE and program.classes == CLASSES
    assert program.batch == (1 if format == "tflite" else None)
    for n in (1, 5):
        x = nets.images(n)
        np.testing.assert_allclose(program(x), f(x), atol=1e-5)
    report = reports[format]
    assert report.bytes == (folder / f"net.{format}").stat().st_size
    assert report.difference < 1e-5 and report.steps is None
    assert report.integer_ops == {} and sum(report.float_ops.values()) >= 4
    numbers = 3 * 9 * 8 + 9 * 8 * 8 + 9 * 8 + 8 * 5 + 8 + 8 + 8 + 5
    assert report.float_bytes == 4 * numbers


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.bad_input
def test_truncated_files_are_refused_by_name(written, tmp_path, format):
    folder, _, _ = written
    blob = (folder / f"net.{format}").read_bytes()
    path = tmp_path / f"cut.{format}"
    for share in (0.3, 0.9):
        path.write_bytes(blob[: int(len(blob) * share)])
        with pytest.raises(ValueError, match=f"cut.{format}"):
            export.load(path)


@pytest.mark.bad_input
def test_a_damaged_program_is_noticed(written, tmp_path):
    blob = bytearray((written[0] / "net.stablehlo").read_bytes())
    blob[len(blob) // 2] ^= 1
    (tmp_path / "a.stablehlo").write_bytes(blob)
    with pytest.raises(ValueError, match="damaged"):
        export.load(tmp_path / "a.stablehlo")


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.bad_input
def test_files_of_another_version_are_refused(tmp_path, monkeypatch, format):
    path = tmp_path / f"new.{format}"
    with monkeypatch.context() as later:
        later.setattr(files, "VERSION", 99)
        getattr(export, format)(lambda x: x.mean((1, 2)), nets.SHAPE, path)
    with pytest.raises(ValueError, match="new.*version 99"):
        export.load(path)


@pytest.mark.bad_input
def test_files_of_others_are_refused(written, tmp_path):
    folder, f, _ = written
    (tmp_path / "a.png").write_bytes(b"\x89PNG not a program")
    with pytest.raises(ValueError, match="a.png is neither"):
        export.load(tmp_path / "a.png")
    with pytest.raises(FileNotFoundError):
        export.load(tmp_path / "none.onnx")
    import onnx

    model = onnx.load(folder / "net.onnx")
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "theirs.onnx")
    with pytest.raises(ValueError, match="theirs.onnx was not written by jaxkd"):
        export.load(tmp_path / "theirs.onnx")


@pytest.mark.bad_input
def test_wrong_images_are_refused(written):
    program = export.load(written[0] / "net.onnx")
    with pytest.raises(ValueError, match=r"images must be \[n, 8, 8, 3\]"):
        program(nets.images()[:, :7])
    with pytest.raises(ValueError, match="images must be real"):
        program(np.zeros((1, *nets.SHAPE), np.uint8))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.bad_input
def test_bad_arguments_are_refused_before_any_work(tmp_path, format):
    write, f = getattr(export, format), nets.float_net()

    def never(x):
        raise AssertionError("traced")

    with pytest.raises(FileNotFoundError, match="no directory .*none"):
        write(never, nets.SHAPE, tmp_path / "none" / "a")
    with pytest.raises(ValueError, match="directory"):
        write(never, nets.SHAPE, tmp_path)
    with pytest.raises(ValueError, match=r"examples must be \[n, 8, 8, 3\]"):
        write(never, nets.SHAPE, tmp_path / "a", examples=np.zeros((2, 8, 8, 1)))
    with pytest.raises(ValueError, match="image_shape"):
        write(never, (8, 8.5, 3), tmp_path / "a")
    with pytest.raises(TypeError, match="colour"):
        write(f, nets.SHAPE, tmp_path / "a", colour=3)
    assert not list(tmp_path.iterdir())


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "a.onnx"
    _files.write(path, b"before")

    def fails(*_):
        raise OSError("full")

    monkeypatch.setattr(_files.os, "fsync", fails)
    with pytest.raises(OSError, match="full"):
        _files.write(path, b"after")
    assert path.read_bytes() == b"before"
    assert [p.name for p in tmp_path.iterdir()] == ["a.onnx"]


ALONE = {
    "stablehlo": """
        import jax.export
        program = jax.export.deserialize(bytearray(open(path, "rb").read()))
        y = program.call(x)
        assert set(program.platforms) == {"cpu", "cuda", "tpu"}, program.platforms
        assert program.call(x[:1]).shape == (1, 5)
    """,
    "onnx": """
        import onnxruntime
        y, = onnxruntime.InferenceSession(path).run(None, {"image": x})
    """,
    "tflite": """
        from ai_edge_litert.interpreter import Interpreter
        run = Interpreter(path).get_signature_runner()
        y = np.concatenate([run(image=x[i : i + 1])["logits"] for i in range(len(x))])
    """,
}


@pytest.mark.parametrize("format", FORMATS)
def test_the_runtime_alone_runs_it(written, tmp_path, format):
    folder, f, _ = written
    x = nets.images(3)
    np.save(tmp_path / "x.npy", x)
    code = textwrap.dedent(f"""
        import sys
        for name in ("flax", "jaxkd", "optax", "tensorflow"):
            sys.modules[name] = None
        import numpy as np
        path = {str(folder / f"net.{format}")!r}
        x = np.load({str(tmp_path / "x.npy")!r})
    """) + textwrap.dedent(ALONE[format])
    code += f"np.save({str(tmp_path / 'y.npy')!r}, y)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), f(x), atol=1e-5)


def test_stablehlo_keeps_int8_constants_and_counts_integer_products(tmp_path):
    kernel = np.random.default_rng(0).integers(-127, 128, (192, 500)).astype(np.int8)

    def f(x):
        q = jax.numpy.clip(jax.numpy.round(x * 50), -127, 127).astype(np.int8)
        total = lax.dot_general(
            q.reshape(q.shape[0], -1),
            kernel,
            (((1,), (0,)), ((), ())),
            preferred_element_type=np.int32,
        )
        return total.astype(np.float32) * 1e-3

    path = tmp_path / "a.stablehlo"
    report = export.stablehlo(f, nets.SHAPE, path)
    assert report.integer_ops == {"dot_general": 1} and report.float_ops == {}
    assert kernel.size < report.bytes < 1.1 * kernel.size + 4000
    np.testing.assert_array_equal(export.load(path)(nets.images()), f(nets.images()))


@pytest.mark.bad_input
def test_stablehlo_refuses_fake_quantization(tmp_path):
    with pytest.raises(ValueError, match=r"compress\.quantize\.integer"):
        export.stablehlo(nets.int8_net(), nets.SHAPE, tmp_path / "a")


def test_accuracy_of_a_file_is_that_of_the_function(tmp_path):
    """On real digits, with the nearest class mean as the network."""
    split = data.load("digits", "test")
    view = augment.chain(augment.to_float(), augment.normalise([0.3], [0.4]))
    seen = np.asarray(view(jax.random.key(0), {"image": split.images})["image"])
    means = [seen[split.labels == k].mean(0).ravel() for k in range(10)]
    kernel = np.stack(means, -1).astype(np.float32)

    def f(x):
        flat = x.reshape(x.shape[0], -1)
        return flat @ kernel - (kernel**2).sum(0, keepdims=True) / 2

    path = tmp_path / "digits.onnx"
    export.onnx(f, split.images.shape[1:], path, classes=split.classes)
    program = export.load(path)
    found = export.evaluate(program, split, view=view, batch_size=100)
    expected = np.mean(np.argmax(f(seen), -1) == split.labels)
    assert expected > 0.85
    assert found["accuracy"] == pytest.approx(expected, abs=1e-6)
    log_p = jax.nn.log_softmax(f(seen))[np.arange(len(seen)), split.labels]
    assert found["nll"] == pytest.approx(-float(log_p.mean()), rel=1e-4)


def test_latency_is_measured_in_turns(written):
    folder, _, _ = written
    paths = [folder / f"net.{format}" for format in FORMATS]
    times = export.latency(paths, repeats=3, warmup=1)
    assert len(times) == 3 and all(t > 0 for t in times)
    order = []
    medians = export.latency.__globals__["medians"]
    medians([lambda: order.append("a"), lambda: order.append("b")], repeats=2, warmup=1)
    assert "".join(order) == "ab" + "abab"
    report = export.onnx(
        nets.float_net(), nets.SHAPE, folder / "timed.onnx", measure=True
    )
    assert report.milliseconds > 0


def test_reports_say_what_was_written(written):
    text = str(written[2]["tflite"])
    assert "net.tflite" in text and "0 integer and 7 float operations" in text


def test_a_stablehlo_file_does_not_depend_on_the_caller(tmp_path):
    def write(path, depth):
        if depth:
            return write(path, depth - 1)
        return export.stablehlo(nets.float_net(), nets.SHAPE, path)

    for depth in (0, 7):
        write(tmp_path / f"{depth}", depth)
    assert (tmp_path / "0").read_bytes() == (tmp_path / "7").read_bytes()


@pytest.mark.parametrize("format", ["tflite", "onnx"])
def test_a_pooling_network_becomes_integer_throughout(format, tmp_path):
    net, shape = cnn([[4], [8]], hidden=[8], classes=5), (8, 8, 1)
    x = np.random.default_rng(0).uniform(size=(8, *shape)).astype(np.float32)
    config = quantize.Quantization()
    folded = quantize.fold(net, *net.init(jax.random.key(0), x), shape)
    net, params, state = quantize.quantized(*folded, config, shape)
    state = quantize.calibrate(net, params, state, [x])
    f = quantize.deployed(net, params, state, config)
    write = getattr(export, format)
    report = write(f, shape, tmp_path / "net", batch=1, examples=x)
    assert not report.float_ops and report.steps <= 1
