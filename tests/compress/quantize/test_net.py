import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkd import distill, losses
from jaxkd.compress import quantize as Q
from jaxkd.models import ZOO, mlp
from jaxkd.models.net import from_linen
from tests.compress.quantize.nets import LAYERS, SHAPE, images, infer, made, small


@pytest.fixture(scope="module")
def folded():
    return Q.fold(small, *made(small), SHAPE)


def quantized(folded, **knobs):
    config = Q.Quantization(**knobs)
    return config, Q.quantized(*folded, config, SHAPE)


def test_every_tensor_between_layers_has_a_range(folded):
    _, (_, params, state) = quantized(folded)
    # The sum with its ReLU is one tensor; bias and ReLU belong to their layer.
    assert sorted(state["ranges"]) == [
        ":input", "add", "conv1", "conv2", "depth", "head", "mean", "point", "stem",
    ]  # fmt: skip
    assert jax.tree.structure(params) == jax.tree.structure(folded[1])


def test_only_inputs_of_layers_are_quantized_with_dynamic_ranges(folded):
    _, (net, params, state) = quantized(folded, activation="dynamic")
    assert state["ranges"] == {}
    x = images()
    once = infer(net, params, state, x).logits
    # Twice as bright, with biases of 0, is twice the logits: no range is remembered.
    zero = jax.tree.map_with_path(lambda path, a: a * (path[-1].key != "bias"), params)
    a, b = (infer(net, zero, state, k * x).logits for k in (1, 2))
    np.testing.assert_allclose(2 * a, b, rtol=1e-4)
    assert not np.allclose(once, infer(*folded, x).logits, atol=1e-6)


def test_ranges_move_in_training_only(folded):
    config, (net, params, state) = quantized(folded, decay=0.5)
    x = images()
    _, same = jax.jit(lambda s: net.apply(params, s, x, train=False))(state)
    jax.tree.map(np.testing.assert_array_equal, same, state)
    fresh = jax.jit(net.init)(jax.random.key(0), x)
    assert not any(int(r["count"]) for r in fresh[1]["ranges"].values())
    run = jax.jit(lambda s, x: net.apply(params, s, x, train=True)[1])
    one = run(state, x)
    # The input's range is the images' own; then halfway to the next one's.
    assert float(one["ranges"][":input"]["high"]) == pytest.approx(x.max())
    two = run(one, 3 * x)
    assert float(two["ranges"][":input"]["high"]) == pytest.approx(2 * x.max())
    assert float(two["ranges"][":input"]["low"]) == pytest.approx(2 * x.min())
    assert {int(r["count"]) for r in two["ranges"].values()} == {2}


def test_scan_is_the_loop_and_vmap_the_batch():
    net = mlp([8], classes=3)
    variables = jax.jit(net.init)(jax.random.key(0), images())
    config = Q.Quantization(estimator="window_max", window=2)
    net, params, state = Q.quantized(net, *variables, config, SHAPE)
    batches = jnp.stack([images(seed=i) * (i + 1) for i in range(3)])

    def step(state, x):
        outputs, state = net.apply(params, state, x, train=True)
        return state, outputs.logits

    scanned, logits = jax.jit(lambda s: jax.lax.scan(step, s, batches))(state)
    jitted, looped = jax.jit(step), state
    for x, wanted in zip(batches, logits, strict=True):
        looped, out = jitted(looped, x)
        np.testing.assert_allclose(out, wanted, atol=1e-5)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5)
    jax.tree.map(close, scanned, looped)
    states = jax.jit(jax.vmap(lambda x: step(state, x)[0]))(batches)
    one = jax.tree.map(lambda a: a[1], states)
    jax.tree.map(close, one, jitted(state, batches[1])[0])


def test_eight_bits_are_near_four_are_not(folded):
    x = images(16)
    wanted = infer(*folded, x).logits
    error = {}
    for bits in (8, 4):
        _, (net, params, state) = quantized(folded, weights=bits, activations=bits)
        state = Q.calibrate(net, params, state, [x])
        error[bits] = float(np.abs(infer(net, params, state, x).logits - wanted).mean())
    assert 0 < error[8] < 0.02 * np.abs(wanted).max()
    assert error[4] > 5 * error[8]  # the step is 17 times as large


def test_kernels_lie_on_their_grid_at_each_step(folded):
    config, (net, params, state) = quantized(folded, activation="float", weights=4)
    # Perturb: ranges of weights are measured anew, so doubled kernels double exactly.
    x = images()
    a = infer(net, params, state, x).logits
    head = {**params["head"], "kernel": 2 * params["head"]["kernel"]}
    b = infer(net, {**params, "head": head}, state, x).logits
    bias = params["head"]["bias"][None]
    np.testing.assert_allclose(b - bias, 2 * (a - bias), rtol=1e-5, atol=1e-5)


def test_overrides(folded):
    layers = {"head": Q.FLOAT, "stem": Q.Bits(8, 8), "p*": Q.Bits(None, 8)}
    config, (net, params, state) = quantized(
        folded, weights=4, activations=4, layers=layers
    )
    state = Q.calibrate(net, params, state, [images()])
    _, variables = Q.integer(net, params, state, config)
    kernels = variables["kernels"]
    assert set(kernels) == {f"{n}/kernel" for n in ("stem", "conv1", "conv2", "depth")}
    most = {n: int(np.abs(k["integers"]).max()) for n, k in kernels.items()}
    assert most.pop("stem/kernel") == 127
    assert set(most.values()) == {7}
    # The head reads floats and gives floats; its logits have no range.
    assert "head" not in state["ranges"]


@pytest.mark.bad_input
def test_refused(folded):
    with pytest.raises(
        ValueError, match=r"'heed' fits no layer; there are .*did you mean head"
    ):
        quantized(folded, layers={"heed": Q.FLOAT})
    with pytest.raises(ValueError, match="fold them first"):
        Q.quantized(small, *made(small), Q.Quantization(), SHAPE)

    class Nothing(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            return x.mean((1, 2)) * self.param(
                "scale", nn.initializers.ones, (1, 1)
            ), {}

    net = from_linen(Nothing())
    variables = net.init(jax.random.key(0), images())
    with pytest.raises(ValueError, match="no convolution and no matrix product"):
        Q.quantized(net, *variables, Q.Quantization(), SHAPE)


@pytest.mark.bad_input
def test_images_of_another_shape_are_named(folded):
    _, (net, params, state) = quantized(folded)
    wanted = r"images must be \[batch, 8, 8, 1\], .* got "
    for x in (np.ones((2, 8, 8, 3)), np.ones((8, 8, 1)), [1.0]):
        shape = list(np.shape(x)) if isinstance(x, np.ndarray) else []
        with pytest.raises(ValueError, match=wanted + re.escape(str(shape))):
            Q.calibrate(net, params, state, [x])
    with pytest.raises(ValueError, match=wanted):
        Q.bias_correction(net, params, state, [np.ones((2, 8, 8, 3))])
    match = r"does not take images \[1, 8, 8, 3\]"
    with pytest.raises(ValueError, match=match):
        Q.quantized(*folded, Q.Quantization(), (8, 8, 3))
    with pytest.raises(ValueError, match=match):
        Q.fold(small, *made(small), (8, 8, 3))
    # Convolutions and a mean take images of any size.
    Q.calibrate(net, params, state, [np.ones((2, 6, 6, 1), np.float32)])


@pytest.mark.bad_input
def test_layers_in_a_loop_are_refused():
    class Cell(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return nn.Dense(4)(x), None

    class Loop(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            kind = nn.scan(
                Cell, variable_axes={"params": 0}, split_rngs={"params": True}, length=2
            )
            return kind(name="cells")(x.mean((1, 2))[:, [0] * 4], None)[0], {}

    net = from_linen(Loop())
    variables = jax.jit(net.init)(jax.random.key(0), images())
    match = "a scan at 'scan' holds dot_general of 'cells/Dense_0'"
    match += ".*layers={'scan': FLOAT}"
    with pytest.raises(ValueError, match=match + "$"):
        Q.quantized(net, *variables, Q.Quantization(), SHAPE)
    # It says what is wrong with the remedy that was taken.
    taken = {"*": Q.Bits(), "scan": Q.FLOAT}
    with pytest.raises(ValueError, match=f"{match}, before the patterns"):
        Q.quantized(net, *variables, Q.Quantization(layers=taken), SHAPE)


def test_trains_in_the_distiller_with_taps_and_a_teacher(folded):
    config, (net, params, state) = quantized(folded)
    square = lambda a, b: ((a - b) ** 2).mean((1, 2, 3))
    spec = {
        "ce": (1.0, distill.on_labels(losses.cross_entropy)),
        "hint": (1.0, distill.on_taps(square, "block", "block")),
    }
    teacher = distill.frozen(folded[0])
    fit = distill.distiller(net, teacher, spec, optax.sgd(0.1))
    batch = {"image": images(8), "label": np.arange(8) % 10}
    start = jax.jit(lambda key, t: fit.init(key, t, batch))(
        jax.random.key(0), folded[1:]
    )
    start = start._replace(params={**start.params, "student": params})
    step = jax.jit(fit.step)
    end, first = step(start, folded[1:], batch)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), start.params, end.params)
    assert jax.tree.all(moved)
    # The tap is the quantized tensor: near the teacher's, and not equal to it.
    assert 0 < float(first["loss/hint"]) < 1e-3
    for _ in range(5):
        end, metrics = step(end, folded[1:], batch)
    assert metrics["loss"] < first["loss"]
    assert int(end.state["student"]["ranges"]["head"]["count"]) == 6


def test_dropout_draws_only_in_training():
    class Dropped(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            x = nn.relu(nn.Dense(8, name="hidden")(x.reshape(len(x), -1)))
            x = nn.Dropout(0.5, deterministic=not train)(x)
            return nn.Dense(3, name="head")(x), {}

    net = from_linen(Dropped())
    variables = jax.jit(net.init)(jax.random.key(0), images())
    q, params, state = Q.quantized(net, *variables, Q.Quantization(), SHAPE)
    assert sorted(state["ranges"]) == [":input", "head", "hidden"]
    x = images()
    runs = [
        q.apply(params, state, x, train=True, key=jax.random.key(i)) for i in (0, 1)
    ]
    assert not np.allclose(runs[0][0].logits, runs[1][0].logits)
    # The range of what dropout reads, not of what it gives.
    wanted = nn.relu(x.reshape(len(x), -1) @ params["hidden"]["kernel"]).max()
    found = float(runs[0][1]["ranges"]["hidden"]["high"])
    assert found == pytest.approx(float(wanted), rel=0.02)
    with pytest.raises(ValueError, match="key must be a PRNG key"):
        q.apply(params, state, x, train=True)


def test_learned_steps(folded):
    config, (net, params, state) = quantized(folded, lsq=True, weights=4, activations=4)
    assert set(params["steps"]["weights"]) == {f"{n}.kernel" for n in LAYERS}
    x = images(8)
    state = Q.calibrate(net, params, state, [x])

    def loss(params, state):
        outputs, state = net.apply(params, state, x, train=True)
        return losses.cross_entropy(outputs.logits, jnp.arange(8)).mean(), state

    grads, after = jax.jit(jax.grad(loss, has_aux=True))(params, state)
    sizes = jax.tree.map(lambda g: float(np.abs(g).max()), grads["steps"])
    assert all(0 < s < np.inf for s in jax.tree.leaves(sizes))
    # Steps are relative to ranges, which therefore stay.
    jax.tree.map(np.testing.assert_array_equal, after["ranges"], state["ranges"])
    integers, variables = Q.integer(net, params, state, config)
    np.testing.assert_allclose(
        jax.jit(integers)(variables, x), infer(net, params, state, x).logits, atol=0.05
    )


@pytest.mark.parametrize(
    "name, size, only_inference",
    [
        ("mobilenet_v2", 8, set()),
        ("shufflenet_v1", 8, set()),
        ("vit_tiny", 32, {"add"}),  # in training the two heads are not averaged
    ],
)
def test_names_are_the_same_in_training(name, size, only_inference):
    """Training moves every range that inference has, by the same name."""
    net, shape = ZOO[name](classes=5), (size, size, 3)
    x = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    fresh = jax.eval_shape(net.init, jax.random.key(0), x)
    zeros = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), fresh)
    if zeros[1]:
        net, *zeros = Q.fold(net, *zeros, shape, check=False)
    q, params, state = Q.quantized(net, *zeros, Q.Quantization(), shape)

    def counts(state, x, key):
        _, state = q.apply(params, state, x, train=True, key=key)
        return {name: memory["count"] for name, memory in state["ranges"].items()}

    traced = jax.make_jaxpr(counts, return_shape=True)
    jaxpr, names = traced(state, x, jax.random.key(0))
    assert set(names) == set(state["ranges"]) and len(names) > 30
    # A count that does not move is an argument handed through.
    arguments = set(jaxpr.jaxpr.invars)
    still = [v in arguments for v in jaxpr.jaxpr.outvars]
    unmoved = {n for n, s in zip(names, still, strict=True) if s}
    assert unmoved == only_inference


def test_what_belongs_to_a_layer_and_what_is_one():
    class Sums(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            y = nn.Conv(4, (3, 3), name="conv")(x)  # with its bias and ReLU6
            y = jnp.minimum(nn.relu(y), 6)
            z = nn.Conv(4, (1, 1), name="other")(x)
            place = self.param("place", nn.initializers.ones, (1, 1, 1, 4))
            y = jnp.concatenate([y + z + place, nn.max_pool(z, (1, 1))], -1)
            y = nn.softmax(nn.avg_pool(y, (2, 2), (2, 2)).mean((1, 2)))
            return nn.Dense(3, name="head")(y), {}

    net = from_linen(Sums())
    variables = jax.jit(net.init)(jax.random.key(0), images())
    for activation, names in [
        ("static", ":input conv other add add:1 concatenate mean mean:1 head"),
        ("dynamic", ""),
    ]:
        config = Q.Quantization(activation=activation)
        _, _, state = Q.quantized(net, *variables, config, SHAPE)
        wanted = set(names.split()) | ({"head:input"} if names else set())
        assert set(state["ranges"]) == wanted  # softmax is in floats until it is read


def test_as_a_teacher_its_depthwise_layers_are_quantized_as_well(folded):
    _, (net, params, state) = quantized(folded, weights=3)
    x = images()
    state = Q.calibrate(net, params, state, [x])
    wanted = infer(net, params, state, x).logits
    teacher = jax.jit(lambda v, x: distill.frozen(net)(v, {"image": x}).logits)
    np.testing.assert_allclose(teacher((params, state), x), wanted, atol=1e-4)
