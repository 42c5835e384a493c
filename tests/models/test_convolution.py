"""Our convolution is lax's: in value, in gradient, and as a program for inference."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export, lax
from jax.test_util import check_grads

from jaxkd import cost, jaxpr
from jaxkd.models import convolution
from jaxkd.models.convolution import (
    LAYOUT,
    conv_general_dilated,
    fast_inference,
    kernel_gradient,
    plain_convolutions,
)
from tests.lowering import CHOICE, lower, operations, primitives

# inputs, outputs, groups, kernel, strides, padding, dilation: each row one new thing
CASES = {
    "cut_g": (4, 3, 1, (3, 3), (1, 1), "SAME", (1, 1)),
    "cut_x": (3, 5, 1, (3, 3), (1, 1), "SAME", (1, 1)),
    "pointwise": (4, 5, 1, (1, 1), (1, 1), "VALID", (1, 1)),
    "even_kernel": (3, 2, 1, (2, 4), (1, 1), "SAME", (1, 1)),
    "explicit_padding": (3, 2, 1, (3, 3), (1, 1), ((0, 3), (2, 1)), (1, 1)),
    "cropping": (3, 2, 1, (3, 3), (1, 1), ((-1, 0), (1, -1)), (1, 1)),
    "wide_padding": (3, 2, 1, (1, 2), (1, 1), ((2, 3), (2, 2)), (1, 1)),
    "strided": (3, 4, 1, (3, 3), (2, 2), "SAME", (1, 1)),
    "strided_remainder": (4, 3, 1, (2, 3), (3, 2), "VALID", (1, 1)),
    "strided_pointwise": (3, 4, 1, (1, 1), (2, 2), "VALID", (1, 1)),
    "dilated": (3, 2, 1, (3, 3), (1, 1), "SAME", (2, 3)),
    "dilated_strided": (2, 3, 1, (3, 2), (2, 1), ((1, 2), (0, 3)), (2, 1)),
    "grouped": (6, 4, 2, (3, 3), (1, 1), "SAME", (1, 1)),
    "grouped_strided": (4, 6, 2, (3, 3), (2, 2), "SAME", (1, 1)),
    "depthwise": (4, 4, 4, (3, 3), (1, 1), "SAME", (1, 1)),
    "depthwise_strided": (4, 4, 4, (3, 3), (2, 2), "SAME", (1, 1)),
    "depthwise_multiplier": (3, 6, 3, (3, 3), (1, 1), "SAME", (1, 1)),
}


def drawn(inputs, outputs, groups, kernel, dtype="float32", images=4):
    draw = np.random.default_rng(0).standard_normal
    x = draw((images, 9, 8, inputs))
    w = draw((*kernel, inputs // groups, outputs))
    return jnp.asarray(x, dtype), jnp.asarray(w, dtype)


def bind(conv, strides=(1, 1), padding="SAME", dilation=(1, 1), groups=1):
    return functools.partial(
        conv,
        window_strides=strides,
        padding=padding,
        rhs_dilation=dilation,
        dimension_numbers=LAYOUT,
        feature_group_count=groups,
    )


def value_and_gradients(f, x, w):
    shape = jax.eval_shape(f, x, w).shape
    g = jnp.asarray(np.random.default_rng(1).standard_normal(shape), x.dtype)

    @jax.jit
    def both(x, w, g):
        y, pull = jax.vjp(f, x, w)
        return y, *pull(g)

    return both(x, w, g)


def names(f, *args):
    """Primitives of a function, traced anew."""
    return [*primitives(jaxpr.trace(lambda *args: f(*args), *args))]


ours = bind(conv_general_dilated)
plain = bind(lax.conv_general_dilated)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_value_and_gradients_are_laxs(case, x64, monkeypatch):
    inputs, outputs, groups, kernel, *how = case
    monkeypatch.setattr(convolution, "CHUNK_BYTES", 1)  # one image at a time
    x, w = drawn(inputs, outputs, groups, kernel, "float64")
    got = value_and_gradients(bind(conv_general_dilated, *how, groups), x, w)
    wanted = value_and_gradients(bind(lax.conv_general_dilated, *how, groups), x, w)
    for a, b in zip(got, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("images", [1, 6, 7])
def test_any_number_of_images_at_a_time(images, x64, monkeypatch):
    x, w = drawn(3, 3, 1, (3, 3), "float64", images)
    wanted = value_and_gradients(plain, x, w)[2]
    for fit in (1, 4, 100):
        monkeypatch.setattr(convolution, "CHUNK_BYTES", fit * 9 * 8 * 9 * 3 * 8)
        got = value_and_gradients(ours, x, w)[2]
        np.testing.assert_allclose(got, wanted, rtol=1e-11, atol=1e-11)


def test_the_gradient_is_really_our_own():
    x, w = drawn(4, 3, 1, (3, 3))
    grad = jax.grad(lambda w: ours(x, w).sum())
    assert "dot_general" in names(grad, w)
    with plain_convolutions():
        assert "dot_general" not in names(grad, w)


def test_training_a_depthwise_convolution_needs_no_convolution():
    x, w = drawn(4, 4, 4, (3, 3))
    depthwise = bind(conv_general_dilated, groups=4)
    grad = jax.value_and_grad(lambda x, w: depthwise(x, w).sum(), (0, 1))
    count = lambda platform: operations(lower(grad, x, w, platform=platform))
    assert count("cpu")["stablehlo.convolution"] == 0
    assert count("cuda")["stablehlo.convolution"] == 3


@pytest.mark.parametrize("case", ["cut_g", "strided", "grouped", "depthwise_strided"])
def test_other_platforms_get_the_plain_one(case):
    inputs, outputs, groups, kernel, *how = CASES[case]
    x, w = drawn(inputs, outputs, groups, kernel)

    def train(conv, x, w):
        return jax.value_and_grad(lambda x, w: (conv(x, w) ** 2).sum(), (0, 1))(x, w)

    ours = functools.partial(train, bind(conv_general_dilated, *how, groups))
    plain = functools.partial(train, bind(lax.conv_general_dilated, *how, groups))
    for platform in ("cpu", "cuda", "tpu"):
        got, wanted = (
            operations(lower(f, x, w, platform=platform)) for f in (ours, plain)
        )
        of_lax = all(got[n] == wanted[n] for n in ({*got} | {*wanted}) - CHOICE)
        assert of_lax == (platform != "cpu")
        assert wanted["stablehlo.convolution"] == 3


def test_a_program_for_several_platforms_chooses_when_it_runs():
    x, w = drawn(4, 3, 1, (3, 3))
    grad = jax.jit(jax.grad(lambda w, x: (ours(x, w) ** 2).sum()))
    several = export.export(grad, platforms=("cuda", "tpu", "cpu"))(w, x)
    np.testing.assert_allclose(several.call(w, x), grad(w, x), rtol=1e-5)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda grad: grad,
        lambda grad: jax.vmap(grad, in_axes=(0, None)),
        lambda grad: jax.vmap(grad, in_axes=(0, 0)),
        lambda grad: lambda w, x: lax.scan(lambda w, x: (grad(w, x), 0), w, x)[0],
        lambda grad: jax.grad(lambda w, x: (grad(w, x) ** 2).sum()),
    ],
    ids=["once", "seeds", "seeds_with_images", "scan", "second_order"],
)
def test_a_compiled_program_has_no_choice_left(wrap, request):
    x, w = drawn(4, 3, 1, (3, 3))
    id = request.node.callspec.id
    w = jnp.stack([w, -w]) if id.startswith("seeds") else w
    x = jnp.stack([x, -x]) if id in ("seeds_with_images", "scan") else x
    grad = jax.grad(jax.checkpoint(lambda w, x: (ours(x, w) ** 2).sum()))
    lowered = jax.jit(wrap(grad)).lower(w, x)
    assert "stablehlo.case" in lowered.as_text()
    compiled = lowered.compile().as_text()
    assert "conditional" not in compiled and " select(" not in compiled


@pytest.mark.parametrize("strides", [(1, 1), (2, 2)])
def test_fast_inference_gives_the_same_and_costs_what_it_costs(strides):
    x, w = drawn(6, 6, 6, (3, 3))
    how = {"strides": strides, "groups": 6}
    depthwise = bind(conv_general_dilated, **how)
    wanted = bind(lax.conv_general_dilated, **how)(x, w)
    with fast_inference():
        assert "cond" in names(depthwise, x, w)
        assert cost.macs(lambda x, w: depthwise(x, w), x, w) == wanted.size * 9
        got = jax.jit(lambda x, w: depthwise(x, w))(x, w)
        compiled = jax.jit(lambda x, w: depthwise(x, w)).lower(x, w).compile()
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)
    assert "convolution(" not in compiled.as_text()
    assert "cond" not in names(depthwise, x, w)


def test_inference_is_one_convolution():
    x, w = drawn(4, 3, 1, (3, 3))
    assert names(ours, x, w) == ["conv_general_dilated"]
    program = export.export(jax.jit(ours))(x, w)
    assert program.mlir_module().count("stablehlo.convolution") == 1
    np.testing.assert_allclose(program.call(x, w), plain(x, w), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("wrap", [jax.jit, jax.checkpoint])
def test_under_transformations(wrap):
    x, w = drawn(4, 3, 1, (3, 3))
    got = value_and_gradients(wrap(ours), x, w)
    for a, b in zip(got, value_and_gradients(plain, x, w), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_vmap_over_seeds_is_a_loop_over_them():
    x, w = drawn(4, 3, 1, (3, 3))
    kernels = jnp.stack([w, 2 * w, -w])
    grad = jax.grad(lambda w, x: (ours(x, w) ** 2).sum(), argnums=(0, 1))
    got = jax.jit(jax.vmap(grad, in_axes=(0, None)))(kernels, x)
    for i, kernel in enumerate(kernels):
        for a, b in zip(got, grad(kernel, x), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-4, atol=1e-3)


def test_second_order_in_reverse_mode(x64):
    x, w = drawn(2, 2, 1, (3, 3), "float64", 2)

    def product(conv):
        loss = lambda w, x: (conv(x, w) ** 3).sum()
        slope = lambda w: (jax.grad(loss, argnums=1)(w, x) ** 2).sum()
        return jax.jit(jax.grad(slope))(w)

    np.testing.assert_allclose(product(ours), product(plain), rtol=1e-9)


def test_forward_mode_needs_the_plain_one(x64):
    x, w = drawn(2, 2, 1, (3, 3), "float64", 1)
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.jvp(lambda w: ours(x, w), (w,), (w,))
    with plain_convolutions():
        check_grads(lambda w: ours(x, w), (w,), order=1, modes=["fwd", "rev"])


def test_half_precision_sums_in_single():
    x, w = drawn(4, 3, 1, (3, 3))
    x, w = x.astype(jnp.bfloat16), w.astype(jnp.bfloat16)
    got = value_and_gradients(ours, x, w)
    wanted = value_and_gradients(plain, *(a.astype(jnp.float32) for a in (x, w)))
    for a, b in zip(got, wanted, strict=True):
        assert a.dtype == jnp.bfloat16
        size = jnp.abs(b).max()
        np.testing.assert_allclose(a.astype(jnp.float32), b, atol=0.02 * size)


def test_the_first_layers_input_gradient_costs_nothing():
    x, w = drawn(3, 8, 1, (3, 3))
    first = jax.jit(jax.grad(lambda w, x: ours(x, w).sum()))
    both = jax.jit(jax.grad(lambda w, x: ours(x, w).sum(), argnums=(0, 1)))
    window = convolution.Window((1, 1), ((1, 1), (1, 1)), (1, 1), 1, None)
    alone = jax.jit(lambda w, x, g: kernel_gradient(window, x, w, g))
    convolutions = lambda f, *args: f.lower(*args).compile().as_text().count("conv")
    g = jnp.ones((*x.shape[:3], 8))
    flops = lambda f, *args: f.lower(*args).compile().cost_analysis()["flops"]
    assert flops(first, w, x) < 1.1 * flops(alone, w, x, g)
    assert flops(both, w, x) > 1.5 * flops(first, w, x)
    assert convolutions(first, w, x) <= convolutions(both, w, x)


@pytest.mark.parametrize("dims", [1, 3])
def test_other_ranks_fall_back(dims):
    layer = lambda conv: nn.Conv(2, (3,) * dims, conv_general_dilated=conv)
    x = jnp.ones((1, *(4,) * dims, 2))
    variables = layer(None).init(jax.random.key(0), x)
    np.testing.assert_array_equal(
        layer(conv_general_dilated).apply(variables, x), layer(None).apply(variables, x)
    )


def test_other_layouts_types_and_dilated_images_fall_back():
    x, w = drawn(4, 3, 1, (3, 3))
    calls = [
        (x.transpose(0, 3, 1, 2), w.transpose(3, 2, 0, 1), (1, 1), "SAME"),
        (x, w, (1, 1), ((0, 1), (0, 0)), (2, 1), None, LAYOUT),
        (x.astype(jnp.int8), w.astype(jnp.int8), (1, 1), "SAME", None, None, LAYOUT),
    ]
    for x, w, *how in calls:
        np.testing.assert_array_equal(
            conv_general_dilated(x, w, *how), lax.conv_general_dilated(x, w, *how)
        )
        conv = lambda x, w, how=how: conv_general_dilated(x, w, *how)
        assert "custom_vjp_call" not in str(jax.make_jaxpr(conv)(x, w))
