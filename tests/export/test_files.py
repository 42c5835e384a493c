"""Files of all three formats: written whole, read back, run by their runtimes alone."""

import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest
from jax import lax

from jaxkd import data, export, store
from jaxkd.compress import quantize
from jaxkd.data import augment
from jaxkd.export import _onnx, _stablehlo, _tflite, files
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
        reports[format] = write(
            *export.function(f),
            path,
            image_shape=nets.SHAPE,
            name="toy",
            classes=CLASSES,
        )
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
        getattr(export, format)(
            *export.function(lambda x: x.mean((1, 2))), path, image_shape=nets.SHAPE
        )
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
        write(*export.function(never), tmp_path / "none" / "a", image_shape=nets.SHAPE)
    with pytest.raises(ValueError, match="directory"):
        write(*export.function(never), tmp_path, image_shape=nets.SHAPE)
    with pytest.raises(ValueError, match=r"inputs must be \[n, 8, 8, 3\]"):
        write(
            *export.function(never),
            tmp_path / "a",
            image_shape=nets.SHAPE,
            inputs=np.zeros((2, 8, 8, 1)),
        )
    with pytest.raises(ValueError, match="image_shape"):
        write(*export.function(never), tmp_path / "a", image_shape=(8, 8.5, 3))
    with pytest.raises(TypeError, match="colour"):
        write(*export.function(f), tmp_path / "a", image_shape=nets.SHAPE, colour=3)
    assert not list(tmp_path.iterdir())


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "a.onnx"
    store.write_file(path, b"before")

    def fails(*_):
        raise OSError("full")

    monkeypatch.setattr(store.os, "fsync", fails)
    with pytest.raises(OSError, match="full"):
        store.write_file(path, b"after")
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
    report = export.stablehlo(*export.function(f), path, image_shape=nets.SHAPE)
    assert report.integer_ops == {"dot_general": 1} and report.float_ops == {}
    assert kernel.size < report.bytes < 1.1 * kernel.size + 4000
    np.testing.assert_array_equal(export.load(path)(nets.images()), f(nets.images()))


@pytest.mark.bad_input
def test_stablehlo_refuses_what_is_marked_for_a_converter(tmp_path):
    net = export.function(nets.int8_net())
    with pytest.raises(ValueError, match="give the quantized network itself"):
        export.stablehlo(*net, tmp_path / "a", image_shape=nets.SHAPE)


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
    export.onnx(
        *export.function(f),
        path,
        image_shape=split.images.shape[1:],
        classes=split.classes,
    )
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
        *export.function(nets.float_net()),
        folder / "timed.onnx",
        image_shape=nets.SHAPE,
        measure=True,
    )
    assert report.milliseconds > 0


def test_reports_say_what_was_written(written):
    text = str(written[2]["tflite"])
    assert "net.tflite" in text and "0 integer and 7 float operations" in text


def test_a_stablehlo_file_does_not_depend_on_the_caller(tmp_path):
    def write(path, depth):
        if depth:
            return write(path, depth - 1)
        return export.stablehlo(
            *export.function(nets.float_net()), path, image_shape=nets.SHAPE
        )

    for depth in (0, 7):
        write(tmp_path / f"{depth}", depth)
    assert (tmp_path / "0").read_bytes() == (tmp_path / "7").read_bytes()


@pytest.fixture(scope="module")
def quantized():
    """A small network with pooling, calibrated, and some images."""
    net, shape = cnn([[4], [8]], hidden=[8], classes=5), (8, 8, 1)
    x = np.random.default_rng(0).uniform(size=(8, *shape)).astype(np.float32)
    config = quantize.Quantization()
    folded = quantize.fold(net, *net.init(jax.random.key(0), x), shape)
    net, params, state = quantize.quantized(*folded, config, shape)
    state = quantize.calibrate(net, params, state, [x])
    return folded, (net, params, state), config, x


@pytest.mark.parametrize("format", FORMATS)
def test_a_quantized_network_becomes_integer_throughout(quantized, format, tmp_path):
    _, made, config, x = quantized
    path = tmp_path / "net"
    report = getattr(export, format)(*made, path, inputs=x, batch=1, quantize=config)
    assert not report.float_ops and report.steps <= 1
    net, params, state = made
    wanted = net.apply(params, state, x, train=False)[0].logits
    got = export.load(path)(x)
    assert np.abs(got - wanted).max() == pytest.approx(report.difference, abs=1e-6)


def test_integers_need_not_be_asked_for(quantized, tmp_path):
    _, made, _, x = quantized
    report = export.onnx(*made, tmp_path / "net", inputs=x, batch=1)
    assert report.integer_ops["QLinearConv"] == 2 and not report.float_ops


@pytest.mark.bad_input
def test_what_is_quantized_is_not_written_in_float(quantized, tmp_path):
    folded, made, config, x = quantized
    with pytest.raises(ValueError, match="net is quantized.*export.tflite"):
        export.inference(*made)
    with pytest.raises(ValueError, match="net is not quantized.*calibrate"):
        export.onnx(*folded, tmp_path / "a", inputs=x, quantize=config)
    with pytest.raises(ValueError, match="state has the 'ranges' of a quantized"):
        export.onnx(*folded[:2], made[2], tmp_path / "a", inputs=x)
    other = quantize.Quantization(symmetric=True)
    with pytest.raises(ValueError, match="configuration that net was quantized with"):
        export.onnx(*made, tmp_path / "a", inputs=x, quantize=other)
    with pytest.raises(ValueError, match="static ranges were never measured"):
        fresh = quantize.quantized(*folded, config, x.shape[1:])
        export.onnx(*fresh, tmp_path / "a", inputs=x)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format", FORMATS)
def test_a_file_that_computes_something_else_is_not_left(
    written, quantized, tmp_path, monkeypatch, format
):
    """Whatever goes wrong in a converter or a runtime."""
    _, made, _, x = quantized
    write, path = getattr(export, format), tmp_path / "a"
    path.write_bytes(b"before")
    module = {"tflite": _tflite, "onnx": _onnx, "stablehlo": _stablehlo}[format]
    opened = module.runner

    def wrong(*args):
        run, notes = opened(*args)
        return lambda images: run(images) + 0.1, notes

    def broken(*args):
        run, notes = opened(*args)
        return lambda images: run(images) * np.nan, notes

    monkeypatch.setattr(module, "runner", wrong)
    toy = export.function(nets.float_net())
    for how in ({}, {"tolerance": 0.01}):
        with pytest.raises(ValueError, match="differs .* by 0.1, .*pass tolerance="):
            write(*toy, path, image_shape=nets.SHAPE, **how)
    with pytest.raises(ValueError, match=r"differs .* steps .*pass steps="):
        write(*made, path, inputs=x, batch=1)
    monkeypatch.setattr(module, "runner", broken)
    with pytest.raises(ValueError, match="differs .* by nan.* find the layer"):
        write(*toy, path, image_shape=nets.SHAPE)  # no tolerance would help
    monkeypatch.setattr(module, "runner", wrong)
    assert path.read_bytes() == b"before"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    report = write(*made, path, inputs=x, batch=1, steps=50)
    assert 5 < report.steps < 50
    assert write(*toy, path, image_shape=nets.SHAPE, tolerance=0.5).difference > 0.09
    report = write(*toy, path, image_shape=nets.SHAPE, tolerance=None)
    assert report.difference is None and "not known" in str(report)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.bad_input
def test_numbers_that_are_not_finite_are_named(quantized, tmp_path, format, bad):
    folded, (net, params, state), _, x = quantized
    write, path = getattr(export, format), tmp_path / "a"
    spoilt = lambda tree, *at: jax.tree_util.tree_map_with_path(
        lambda keys, leaf: (
            np.full_like(leaf, bad) if tuple(k.key for k in keys) == at else leaf
        ),
        tree,
    )
    layer = next(name for name in params if "kernel" in params[name])
    broken = spoilt(params, layer, "kernel")
    with pytest.raises(ValueError, match=f"params/{layer}/kernel is not finite"):
        write(net, broken, state, path, inputs=x, batch=1)
    broken = spoilt(folded[1], layer, "kernel")
    with pytest.raises(ValueError, match=f"params/{layer}/kernel is not finite"):
        write(folded[0], broken, folded[2], path, inputs=x, batch=1)
    tensor = next(iter(state["ranges"]))
    broken = spoilt(state, "ranges", tensor, "high")
    with pytest.raises(ValueError, match=f"state/ranges/{tensor}/high is not finite"):
        write(net, params, broken, path, inputs=x, batch=1)
    with pytest.raises(ValueError, match="inputs is not finite"):
        write(net, params, state, path, inputs=np.full_like(x, bad), batch=1)
    kernel = np.full((3, 2), bad, np.float32)
    net = export.function(lambda x: x.mean((1, 2)) @ kernel)
    with pytest.raises(ValueError, match=r"\(3, 2\) is not finite.*dot_general"):
        write(*net, path, image_shape=nets.SHAPE, batch=1)
    assert not list(tmp_path.iterdir())


@pytest.mark.bad_input
def test_outputs_that_are_not_finite_are_refused(tmp_path):
    net = export.function(lambda x: jax.numpy.log(-jax.numpy.abs(x)).mean((1, 2)))
    with pytest.raises(ValueError, match="network's own outputs are not finite"):
        export.onnx(*net, tmp_path / "a", image_shape=nets.SHAPE)
    assert not list(tmp_path.iterdir())


@pytest.mark.bad_input
def test_what_cannot_be_compared_is_not_written(tmp_path):
    net, path = export.function(nets.float_net()), tmp_path / "a"
    how = {"image_shape": nets.SHAPE, "platforms": ["tpu"]}
    with pytest.raises(ValueError, match="cannot be compared.*tolerance=None"):
        export.stablehlo(*net, path, **how)
    assert export.stablehlo(*net, path, **how, tolerance=None).difference is None


KILLED = """
import os, signal, sys
from jaxkd import store
path = sys.argv[1]
store.write_file(path, b"new", lambda _: os.kill(os.getpid(), signal.SIGKILL))
"""


def test_what_a_killed_process_left_goes_with_the_next_file(tmp_path):
    path = tmp_path / "a.tflite"
    ran = subprocess.run([sys.executable, "-c", KILLED, str(path)])
    assert ran.returncode == -9
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(f"{store.PREFIX}a.tflite-")
    own = tmp_path / ".a.tflite.notes"
    own.write_text("of the user")
    # What another process is still writing stays.
    inside = lambda alive: store.write_file(tmp_path / "b", b"two")
    store.write_file(path, b"one", inside)
    assert {p.name for p in tmp_path.iterdir()} == {"a.tflite", "b", own.name}
    assert path.read_bytes() == b"one"
