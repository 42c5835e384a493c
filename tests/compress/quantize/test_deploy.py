import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from jaxkd.compress import quantize as Q
from jaxkd.compress.quantize import deploy
from jaxkd.compress.quantize.graph import equations
from jaxkd.models.net import from_linen
from tests.compress.quantize.nets import LAYERS, SHAPE, images, infer, made, small

FIXED = jax.random.key(2)


@pytest.fixture(scope="module")
def folded():
    return Q.fold(small, *made(small), SHAPE)


def calibrated(folded, **knobs):
    config = Q.Quantization(**knobs)
    net, params, state = Q.quantized(*folded, config, SHAPE)
    return net, params, Q.calibrate(net, params, state, [images(16)]), config


def composites(f):
    """The attributes of every mark, and what it marks."""
    jaxpr = jax.make_jaxpr(f)(images()).jaxpr
    for e in equations(jaxpr):
        if e.primitive.name == "composite":
            assert e.params["name"] == "quant.fake_quant"
            attributes = {
                k: jax.tree.unflatten(tree, [getattr(v, "val", v) for v in leaves])
                for k, leaves, tree in e.params["attributes"]
            }
            yield attributes, e.invars[-1].aval.shape


KNOBS = [
    {"symmetric": True, "per_channel": False},
    {"weights": 4, "activations": 4, "layers": {"head": Q.Bits(8, 8), "stem": Q.FLOAT}},
]


@pytest.mark.parametrize("knobs", KNOBS)
def test_marked_and_integer_networks_are_the_fake_quantized_one(folded, knobs):
    net, params, state, config = calibrated(folded, **knobs)
    x = images(5, seed=7)
    wanted = infer(net, params, state, x).logits
    f = Q.deployed(net, params, state, config)
    np.testing.assert_allclose(jax.jit(f)(x), wanted, atol=1e-6)
    apply, variables = Q.integer(net, params, state, config)
    head = state["ranges"]["head"]
    step = float(head["high"] - head["low"]) / 255
    np.testing.assert_allclose(jax.jit(apply)(variables, x), wanted, atol=1.01 * step)


def test_marks(folded):
    net, params, state, config = calibrated(folded)
    found = list(composites(Q.deployed(net, params, state, config)))
    kernels = [(a, s) for a, s in found if a["narrow_range"]]
    assert len(kernels) == len(LAYERS)
    for a, shape in kernels:
        axis = a["quantization_dimension"]
        assert axis == len(shape) - 1
        assert a["scale"].shape == a["zero_point"].shape == (shape[axis],)
        assert not a["zero_point"].any()
    tensors = [a for a, _ in found if not a["narrow_range"]]
    assert len(tensors) == len(state["ranges"])
    for a in tensors:
        assert a["dtype"] == "i8" and "quantization_dimension" not in a
        assert a["scale"].shape == (1,) and a["zero_point"].dtype == np.int64
    # What ReLU leaves is nowhere negative: seven tensors have all levels above 0. The
    # images too.
    assert sum(int(a["zero_point"][0]) == -128 for a in tensors) >= 6


def test_marks_of_four_bits_and_of_none(folded):
    net, params, state, config = calibrated(
        folded, weights=4, activation="float", per_channel=False
    )
    found = list(composites(Q.deployed(net, params, state, config)))
    assert [a["dtype"] for a, _ in found] == ["i4"] * len(LAYERS)
    assert all("quantization_dimension" not in a for a, _ in found)
    net, params, state, config = calibrated(folded, activation="dynamic")
    found = list(composites(Q.deployed(net, params, state, config)))
    assert len(found) == len(LAYERS) and all(a["narrow_range"] for a, _ in found)


def test_every_kernel_is_multiplied_in_integers(folded):
    for knobs in ({}, {"activation": "dynamic", "symmetric": True}):
        net, params, state, config = calibrated(folded, **knobs)
        apply, variables = Q.integer(net, params, state, config)
        jaxpr = jax.make_jaxpr(apply)(variables, images())
        products = [
            ([v.aval.dtype for v in e.invars], e.outvars[0].aval.dtype)
            for e in equations(jaxpr.jaxpr)
            if e.primitive.name in ("conv_general_dilated", "dot_general")
        ]
        assert products == [([jnp.int8] * 2, jnp.int32)] * len(LAYERS)
        held = variables["kernels"].values()
        assert all(k["integers"].dtype == jnp.int8 for k in held)
        assert not any("kernel" in layer for layer in variables["params"].values())


def test_dynamic_integers_are_the_dynamic_network(folded):
    net, params, state, config = calibrated(folded, activation="dynamic")
    x = images(5)
    apply, variables = Q.integer(net, params, state, config)
    np.testing.assert_allclose(
        jax.jit(apply)(variables, x), infer(net, params, state, x).logits, atol=2e-3
    )


def test_exports_with_any_batch_and_small_constants(folded):
    net, params, state, config = calibrated(folded)
    apply, variables = Q.integer(net, params, state, config)
    (b,) = export.symbolic_shape("b")
    image = jax.ShapeDtypeStruct((b, *SHAPE), jnp.float32)
    held = export.export(jax.jit(lambda x: apply(variables, x)))(image)
    again = export.deserialize(held.serialize())
    x = images(3)
    wanted = infer(net, params, state, x).logits
    np.testing.assert_allclose(again.call(x), wanted, atol=1e-4)
    one = jax.ShapeDtypeStruct((1, *SHAPE), jnp.float32)
    marked = export.export(jax.jit(Q.deployed(net, params, state, config)))(one)
    assert marked.mlir_module().count("quant.fake_quant") >= len(LAYERS)


def test_size_by_hand(folded):
    _, params, _ = folded
    kernels = [params[layer]["kernel"].size for layer in LAYERS]
    biases = sum(params[layer]["bias"].size for layer in LAYERS)  # as many as scales
    for bits, stored in ((8, sum(kernels)), (4, sum(-(-n // 2) for n in kernels))):
        net, own, state, _ = calibrated(folded, weights=bits, activation="float")
        assert Q.size(net, own, state) == (
            4 * (sum(kernels) + biases),
            stored + 4 * 2 * biases,
        )


@pytest.mark.bad_input
def test_ranges_never_measured_are_named(folded):
    config = Q.Quantization()
    net, params, state = Q.quantized(*folded, config, SHAPE)
    for use in (Q.deployed, Q.integer):
        with pytest.raises(ValueError, match=r"9 of 9 static .*\(:input, add, conv1"):
            use(net, params, state, config)
        with pytest.raises(ValueError, match="state has no ranges"):
            use(net, params, {}, config)
    state["ranges"]["add"]["count"] += 1  # as after training
    match = r"8 of 9 static .*; calibrate\(\) it: training does not see"
    with pytest.raises(ValueError, match=match):
        Q.deployed(net, params, state, config)


def test_dead_channels_and_constant_tensors_are_exact(folded):
    net, params, state = folded
    # A channel of zeros in a kernel, and a layer that gives nothing but zeros.
    dead = {**params["conv1"], "kernel": params["conv1"]["kernel"].at[..., 0].set(0)}
    none = jax.tree.map(jnp.zeros_like, params["depth"])
    params = {**params, "conv1": dead, "depth": none}
    net, params, state, config = calibrated((net, params, state))
    x = images()
    logits = infer(net, params, state, x).logits
    assert np.isfinite(logits).all()
    # The head sees zeros: its logits are its bias, to half a step.
    head = state["ranges"]["head"]
    step = float(head["high"] - head["low"]) / 255
    np.testing.assert_allclose(
        logits, np.broadcast_to(params["head"]["bias"], logits.shape), atol=step
    )


@pytest.mark.bad_input
@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_what_is_not_finite_is_named(folded, number):
    net, params, state, config = calibrated(folded)
    stem = {**params["stem"], "kernel": params["stem"]["kernel"].at[0, 0].set(number)}
    bad = {**params, "stem": stem}
    kernel = r"params/stem/kernel must be finite: 16 of its 144 numbers are not"
    calls = [
        lambda: Q.quantized(folded[0], bad, folded[2], config, SHAPE),
        lambda: Q.calibrate(net, bad, state, [images()]),
        lambda: Q.deployed(net, bad, state, config),
        lambda: Q.integer(net, bad, state, config),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=kernel):
            call()
    ranges = {**state["ranges"], "head": {**state["ranges"]["head"], "high": number}}
    moved = jax.tree.map(jnp.asarray, {**state, "ranges": ranges})
    with pytest.raises(ValueError, match="state/ranges/head/high must be finite"):
        Q.deployed(net, params, moved, config)
    x = images().copy()
    x[1, 2, 3] = number
    with pytest.raises(ValueError, match=r"batches\[1\] must be finite: 1 of its 256"):
        Q.calibrate(net, params, state, [images(), x])
    with pytest.raises(ValueError, match=r"batches\[0\] must be finite"):
        Q.bias_correction(net, params, state, [x])
    # A range that overflows although every variable and image is finite.
    huge = jax.tree.map(lambda a: a * 1e30, params)
    with pytest.raises(ValueError, match="state/ranges/.* must be finite"):
        Q.calibrate(net, huge, state, [images()])


def test_a_nearly_dead_channel_with_a_bias(folded):
    """Its bias is a 32-bit integer on a device: the kernel's scale has a floor."""
    net, params, state = folded
    conv = params["conv1"]
    conv = {
        "kernel": conv["kernel"].at[..., :4].multiply(1e-12),
        "bias": conv["bias"].at[:4].set(jnp.array([1.0, -2.0, 1e-3, 0.0])),
    }
    net, params, state, config = calibrated((net, {**params, "conv1": conv}, state))
    x = images(5)
    f = Q.deployed(net, params, state, config)
    grids, _ = deploy.grids(net, params, state)
    s, t = (grids[n].scale for n in ("activation:stem", "kernel:conv1/kernel"))
    integers = np.abs(conv["bias"] / (s * t.ravel()))
    assert integers.max() <= 2**30 * 1.001
    np.testing.assert_allclose(integers[:3], 2**30, rtol=1e-3)  # no coarser than that
    reach = np.abs(conv["kernel"][..., 4:]).max((0, 1, 2))
    np.testing.assert_allclose(t.ravel()[4:], reach / 127, rtol=1e-5)  # the others
    apply, variables = Q.integer(net, params, state, config)
    fake, marked, whole = jax.jit(
        lambda x: (
            net.apply(params, state, x, train=False)[0].logits,
            f(x),
            apply(variables, x),
        )
    )(x)
    np.testing.assert_allclose(marked, fake, atol=1e-6)
    head = state["ranges"]["head"]
    step = float(head["high"] - head["low"]) / 255
    np.testing.assert_allclose(whole, fake, atol=1.01 * step)


def test_random_keys_among_the_variables_and_constants():
    class Noisy(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            key = self.variable("noise", "key", lambda: jax.random.key(1)).value
            drawn = jax.random.normal(key, (1, 8)) + jax.random.normal(FIXED, (1, 8))
            x = nn.Dense(8, name="fc")(x.reshape(len(x), -1)) + 0.1 * drawn
            return nn.Dense(3, name="head")(nn.relu(x)), {}

    net, x = from_linen(Noisy()), images()
    net, params, state, config = calibrated((net, *net.init(jax.random.key(0), x)))
    apply, variables = Q.integer(net, params, state, config)
    f = Q.deployed(net, params, state, config)
    wanted = infer(net, params, state, x).logits
    for logits in jax.jit(lambda v, x: (f(x), apply(v, x)))(variables, x):
        np.testing.assert_allclose(logits, wanted, atol=1e-6)
