"""The ONNX emitter: every rule against JAX, in ONNX Runtime."""

import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxkd import export
from jaxkd.compress import quantize
from jaxkd.export import _onnx, program
from jaxkd.models import from_linen, max_pool
from tests.export import nets

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

X = nets.images(3)


def runs(f, x=X, batch=None):
    """The logits of `f` by ONNX Runtime, and the model."""
    closed = program.trace(f, x.shape[1:], batch)
    model = _onnx.emit(closed)
    run, _ = _onnx.runner(model.SerializeToString(), 1)
    return run(x), model


def kinds(model):
    return [made.op_type for made in model.graph.node]


def kernel(*shape):
    return np.random.default_rng(5).normal(size=shape).astype(np.float32)


def conv(x, w, strides=(1, 1), padding="SAME", dilation=(1, 1), groups=1):
    return lax.conv_general_dilated(
        x, w, strides, padding, None, dilation, nets.LAYOUT, groups
    )


def squeeze_excite(x):
    s = x.mean((1, 2), keepdims=True)
    s = jax.nn.sigmoid(conv(s, kernel(1, 1, 3, 3)))
    return (x * s).sum((1, 2))


def shuffle(x):
    y = conv(x, kernel(1, 1, 3, 6))
    b, h, w, c = y.shape
    y = y.reshape(b, h, w, 2, c // 2).swapaxes(-1, -2).reshape(b, h, w, c)
    return (y * np.arange(6, dtype=np.float32).reshape(1, 1, 1, 6)).mean((1, 2))


def attention(x):
    t = x.reshape(x.shape[0], 64, 3)
    a = jax.nn.softmax(jnp.einsum("bqc,bkc->bqk", t, t), -1)
    return jnp.einsum("bqk,bkc->bqc", a, t)[:, 1]


def heads(x):
    t = x.reshape(x.shape[0], 32, 2, 3)
    return jax.nn.dot_product_attention(t, t, 2 * t).sum((1, 2))


def half(x):
    first, second = jnp.split(x @ kernel(3, 4), 2, axis=-1)
    return (first - second).mean((1, 2))


FUNCTIONS = {
    "strided": lambda x: conv(x, kernel(3, 3, 3, 4), (2, 1)).mean((1, 2)),
    "uneven padding": lambda x: conv(
        x, kernel(2, 3, 3, 4), (1, 2), ((0, 1), (2, 0))
    ).sum((1, 2)),
    "dilated": lambda x: conv(x, kernel(3, 2, 3, 4), dilation=(2, 3)).sum((1, 2)),
    "depthwise": lambda x: conv(x, kernel(3, 3, 1, 6), groups=3).sum((1, 2)),
    "grouped": lambda x: conv(
        conv(x, kernel(1, 1, 3, 4)), kernel(3, 3, 2, 6), groups=2
    ).sum((1, 2)),
    "flatten": lambda x: x.reshape(x.shape[0], -1) @ kernel(192, 4),
    "flatten without layers": lambda x: jnp.ravel(x).reshape(x.shape[0], -1),
    "transposed kernel": lambda x: lax.dot_general(
        x.mean((1, 2)), kernel(5, 3), (((1,), (1,)), ((), ()))
    ),
    "max pool": lambda x: max_pool(x, (2, 2)).sum((1, 2)),
    "odd tiles": lambda x: max_pool(x, (3, 3)).sum((1, 2)),
    "padded max pool": lambda x: nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1))).sum(
        (1, 2)
    ),
    "padded mean pool": lambda x: nn.avg_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1))).sum(
        (1, 2)
    ),
    "sum pool": lambda x: lax.reduce_window(
        x, 0.0, lax.add, (1, 2, 3, 1), (1, 1, 2, 1), "VALID"
    ).sum((1, 2)),
    "hard swish": lambda x: jax.nn.hard_swish(x).mean((1, 2)),
    "silu": lambda x: jax.nn.silu(x).mean((1, 2)),
    "gelu": lambda x: jax.nn.gelu(x, approximate=False).mean((1, 2)),
    "gelu by tanh": lambda x: jax.nn.gelu(x).mean((1, 2)),
    "relu6": lambda x: jax.nn.relu6(3 * x).mean((1, 2)),
    "leaky relu": lambda x: jax.nn.leaky_relu(x).mean((1, 2)),
    "elu": lambda x: jax.nn.elu(x).mean((1, 2)),
    "clip": lambda x: jnp.clip(x, -0.5, 0.25).mean((1, 2)),
    "clamp": lambda x: lax.clamp(-0.5, x, 0.25).mean((1, 2)),
    "least": lambda x: jnp.minimum(x, x[:, 3:4]).mean((1, 2)),
    "root": lambda x: jnp.sqrt(x**2 + 1).mean((1, 2)) * lax.rsqrt(1 + x[:, 0, 0] ** 2),
    "power": lambda x: (x**3).mean((1, 2)) - jnp.abs(x).max((1, 2)) - x.min((1, 2)),
    "division": lambda x: 1 / (2 - jnp.exp(-jnp.abs(x)).mean((1, 2))),
    "layer norm": lambda x: jax.nn.standardize(x).sum((1, 2)),
    "squeeze excite": squeeze_excite,
    "shuffle": shuffle,
    "attention": attention,
    "heads": heads,
    "split": half,
    "slice": lambda x: x[:, 1:7, :5].sum((1, 2)),
    "pad": lambda x: jnp.pad(x, ((0, 0), (1, 0), (0, 2), (0, 3))).max((1, 2)),
    "concatenate": lambda x: jnp.concatenate([x, 2 * x, x[..., :1]], -1).mean((1, 2)),
    "stacked": lambda x: jnp.stack([x, -x], 1).sum((2, 3)).reshape(x.shape[0], -1),
    "transpose": lambda x: x.transpose(0, 2, 3, 1).sum((1, 2)),
    "spread": lambda x: jnp.concatenate(
        [jnp.broadcast_to(kernel(1, 1, 1, 3), (x.shape[0], 1, 8, 3)), x], 1
    ).sum((1, 2)),
    "select": lambda x: jnp.where(x > 0.1, x, x * x).mean((1, 2)),
    "types": lambda x: (x.astype(jnp.int32).astype(jnp.float32)).sum((1, 2)),
    "several axes": lambda x: jnp.einsum("bhwc,hck->bwk", x, kernel(8, 3, 4)).sum(1),
    "matrix for each image": lambda x: jnp.einsum("bhwc,bhvc->bwv", x, 2 * x).sum(1),
    "kernel on the left": lambda x: jnp.einsum("kc,bhwc->bhkw", kernel(4, 3), x).sum(
        (1, 3)
    ),
    "several free axes": lambda x: jnp.einsum(
        "bhwc,cde->bhwde", x, kernel(3, 2, 4)
    ).sum((1, 2, 3)),
    "running sum": lambda x: (
        jnp.cumsum(x, 1)[:, 3].sum(1) + lax.cumsum(x, 2, reverse=True)[:, :, 2].sum(1)
    ),
    "log1p": lambda x: jnp.log1p(jnp.abs(x)).mean((1, 2)),
    "unequal": lambda x: jnp.where(jnp.round(x) != 0, x, 1).mean((1, 2)),
    "reversed": lambda x: (
        (x[:, ::-1] * x + jnp.flip(x, (2, 3))).sum((1, 2))
        * np.arange(3, dtype=np.float32)[None]
    ),
    "tiled": lambda x: jnp.tile(x, (1, 2, 1, 3)).sum((1, 2)),
    "tiled for each image": lambda x: (
        jnp.tile(kernel(1, 8, 8, 3), (x.shape[0], 1, 1, 1)) * x
    ).sum((1, 2)),
    "known places": lambda x: x[:, np.array([3, 1, 1])][..., np.array([2, 0])].sum(
        (1, 2)
    ),
    "pairs of places": lambda x: x[:, np.array([3, 1]), np.array([0, 7])].sum(1),
    "rows of a table": lambda x: jnp.take(
        kernel(5, 3), jnp.clip(jnp.round(x[..., 0]) + 2, 0, 4).astype(jnp.int32), axis=0
    ).sum((1, 2)),
    "remainder": lambda x: lax.rem(x, jnp.float32(0.3)).mean((1, 2)),
    "waves": lambda x: (jnp.sin(x) * jnp.cos(x)).mean((1, 2)),
    "loop": lambda x: lax.scan(
        lambda c, row: (jnp.tanh(c @ kernel(3, 3) + row), c[:, :1]),
        jnp.zeros((x.shape[0], 3)),
        x[:, :, 0].swapaxes(0, 1),
        reverse=True,
    )[0],
    "transposed": lambda x: lax.conv_transpose(
        x, kernel(3, 2, 3, 4), (2, 3), "SAME", dimension_numbers=nets.LAYOUT
    ).sum((1, 2)),
    "pixel shuffle": lambda x: (
        (x[..., :1] * jnp.arange(4.0).reshape(1, 1, 1, 4))
        .reshape(x.shape[0], 8, 8, 2, 2, 1)
        .transpose(0, 1, 3, 2, 4, 5)
        .reshape(x.shape[0], 16, 16, 1)[:, 5, 3:8]
        .sum(2)
    ),
    "softmax": lambda x: jax.nn.softmax(x.mean((1, 2))),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_rule_computes_what_jax_does(name):
    f = FUNCTIONS[name]
    logits, _ = runs(f)
    np.testing.assert_allclose(logits, f(X), atol=2e-5)
    np.testing.assert_allclose(runs(f, batch=3)[0], f(X), atol=2e-5)


def test_strided_slices():
    f = lambda x: x[:, 1:7:2, ::3].sum((1, 2))
    np.testing.assert_allclose(runs(f, batch=3)[0], f(X), atol=1e-5)


def test_images_are_transposed_once_and_the_shuffle_in_place():
    _, model = runs(lambda x: jax.nn.relu(conv(x, kernel(3, 3, 3, 4))).mean((1, 2)))
    assert kinds(model) == ["Transpose", "Conv", "Relu", *POOL, "Identity"]
    # The channels' shuffle is one more; no other comes with its two reshapes.
    assert kinds(runs(shuffle)[1]).count("Transpose") == 2


KERNEL = kernel(3, 3, 3, 4)
POOL = ["GlobalAveragePool", "Squeeze"]


def test_biases_of_two_branches_find_their_own_convolutions():
    a, b = kernel(1, 1, 3, 4), 2 * kernel(3, 3, 3, 4)
    one, two = np.arange(4.0, dtype=np.float32).reshape(2, 1, 1, 1, 2).repeat(2, -1)

    def f(x):
        left, right = conv(x, a), conv(x, b)
        return (jax.nn.relu(left + one) * jax.nn.relu(right + two)).mean((1, 2))

    logits, model = runs(f)
    np.testing.assert_allclose(logits, f(X), rtol=1e-4)
    assert "Add" not in kinds(model)


def test_int8_is_integer_throughout(tmp_path):
    for per_channel in (True, False):
        f = nets.int8_net(per_channel=per_channel)
        report = export.onnx(
            *export.function(f),
            tmp_path / "a.onnx",
            image_shape=nets.SHAPE,
            inputs=nets.images(),
        )
        assert report.float_ops == {}
        assert report.integer_ops["QLinearConv"] == 3
        assert report.integer_ops["QGemm"] == report.integer_ops["QLinearAdd"] == 1
        assert report.steps <= 1
        assert report.float_bytes > 4 * (3 * 27 * 8 + 9 * 64 + 72 + 40) / 3


def test_four_bits_are_kept_to_sixteen_levels(tmp_path):
    """Integers beyond [-8, 7] would make what 4 bits cut off."""

    def f(x):
        return nets.marked(x, 0.1, dtype="i4").sum((1, 2))

    logits, _ = runs(f)
    np.testing.assert_allclose(logits, f(X), atol=1e-4)
    bits = nets.int8_net(bits="i4")
    report = export.onnx(
        *export.function(bits),
        tmp_path / "4.onnx",
        image_shape=nets.SHAPE,
        inputs=nets.images(),
    )
    assert report.steps <= 1.01 and not report.float_ops


def test_what_stays_float_is_an_error_that_lists_it(tmp_path):
    path = tmp_path / "a.onnx"
    path.write_bytes(b"before")

    def f(x):  # two quantized products, and between them what has no integer kernel
        x = nets.marked(conv(nets.marked(x, 0.03), nets.marked(KERNEL, 0.02)), 0.1)
        x = nets.marked(jnp.tanh(x).mean((1, 2)), 0.01)
        return nets.marked(x @ nets.marked(kernel(4, 5), 0.02), 0.1)

    with pytest.raises(
        ValueError, match="2 quantized products 2 became integer.* Tanh"
    ):
        export.onnx(*export.function(f), path, image_shape=nets.SHAPE)
    report = export.onnx(
        *export.function(f),
        tmp_path / "b.onnx",
        image_shape=nets.SHAPE,
        float_ops=("Tanh", "GlobalAveragePool"),
    )
    assert report.float_ops["Tanh"] == 1
    with pytest.raises(ValueError, match=r"float_ops=\['GlobalAveragePool', 'Tanh'\]"):
        export.onnx(
            *export.function(f),
            tmp_path / "c.onnx",
            image_shape=nets.SHAPE,
            float_ops=("Tanh",),
        )
    (tmp_path / "b.onnx").unlink()
    assert path.read_bytes() == b"before" and len(list(tmp_path.iterdir())) == 1
    f = nets.int8_net(skip=("stem",))  # a layer left alone, on purpose
    report = export.onnx(
        *export.function(f), path, image_shape=nets.SHAPE, inputs=nets.images()
    )
    assert sum(report.float_ops.values()) >= 1
    assert report.integer_ops["QLinearConv"] == 1


@pytest.mark.bad_input
def test_unsupported_operations_are_named_with_their_place(tmp_path):
    class Odd(nn.Module):
        @nn.compact
        def __call__(self, x):
            return lax.cummax(x.mean((1, 2)), 1)

    class Outer(nn.Module):
        @nn.compact
        def __call__(self, x):
            return Odd(name="strange")(x)

    f = lambda x: Outer().apply({}, x)
    with pytest.raises(NotImplementedError, match="'cummax'.*strange"):
        export.onnx(*export.function(f), tmp_path / "a.onnx", image_shape=nets.SHAPE)
    # The operation is known, this use of it is not.
    turned = lambda x: conv(x, kernel(3, 3, 3, 4), padding=((-1, 0), (0, 0))).sum(
        (1, 2)
    )
    with pytest.raises(NotImplementedError, match="conv_general_dilated.*negative"):
        export.onnx(
            *export.function(turned), tmp_path / "a.onnx", image_shape=nets.SHAPE
        )
    scales = lambda x: nets.marked(x, [0.1, 0.2, 0.3], axis=3).sum((1, 2))
    with pytest.raises(NotImplementedError, match="each channel"):
        export.onnx(
            *export.function(scales), tmp_path / "a.onnx", image_shape=nets.SHAPE
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.bad_input
def test_a_missing_package_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r"pip install 'jaxkd-distill\[onnx\]'"):
        export.onnx(
            *export.function(nets.float_net()),
            tmp_path / "a.onnx",
            image_shape=nets.SHAPE,
        )


def test_without_the_runtime_nothing_is_written_unseen(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    net, path = export.function(nets.float_net()), tmp_path / "a.onnx"
    with pytest.raises(ImportError, match=r"onnxruntime.*pip install"):
        export.onnx(*net, path, image_shape=nets.SHAPE)
    report = export.onnx(*net, path, image_shape=nets.SHAPE, tolerance=None)
    assert report.float_ops["Conv"] == 3 and report.difference is None


class Cumulative(nn.Module):
    """Maxout, pixel shuffle and a cumulative sum between quantized convolutions."""

    @nn.compact
    def __call__(self, x, train=False):
        y = nn.Conv(16, (3, 3))(x)
        y = nn.relu(y.reshape(*y.shape[:-1], 8, 2).max(-1))
        n, h, w, c = y.shape
        y = nn.relu(nn.Conv(16, (3, 3))(y)).reshape(n, h, w, 2, 2, 4)
        y = y.transpose(0, 1, 3, 2, 4, 5).reshape(n, 2 * h, 2 * w, 4)
        y = jnp.cumsum(nn.Conv(8, (3, 3))(y), 1)
        return nn.Conv(4, (3, 3), strides=2)(y).max((1, 2))


def test_a_quantized_file_is_the_network_with_exact_sums(tmp_path):
    """On images that it was not compared on, too: only float32's sums differ."""
    draw = lambda n: np.random.default_rng(n).normal(size=(n, 8, 8, 3))
    x, others = draw(16).astype(np.float32), (2 * draw(200)).astype(np.float32)
    net = from_linen(Cumulative())
    made = quantize.quantized(
        net, *net.init(jax.random.key(0), x), quantize.Quantization(), (8, 8, 3)
    )
    net, params, state = made
    state = quantize.calibrate(net, params, state, [x])
    path, how = tmp_path / "a", {"inputs": x, "float_ops": "any"}
    report = export.onnx(net, params, state, path, **how)
    assert report.float_ops["CumSum"] == 1
    run = lambda p, s, x: net.apply(p, s, x, train=False)[0].logits
    single = np.asarray(jax.jit(run)(params, state, others))
    with jax.enable_x64(True):
        double = lambda a: a.astype(np.float64) if a.dtype == np.float32 else a
        doubled = [
            jax.tree.map(lambda a: double(np.asarray(a)), t)
            for t in (params, state, others)
        ]
        exact = np.asarray(jax.jit(run)(*doubled))
    assert exact.dtype == np.float64
    step = np.diff(np.unique(np.round(single, 5)))
    step = step[step > 1e-4].min()
    got = export.load(path)(others)
    assert np.ptp(got) > 20 * step
    # The scale between two grids is itself of float32: one image in a hundred.
    apart = np.abs(got - exact).max(1) / step
    assert apart.max() < 1.01 and np.mean(apart > 0.01) <= 0.01
    assert np.abs(got - single).max() <= 5.01 * step
