import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkd import distill, losses
from jaxkd.compress import quantize as Q
from jaxkd.models import ZOO
from jaxkd.models._layers import conv
from jaxkd.models.net import from_foreign, from_linen
from tests.compress import foreign
from tests.compress.quantize.nets import SHAPE, images, infer, made, small


class Doubled(nn.Conv):
    def __call__(self, inputs):
        return 2 * super().__call__(inputs)


class Parts(nn.Module):
    """What can and what cannot be folded, by the name of the part."""

    part: str

    @nn.compact
    def __call__(self, x, train=False):
        taps = {}
        bn = lambda name, **how: nn.BatchNorm(not train, name=name, **how)
        if self.part == "biased":
            x = bn("norm")(nn.Conv(4, (3, 3), name="conv")(x))
        elif self.part == "grouped":
            x = nn.Conv(8, (1, 1), name="first")(x)
            x = bn("norm")(conv(8, 3, groups=4, name="conv")(x))
        elif self.part == "no scale":
            x = bn("norm", use_scale=False)(conv(4, 3, name="conv")(x))
        elif self.part == "neither":
            x = bn("norm", use_scale=False, use_bias=False)(conv(4, 3, name="conv")(x))
        elif self.part == "epsilon":
            x = bn("norm", epsilon=0.5)(conv(4, 3, name="conv")(x))
        elif self.part == "dense":
            x = bn("norm")(
                nn.Dense(4, use_bias=False, name="conv")(x.reshape(len(x), -1))
            )
        elif self.part == "shared pair":
            layer, after = conv(1, 3, name="conv"), bn("norm")
            x = after(layer(nn.relu(after(layer(x)))))
        elif self.part == "tapped":
            x = taps["raw"] = conv(4, 3, name="conv")(x)
            x = bn("norm")(x)
        elif self.part == "read twice":
            y = conv(4, 3, name="conv")(x)
            x = y + bn("norm")(y)
        elif self.part == "after a sum":
            y = conv(4, 3, name="conv")(x)
            x = bn("norm")(y + conv(4, 1, name="other")(x))
        elif self.part == "one norm, two layers":
            after = bn("norm")
            x = after(conv(4, 3, name="conv")(x)) + after(conv(4, 3, name="other")(x))
        elif self.part == "one layer, two norms":
            layer = conv(1, 3, name="conv")
            x = bn("norm")(layer(x)) + bn("norm_b")(layer(2 * x))
        elif self.part == "kernel read twice":
            x = bn("norm")(nn.Conv(4, (3, 3), name="conv")(x))
            x += jnp.square(self.variables["params"]["conv"]["kernel"]).mean()
        elif self.part == "more than a bias":
            x = bn("norm")(Doubled(4, (3, 3), name="conv")(x))
        elif self.part == "flat":
            x = bn("norm")(x.reshape(len(x), -1))
        elif self.part == "remat":
            x = nn.remat(Parts)("biased", name="inner")(x)[0]
        return nn.Dense(3, name="head")(x.reshape(len(x), -1)), taps


FOLDED = [
    "biased", "grouped", "no scale", "neither", "epsilon", "dense", "shared pair",
    "remat",
]  # fmt: skip
STAY = [
    "tapped", "read twice", "after a sum", "one norm, two layers",
    "one layer, two norms", "flat", "kernel read twice", "more than a bias",
]  # fmt: skip


@pytest.mark.parametrize("part", FOLDED + STAY)
def test_the_same_function_without_statistics(part):
    net, x = from_linen(Parts(part)), images()
    params, state = made(net)
    assert state["batch_stats"]
    folded, new_params, new_state = Q.fold(net, params, state, SHAPE)
    assert new_state == {}
    # One program for the three of them.
    before, after, train = jax.jit(
        lambda old, new: (
            net.apply(*old, x, train=False)[0],
            folded.apply(*new, x, train=False)[0],
            folded.apply(*new, x, train=True)[0],
        )
    )((params, state), (new_params, new_state))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), before, after
    )
    stay = Q.unfolded(net, params, state, SHAPE)
    assert bool(stay) == (part in STAY)
    if part in FOLDED:
        assert not any("norm" in name for name in new_params)
    # Training uses no statistics either: the same outputs.
    np.testing.assert_allclose(train.logits, after.logits, atol=1e-6)
    assert jax.tree.structure(state) == jax.tree.structure(made(net)[1])  # not changed


@pytest.mark.parametrize(
    "name, stay",
    [
        ("weight_norm", ["BatchNorm_0"]),
        ("spectral_norm", ["BatchNorm_0"]),
        ("std_conv", ["BatchNorm_0", "BatchNorm_1"]),
        ("binary", ["BatchNorm_0"]),
        ("keywords", []),
    ],
)
def test_kernels_that_are_computed_are_not_scaled(name, stay):
    net, params, state, shape = foreign.made(name)
    folded = Q.fold(net, params, state, shape)
    x = foreign.inputs(name)
    before, after = infer(net, params, state, x), infer(*folded, x)
    np.testing.assert_allclose(after.logits, before.logits, rtol=1e-4, atol=1e-5)
    assert Q.unfolded(net, params, state, shape) == stay
    assert "BatchNorm_0" not in folded[2].get("batch_stats", {})


def test_rounding_of_half_precision_is_no_difference():
    class Half(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            x = nn.Conv(4, (3, 3), dtype=jnp.bfloat16, name="conv")(x)
            x = nn.relu(nn.BatchNorm(not train, dtype=jnp.bfloat16, name="norm")(x))
            return nn.Dense(3)(x.mean((1, 2)).astype(jnp.float32)), {}

    net = from_linen(Half())
    params, state = made(net)
    folded = Q.fold(net, params, state, SHAPE)
    assert "norm" not in folded[1]
    x = images()
    before, after = infer(net, params, state, x), infer(*folded, x)
    size = np.abs(before.logits).max()
    np.testing.assert_allclose(after.logits, before.logits, atol=0.05 * size)


@pytest.mark.bad_input
def test_a_network_that_folding_would_change_is_refused():
    class Halved(nn.BatchNorm):
        def __call__(self, x):
            return super().__call__(x) / 2

    class Own(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            x = Halved(not train, name="norm")(nn.Conv(4, (3, 3), name="conv")(x))
            return nn.Dense(3)(nn.relu(x).mean((1, 2))), {}

    net = from_linen(Own())
    params, state = made(net)
    with pytest.raises(ValueError, match="folded network's logits differ by"):
        Q.fold(net, params, state, SHAPE)
    params["conv"]["kernel"] = params["conv"]["kernel"].at[0, 0, 0, 0].set(np.nan)
    with pytest.raises(ValueError, match="params/conv/kernel must be finite: 1 of its"):
        Q.fold(net, params, state, SHAPE)


def test_kernel_and_bias_by_hand():
    net = from_linen(Parts("epsilon"))
    params, state = made(net)
    _, folded, _ = Q.fold(net, params, state, SHAPE)
    n, s = params["norm"], state["batch_stats"]["norm"]
    g = n["scale"] / np.sqrt(s["var"] + 0.5)
    np.testing.assert_allclose(
        folded["conv"]["kernel"],
        params["conv"]["kernel"] * g[None, None, None],
        rtol=1e-5,
    )
    np.testing.assert_allclose(
        folded["conv"]["bias"], n["bias"] - s["mean"] * g, rtol=1e-4, atol=1e-6
    )


def test_init_folds_fresh_variables():
    folded, params, state = Q.fold(small, *made(small), SHAPE)
    fresh = jax.eval_shape(folded.init, jax.random.key(1), jnp.zeros((1, *SHAPE)))
    same = lambda a, b: a.shape == b.shape and a.dtype == b.dtype
    assert jax.tree.all(
        jax.tree.map(same, fresh, jax.eval_shape(lambda: (params, state)))
    )


def test_taps_of_a_foreign_module_survive():
    class Bare(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            x = nn.BatchNorm(not train, name="norm")(nn.Conv(4, (3, 3), name="conv")(x))
            return nn.Dense(3)(nn.relu(x).mean((1, 2)))

    net = from_foreign(Bare(), {"norm": "norm"}, call=lambda train: {"train": train})
    params, state = made(net)
    folded = Q.fold(net, params, state, SHAPE)
    x = images()
    np.testing.assert_allclose(
        infer(net, params, state, x).tap("norm"),
        infer(*folded, x).tap("norm"),
        atol=1e-5,
    )


def test_trains_in_the_ordinary_distiller():
    net, params, state = Q.fold(small, *made(small), SHAPE)
    spec = {"ce": (1.0, distill.on_labels(losses.cross_entropy))}
    fit = distill.distiller(net, distill.no_teacher, spec, optax.sgd(0.1))
    batch = {"image": images(8), "label": np.arange(8) % 10}
    start = jax.jit(lambda key: fit.init(key, None, batch))(jax.random.key(0))
    end, metrics = jax.jit(fit.step)(start, None, batch)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), start.params, end.params)
    assert jax.tree.all(moved)
    assert np.isfinite(metrics["loss"])


@pytest.mark.parametrize(
    "name, size, stay",
    [
        ("resnet8", 8, []),
        pytest.param("mobilenet_v2", 8, [], marks=pytest.mark.slow),
        pytest.param("shufflenet_v1", 8, [], marks=pytest.mark.slow),
        pytest.param("shufflenet_v2", 8, None, marks=pytest.mark.slow),
        pytest.param("vgg8", 16, [], marks=pytest.mark.slow),
        pytest.param("mobilenet_v1", 32, [], marks=pytest.mark.slow),
        pytest.param("wrn_16_1", 8, 7, marks=pytest.mark.slow),
        pytest.param("resnet18", 32, [], marks=pytest.mark.slow),
    ],
)
def test_zoo(name, size, stay):
    net, shape = ZOO[name](classes=5), (size, size, 3)
    params, state = made(net, shape)
    folded = Q.fold(net, params, state, shape)
    assert folded[2] == {}
    x = images(2, shape)
    before, after = infer(net, params, state, x), infer(*folded, x)
    scale = np.abs(before.logits).max()
    np.testing.assert_allclose(after.logits, before.logits, atol=1e-4 * scale)
    left = Q.unfolded(net, params, state, shape)
    assert stay is None or (len(left) if isinstance(stay, int) else left) == stay


@pytest.mark.bad_input
def test_refused():
    class Axis(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            x = nn.BatchNorm(not train, axis=1, name="norm")(nn.Conv(4, (3, 3))(x))
            return nn.Dense(3)(x.mean((1, 2))), {}

    class Cell(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return nn.BatchNorm(True, name="norm")(nn.Conv(1, (3, 3))(x)), None

    class Loop(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            kind = nn.scan(
                Cell,
                variable_axes={"params": 0, "batch_stats": 0},
                split_rngs={"params": True},
                length=2,
            )
            return kind(name="cells")(x, None)[0].reshape(len(x), -1), {}

    for module, message in [
        (Axis(), "BatchNorm 'norm' normalises axis 1"),
        (Loop(), "norm:cells/norm lies in a scan"),
    ]:
        net = from_linen(module)
        params, state = jax.jit(net.init)(jax.random.key(0), images(1))
        with pytest.raises(ValueError, match=message):
            Q.fold(net, params, state, SHAPE)
