"""The same module runs with pruned variables, everywhere, and is left as it was."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import evaluate
from jaxkd.compress import prune
from jaxkd.models.mobilenet_v1 import MobileNetV1
from jaxkd.models.net import Net, from_foreign, from_linen
from tests.compress.prune.nets import (
    FlatVgg,
    GroupNormed,
    InvertedResidual,
    UNet,
    applied,
    images,
    made,
    randomised,
    some,
)
from tests.toys import Toy


def small_and_masked(module):
    variables = made(module)
    plan = prune.analyse(applied(module), variables, images())
    dropped = some(plan)
    return plan, dropped, plan.apply(variables, dropped), plan.mask(variables, dropped)


def close(a, b):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), a, b
    )


def test_the_module_is_left_as_it_was():
    module = UNet()
    before = repr(module), vars(module).copy()
    _, _, small, _ = small_and_masked(module)
    jax.eval_shape(prune.resized(module).apply, small, images())
    assert (repr(module), vars(module)) == before
    with pytest.raises(Exception, match="shape"):
        jax.eval_shape(module.apply, small, images())
    # With the original variables nothing changes.
    trace = lambda f: str(jax.make_jaxpr(f)(made(module), images()))
    assert trace(prune.resized(module).apply) == trace(module.apply)


def test_a_layer_alone_is_resized_and_left_as_it_was():
    layer, x = nn.Conv(8, (3, 3), feature_group_count=2), jnp.ones((1, 4, 4, 4))
    kernel = {"kernel": jnp.ones((3, 3, 1, 6)), "bias": jnp.ones(6)}
    out = prune.resized(layer).apply({"params": kernel}, x[..., :2])
    assert out.shape == (1, 4, 4, 6)
    assert (layer.features, layer.feature_group_count) == (8, 2)


def test_init_is_the_modules_own():
    module = InvertedResidual()
    shapes = jax.eval_shape(prune.resized(module).init, jax.random.key(3), images())
    assert shapes == jax.eval_shape(module.init, jax.random.key(3), images())


def test_inside_jit_scan_and_vmap():
    module = FlatVgg()
    plan, dropped, small, masked = small_and_masked(module)
    run = lambda v, x: prune.resized(module).apply(v, x)
    twice = lambda tree: jax.tree.map(lambda a: 2 * a, tree)

    @jax.jit
    def all_ways(small, x):
        _, scanned = jax.lax.scan(lambda c, x: (c, run(small, x[None])[0]), 0, x)
        mapped = jax.vmap(lambda x: run(small, x[None])[0])(x)
        stacked = jax.tree.map(lambda *a: jnp.stack(a), small, twice(small))
        return run(small, x), scanned, mapped, jax.vmap(run, (0, None))(stacked, x)

    x = images(4)
    expected, doubled = jax.jit(
        lambda v, x: (module.apply(v, x), module.apply(twice(v), x))
    )(masked, x)
    jitted, scanned, mapped, stacked = all_ways(small, x)
    for out in (jitted, scanned, mapped, stacked[0]):
        close(out, expected)
    close(stacked[1], doubled)


def test_training_mode_gradients_and_batch_statistics():
    module = InvertedResidual()
    plan, dropped, small, masked = small_and_masked(module)
    x = images(8)

    def loss(apply):
        def of(params, state):
            out, new = apply(
                {"params": params, **state}, x, train=True, mutable=["batch_stats"]
            )
            return (out**2).mean(), new

        return jax.jit(jax.value_and_grad(of, has_aux=True))

    rest = lambda v: (v["params"], {"batch_stats": v["batch_stats"]})
    (a, new_a), grads_a = loss(prune.resized(module).apply)(*rest(small))
    (b, new_b), grads_b = loss(module.apply)(*rest(masked))
    close(a, b)
    close(new_a["batch_stats"], plan.apply(new_b["batch_stats"], dropped))
    close(grads_a, plan.apply(grads_b, dropped))


def test_a_net_stays_a_net_and_is_measured_as_any():
    net = from_linen(Toy(8))
    params, state = randomised(net.init(jax.random.key(0), jnp.ones((1, 4, 4, 3))))
    plan = prune.analyse_net(net, params, state, (4, 4, 3))
    small = prune.resized(net)
    assert isinstance(small, Net)
    left = plan.apply((params, state), [0, 1, 7])
    x = jax.random.normal(jax.random.key(2), (6, 4, 4, 3))
    out, new = small.apply(*left, x, train=True, key=jax.random.key(0))
    assert out.taps["hidden"].shape == (6, 5)
    assert jax.tree.map(jnp.shape, new) == jax.tree.map(jnp.shape, left[1])
    logits = evaluate.predict(
        lambda v, batch: small.apply(*v, batch["image"], train=False)[0],
        left,
        {"image": x},
        view=lambda key, batch: batch,
    )
    masked, _ = net.apply(*plan.mask((params, state), [0, 1, 7]), x, train=False)
    close(logits, masked.logits)


def test_foreign_networks_are_pruned_too():
    net = from_foreign(InvertedResidual(), {}, call=lambda train: {"train": train})
    params, state = randomised(net.init(jax.random.key(0), images()))
    plan = prune.analyse_net(net, params, state, images().shape[1:])
    assert {g.name for g in plan.groups} == {"stem", "widen"}
    report = prune.check_net(net, plan, params, state, some(plan), images())
    assert report.difference < 1e-5


def test_a_depthwise_network_of_the_zoo_keeps_its_groups():
    net, x = from_linen(MobileNetV1(0.25, 5)), images(1)
    params, state = jax.eval_shape(net.init, jax.random.key(0), x)
    plan = prune.analyse_net(net, params, state, x.shape[1:])
    small, _ = plan.apply((params, state), some(plan))
    kernel = small["stage1_block1"]["conv1"]["kernel"]
    assert kernel.shape == (3, 3, 1, plan.kept(some(plan))[0])
    report = prune.check_net(net, plan, params, state, some(plan), x)
    assert np.isnan(report.difference) and report.macs == plan.macs(some(plan))


class Layers(nn.Module):
    """Every layer of linen that has a width of its own."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.ConvLocal(6, (3, 3), strides=2, name="local")(x)
        x = nn.DenseGeneral((2, 4), name="general")(x.mean((1, 2)))
        x = nn.DenseGeneral(7, axis=(-2, -1), name="back")(nn.relu(x))
        x = nn.Einsum((7, 5), "bi,ij->bj", name="einsum")(nn.tanh(x))
        table = nn.Embed(3, 5, name="embed")(jnp.array([0, 2]))
        return nn.Dense(4, name="head")(x * table)


def test_every_layer_with_a_width_follows_its_kernel():
    module = Layers()
    plan = prune.analyse(applied(module), made(module), images())
    assert {g.name: len(g.units) for g in plan.groups} == {
        "local": 6,
        "general": 2,  # the first of its two axes
        "general#2": 4,
        "back": 7,
        "einsum": 5,
    }
    dropped = some(plan)
    report = prune.check(applied(module), plan, made(module), dropped, images())
    assert report.difference < 1e-5


def test_group_norm_keeps_its_groups_in_every_form_of_the_network():
    module, x = GroupNormed(), images()
    plan, dropped, small, masked = small_and_masked(module)
    expected = jax.jit(module.apply)(masked, x)
    close(jax.jit(prune.resized(module).apply)(small, x), expected)
    net = from_foreign(module, {}, call=lambda train: {"train": train})
    out, _ = jax.jit(lambda v, x: prune.resized(net).apply(v, {}, x, train=False))(
        small["params"], x
    )
    close(out.logits, expected)
    # What was pruned once is pruned again.
    run = lambda v, x: prune.resized(module).apply(v, x)
    again = prune.analyse(run, small, x)
    assert {g.name: len(g.units) for g in again.groups} == dict(
        zip((g.name for g in plan.groups), plan.kept(dropped), strict=True)
    )
    assert prune.check(run, again, small, some(again), x).difference < 1e-5


@pytest.mark.bad_input
def test_groups_whose_size_is_not_known_are_refused():
    class Two(nn.Module):
        @nn.compact
        def __call__(self, x, first: bool = True):
            return nn.GroupNorm(2, name="a" if first else "b")(x)

    x = jnp.ones((1, 4, 4, 8))
    variables = {"params": {"b": {"scale": jnp.ones(8), "bias": jnp.ones(8)}}}
    net = Net(Two().init, lambda p, s, x: (Two().apply({"params": p}, x, False), s))
    with pytest.raises(ValueError, match=r"'b' is not called.*there are \['a'\]"):
        prune.resized(net).apply(variables["params"], {}, x)


@pytest.mark.bad_input
def test_what_is_no_network_is_refused():
    with pytest.raises(ValueError, match="a Net or a linen module"):
        prune.resized(lambda x: x)
