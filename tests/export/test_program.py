"""The plain program: equal to the function, without what only training needs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxkd import export
from jaxkd.export import census, program
from jaxkd.models import cnn, max_pool
from jaxkd.models.convolution import conv_general_dilated
from tests.export import nets

X = nets.images(3)


def primitives(f, x=X):
    return [e.primitive.name for e in jax.make_jaxpr(export.plain(f))(x).eqns]


def assert_equal(f, x=X, atol=1e-5):
    np.testing.assert_allclose(export.plain(f)(x), f(x), atol=atol)


def norm(x, mean, var, gamma, beta):
    broad = lambda a: jnp.asarray(a, jnp.float32).reshape(1, 1, 1, -1)
    y = (x - broad(mean)) * (lax.rsqrt(broad(var) + 1e-5) * broad(gamma))
    return y + broad(beta)


def test_batch_norm_becomes_the_kernel_and_one_bias():
    kernel, bias = nets.kernels()["stem"]
    moments = np.linspace(0.5, 2, 32).reshape(4, 8)

    def f(x):
        y = conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=nets.LAYOUT
        )
        return jax.nn.relu(norm(y + bias.reshape(1, 1, 1, -1), *moments)).mean((1, 2))

    assert_equal(f)
    assert primitives(f)[:3] == ["conv_general_dilated", "add", "max"]
    # By hand: the kernel times gamma / sqrt(var + eps).
    closed = jax.make_jaxpr(export.plain(f))(X)
    (stored,) = (c for c in closed.consts if np.ndim(c) == 4 and c.shape[0] == 3)
    mean, var, gamma, _ = moments
    np.testing.assert_allclose(stored, kernel * gamma / np.sqrt(var + 1e-5), rtol=1e-5)


def stem(x):
    """A convolution that nothing is added to."""
    kernel, _ = nets.kernels()["stem"]
    return conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=nets.LAYOUT
    )


def test_a_convolution_that_is_also_read_raw_is_computed_once_and_not_scaled():
    def f(x):
        y = stem(x)
        return (y + norm(y, *np.full((4, 8), 2.0))).mean((1, 2))

    assert_equal(f)
    assert primitives(f).count("conv_general_dilated") == 1


def test_silu_of_a_scaled_convolution_computes_it_once():
    f = lambda x: jax.nn.silu(norm(stem(x), *np.full((4, 8), 2.0)))
    assert_equal(f)
    assert primitives(f).count("conv_general_dilated") == 1


def test_batch_norm_before_a_convolution_stays_as_scale_and_shift():
    moments = np.linspace(0.5, 2, 12).reshape(4, 3)
    f = lambda x: jax.nn.relu(norm(x, *moments)).mean((1, 2))
    assert_equal(f)
    assert primitives(f)[:3] == ["mul", "add", "max"]


def test_division_and_subtraction_by_channel():
    c = np.asarray([1.0, 2.0, 4.0], np.float32).reshape(1, 1, 1, 3)
    assert_equal(lambda x: ((x - c) / c * 3).mean((1, 2)))
    # Not commutative: what is divided or subtracted from stays so.
    assert_equal(lambda x: (c - x).mean((1, 2)))
    assert_equal(lambda x: (c / (x**2 + 1)).mean((1, 2)))


@pytest.mark.parametrize("batch", [3, None])
def test_tiles_become_one_pooling(batch):
    f = lambda x: max_pool(x, (2, 2)).sum((1, 2))
    names = [e.primitive.name for e in program.trace(f, nets.SHAPE, batch).eqns]
    assert "reduce_window_max" in names
    assert not {"max", "gather", "squeeze"} & set(names)
    assert_equal(f)
    odd = lambda x: max_pool(x[:, :7, 1:], (2, 3)).sum((1, 2))
    assert_equal(odd)


def test_nested_calls_are_written_in_place():
    inner = jax.jit(lambda x: jax.checkpoint(jax.nn.relu6)(x) * 2)
    f = lambda x: jax.jit(inner)(x).sum((1, 2))
    assert set(primitives(f)) == {"max", "min", "mul", "reduce_sum"}
    assert_equal(f)


def test_constants_of_narrow_integers_stay_narrow():
    kernel = np.arange(-128, 128, dtype=np.int8).reshape(4, 64)

    def f(x):
        total = jnp.asarray(kernel).astype(jnp.int32).sum(0, keepdims=True)
        q = x.astype(jnp.int8)
        y = lax.dot_general(
            q, kernel, (((1,), (0,)), ((), ())), preferred_element_type=jnp.int32
        )
        return (y + total).astype(jnp.float32)

    x = np.ones((2, 4), np.float32)
    closed = jax.make_jaxpr(export.plain(f))(x)
    assert {c.dtype for c in closed.consts if np.size(c) == 256} == {np.dtype("int8")}
    # The sum over the kernel is a number by now, not a reduction to be run.
    assert "reduce_sum" not in [e.primitive.name for e in closed.eqns]
    np.testing.assert_array_equal(
        export.plain(f)(x), 2 * kernel.astype(np.float32).sum(0) * np.ones((2, 1))
    )


def test_stored_kernels_of_integers_stay_stored():
    """Not as the floats that they are multiplied out to."""
    kernel = np.arange(-128, 128, dtype=np.int8).reshape(4, 64)
    f = lambda x: x @ (jnp.asarray(kernel).astype(jnp.float32) * 0.1)
    closed = jax.make_jaxpr(export.plain(f))(np.ones((2, 4), np.float32))
    assert {c.dtype for c in closed.consts if np.size(c) == 256} == {np.dtype("int8")}
    assert_equal(f, np.ones((2, 4), np.float32))


def test_inference_gives_the_logits_of_a_net():
    net = cnn(((4,),), hidden=(6,), classes=5)
    params, state = net.init(jax.random.key(0), X)
    f = export.inference(net, params, state)
    out, _ = net.apply(params, state, X, train=False)
    np.testing.assert_array_equal(f(X), out.logits)
    assert_equal(f)


def test_marks_survive_and_are_counted():
    closed = program.trace(nets.int8_net(), nets.SHAPE, 1)
    wanted = census.of(closed)
    assert (wanted.integer, wanted.weight_only, wanted.real) == (4, 0, 0)
    assert wanted.step == pytest.approx(
        float(list(census.fake_quants(closed))[-1][1]["scale"][0])
    )
    weights = census.of(program.trace(nets.int8_net(weights_only=True), nets.SHAPE, 1))
    assert (weights.integer, weights.weight_only, weights.step) == (0, 4, None)
    partly = census.of(program.trace(nets.int8_net(skip=("head",)), nets.SHAPE, 1))
    assert (partly.integer, partly.real) == (3, 1)
    floats = census.of(program.trace(nets.float_net(), nets.SHAPE, 1))
    assert (floats.integer, floats.real) == (0, 4)


@pytest.mark.bad_input
def test_what_cannot_be_traced_says_what_to_do():
    with pytest.raises(ValueError, match="pass batch=1"):
        program.trace(lambda x: x.reshape(len(x), -1), nets.SHAPE, None)
    with pytest.raises(
        ValueError, match=r"does not take images \[1, 8, 8, 4\], .* says"
    ):
        program.trace(nets.float_net(), (8, 8, 4), None)
    with pytest.raises(ValueError, match="must return logits"):
        program.trace(lambda x: (x, x), nets.SHAPE, 1)
    with pytest.raises(ValueError, match=r"must return logits \[batch"):
        program.trace(lambda x: x.sum(), nets.SHAPE, 1)
    with pytest.raises(ValueError, match="image_shape"):
        program.trace(nets.float_net(), (8, 0, 3), 1)
    with pytest.raises(ValueError, match="batch"):
        program.trace(nets.float_net(), nets.SHAPE, 0)


@pytest.mark.parametrize("place", [0, 1, -1])
def test_one_place_of_any_number_of_images(place, tmp_path):
    f = lambda x: x[:, place, place]
    path = tmp_path / "place.jaxexport"
    export.stablehlo(*export.function(f), path, image_shape=(2, 2, 3))
    images = np.random.default_rng(0).normal(size=(5, 2, 2, 3)).astype(np.float32)
    np.testing.assert_array_equal(export.load(path)(images), images[:, place, place])


TRANSPOSED = [  # kernel, strides, padding, dilation
    ((3, 3), (2, 2), "SAME", None),
    ((2, 4), (3, 2), "VALID", None),
    ((3, 2), (1, 2), "VALID", (2, 1)),
    ((4, 3), (3, 3), ((2, 3), (0, 1)), None),
    ((2, 2), (4, 3), "SAME", None),
]


@pytest.mark.parametrize("size,strides,padding,dilation", TRANSPOSED)
def test_transposed_convolutions_become_convolutions(size, strides, padding, dilation):
    kernel = np.random.default_rng(0).normal(size=(*size, 3, 4)).astype(np.float32)
    bias = np.arange(4, dtype=np.float32).reshape(1, 1, 1, 4)

    def f(x):
        y = lax.conv_transpose(
            x, kernel, strides, padding, dilation, dimension_numbers=nets.LAYOUT
        )
        return jax.nn.relu(y + bias)

    x = X[:2, :5]
    closed = program.trace(f, x.shape[1:], 2)
    np.testing.assert_allclose(program.call(closed, x), f(x), atol=1e-5)
    (made,) = (e for e in closed.eqns if e.primitive.name == "conv_general_dilated")
    assert made.params["lhs_dilation"] == (1, 1)
    assert max(len(v.aval.shape) for e in closed.eqns for v in e.outvars) <= 5


def test_loops_share_their_constants():
    kernel = np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32)

    def step(carry, row):
        both = jnp.concatenate([kernel, kernel], 1)  # one constant for all steps
        return jnp.tanh((carry + row) @ both)[:, :3], None

    def f(x):
        return lax.scan(step, x[:, 0, 0], x[:, :, 0].swapaxes(0, 1))[0]

    closed = program.trace(f, nets.SHAPE, 3)
    np.testing.assert_allclose(program.call(closed, X), f(X), atol=1e-5)
    assert sum(np.size(c) for c in closed.consts) == 18
    names = [e.primitive.name for e in closed.eqns]
    assert names.count("dot_general") == 8 and "scan" not in names
    loop = [
        e.primitive.name for e in program.trace(f, nets.SHAPE, 3, target="xla").eqns
    ]
    assert "scan" in loop


@pytest.mark.bad_input
def test_loops_too_long_to_be_written_out_are_refused():
    f = lambda x: lax.scan(lambda c, _: (c * 0.5, None), x[:, 0, 0], length=5000)[0]
    with pytest.raises(NotImplementedError, match=r"5000 steps.*stablehlo"):
        program.trace(f, nets.SHAPE, 1)


def test_views_of_six_axes_have_at_most_five():
    def f(x):  # pixel shuffle, channels outermost
        y = jnp.tile(x, (1, 1, 1, 4)).reshape(x.shape[0], 8, 8, 3, 2, 2)
        y = y.transpose(0, 1, 4, 2, 5, 3).reshape(x.shape[0], 16, 16, 3)
        return y[:, 3:9, 5:6].sum((1, 2))

    closed = program.trace(f, nets.SHAPE, 3)
    np.testing.assert_allclose(program.call(closed, X), f(X), atol=1e-5)
    assert max(len(v.aval.shape) for e in closed.eqns for v in e.outvars) <= 5


def test_what_is_never_chosen_is_not_written():
    f = lambda x: x.std((1, 2))  # where(n > 0, the variance, NaN)
    closed = program.trace(f, nets.SHAPE, 3)
    census.check_finite(closed)
    assert all(e.primitive.name != "select_n" for e in closed.eqns)
    np.testing.assert_allclose(program.call(closed, X), f(X), atol=1e-5)
    nan = lambda x: jnp.where(np.full(3, False), x.sum((1, 2)), np.full(3, np.nan))
    with pytest.raises(ValueError, match="is not finite"):
        census.check_finite(program.trace(lambda x: nan(x) + x[:, 0, 0], (8, 8, 3), 1))
