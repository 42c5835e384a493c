"""A Net behaves the same whichever way its taps are read and its mode is told."""

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.models import from_foreign, from_linen, mlp
from jaxkd.models.net import naming_images
from jaxkd.types import Outputs

KEY = jax.random.key(0)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.relu(nn.Dense(4)(x))


class Foreign(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = Block(name="one")(x)
        return nn.Dense(3)(Block(name="two")(x))


class Modes(nn.Module):
    """Tells what it was told, by the name it is told it by."""

    @nn.compact
    def __call__(self, x, deterministic):
        x = nn.BatchNorm(use_running_average=deterministic, momentum=0.5)(x)
        self.sow("intermediates", "seen", x)
        return nn.Dropout(0.5, deterministic=deterministic)(x)


def test_foreign_taps_are_named_and_work_under_jit_and_grad():
    net = from_foreign(Foreign(), {"early": "one", "inner": "two/Dense_0"})
    x = jnp.ones((2, 5))
    params, state = net.init(KEY, x)
    out, after = jax.jit(lambda p: net.apply(p, state, x, train=False))(params)
    assert state == after == {}
    assert out.logits.shape == (2, 3)
    assert {k: v.shape for k, v in out.taps.items()} == {
        "early": (2, 4),
        "inner": (2, 4),
    }
    early = np.maximum(x @ params["one"]["Dense_0"]["kernel"], 0)
    np.testing.assert_allclose(out.tap("early"), early, rtol=1e-6)
    loss = lambda p: net.apply(p, state, x, train=True)[0].taps["early"].sum()
    assert jax.grad(loss)(params)["one"]["Dense_0"]["kernel"].any()


class Returns(nn.Module):
    """Returns its logits in one of several forms."""

    form: str

    @nn.compact
    def __call__(self, x):
        z = nn.Dense(3)(x)
        return {"bare": z, "pair": (z, {"x": x}), "outputs": Outputs(z, {"x": x})}.get(
            self.form, (z, z)
        )


@pytest.mark.parametrize("form", ["bare", "pair", "outputs"])
@pytest.mark.parametrize("batch", [2, 5])
def test_what_a_module_returns_is_understood(form, batch):
    net, x = from_linen(Returns(form)), jnp.ones((batch, 4))
    params, state = net.init(KEY, x)
    out, _ = net.apply(params, state, x, train=True)
    expected = x @ params["Dense_0"]["kernel"]  # the bias is zero at first
    np.testing.assert_allclose(out.logits, expected, rtol=1e-6)
    assert set(out.taps) == (set() if form == "bare" else {"x"})


@pytest.mark.bad_input
def test_what_is_no_output_is_refused_at_once():
    with pytest.raises(ValueError, match="must return logits, .logits, taps."):
        from_linen(Returns("two")).init(KEY, jnp.ones((2, 4)))


class Trains(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return nn.Dense(1)(x), {"told": jnp.asarray(train)}


class Deterministic(nn.Module):
    @nn.compact
    def __call__(self, x, deterministic):
        return nn.Dense(1)(x), {"told": jnp.asarray(deterministic)}


class UsesAverages(nn.Module):
    @nn.compact
    def __call__(self, x, *, use_running_average):
        return nn.Dense(1)(x), {"told": jnp.asarray(use_running_average)}


@pytest.mark.parametrize(
    ("module", "told"), [(Trains, True), (Deterministic, False), (UsesAverages, False)]
)
def test_a_module_is_told_that_it_trains_by_the_argument_it_has(module, told):
    net, x = from_linen(module()), jnp.ones((2, 4))
    variables = net.init(KEY, x)
    for train in (True, False):
        found = net.apply(*variables, x, train=train)[0].tap("told")
        assert found == (told if train else not told)


def test_every_stream_of_random_numbers_has_a_key():
    class Noisy(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            z = nn.Dense(3)(x)
            if train:
                z += jax.random.normal(self.make_rng("noise"), z.shape)
            return z

    net, x = from_linen(Noisy()), jnp.ones((2, 4))
    variables = net.init(KEY, x)
    a, b = (
        net.apply(*variables, x, train=True, key=k)[0].logits
        for k in (KEY, jax.random.key(1))
    )
    assert (a != b).all()


def test_taps_do_not_change_the_logits():
    x = jnp.ones((2, 5))
    net = from_foreign(Foreign(), {"early": "one"})
    params, state = net.init(KEY, x)
    np.testing.assert_array_equal(
        net.apply(params, state, x, train=False)[0].logits,
        Foreign().apply({"params": params}, x),
    )


@pytest.mark.bad_input
def test_a_misspelt_path_is_an_error_not_an_empty_dict():
    net = from_foreign(Foreign(), {"early": "oen"})
    x = jnp.ones((2, 5))
    params, state = net.init(KEY, x)
    with pytest.raises(KeyError, match=r"no submodule was called at \['oen'\]"):
        jax.jit(lambda p: net.apply(p, state, x, train=False))(params)
    out, _ = from_foreign(Foreign(), {"early": "one"}).apply(
        params, state, x, train=False
    )
    with pytest.raises(KeyError, match="no tap 'late'; there are"):
        out.tap("late")


def test_the_caller_says_how_a_foreign_module_is_told_that_it_trains():
    net = from_foreign(Modes(), {}, call=lambda train: {"deterministic": not train})
    x = jnp.arange(8.0).reshape(4, 2)
    params, state = net.init(KEY, x)
    assert set(state) == {"batch_stats"}  # what was sown is no state
    out, still = net.apply(params, state, x, train=False)
    jax.tree.map(np.testing.assert_array_equal, state, still)
    assert (out.logits != 0).sum() == 7  # no dropout; the first entry was 0
    trained, moved = net.apply(params, state, x, train=True, key=KEY)
    assert (trained.logits == 0).any()
    mean = moved["batch_stats"]["BatchNorm_0"]["mean"]
    np.testing.assert_allclose(mean, x.mean(0) / 2)
    assert jax.tree.structure(moved) == jax.tree.structure(state)


def test_inference_cannot_change_the_state():
    class Counter(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            calls = self.variable("counters", "calls", lambda: jnp.zeros(()))
            calls.value += 1
            return nn.Dense(1)(x), {}

    net = from_linen(Counter())
    x = jnp.ones((1, 2))
    params, state = net.init(KEY, x)
    _, moved = net.apply(params, state, x, train=True)
    assert moved["counters"]["calls"] == state["counters"]["calls"] + 1
    with pytest.raises(flax.errors.ModifyScopeVariableError):
        net.apply(params, state, x, train=False)


def test_a_key_draws_dropout_and_inference_needs_none():
    net = mlp([8], classes=3, dropout=0.5, input_dropout=0.2)
    x = jnp.ones((4, 6))
    params, state = net.init(KEY, x)
    logits = lambda seed: (
        net.apply(params, state, x, train=True, key=jax.random.key(seed))[0].logits
    )
    np.testing.assert_array_equal(logits(1), logits(1))
    assert (logits(1) != logits(2)).any()
    with pytest.raises(ValueError, match="key must be a PRNG key, got None"):
        net.apply(params, state, x, train=True)
    net.apply(params, state, x, train=False)


def test_interceptors_reach_the_layers_of_a_net():
    seen = []

    def note(call, args, kwargs, context):
        seen.append(context.module.name)
        return call(*args, **kwargs)

    net = mlp([8], classes=3)
    with nn.intercept_methods(note):
        net.init(KEY, jnp.ones((1, 2)))
    assert {"hidden1", "head"} <= set(seen)


def test_a_module_of_ours_is_called_with_train():
    class Told(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            return nn.Dense(1)(x), {"train": jnp.asarray(train)}

    net = from_linen(Told())
    params, state = net.init(KEY, jnp.ones((1, 2)))
    for train in (True, False):
        out, _ = net.apply(params, state, jnp.ones((1, 2)), train=train)
        assert out.tap("train") == train


@pytest.mark.bad_input
def test_images_that_a_network_cannot_take_are_named():
    net = mlp([8], classes=3)
    params, state = net.init(KEY, jnp.ones((1, 2, 2, 1)))
    f = lambda p, x: net.apply(p, state, x, train=False)[0].logits
    wrong, right = (jax.ShapeDtypeStruct((1, n, 2, 1), "float32") for n in (3, 2))
    match = r"does not take images \[1, 3, 2, 1\].* says: .*hidden1"
    with pytest.raises(ValueError, match=match), naming_images(f, params, wrong):
        jax.eval_shape(f, params, wrong)
    # What else goes wrong in the block stays what it is.
    with pytest.raises(KeyError, match="mine"), naming_images(f, params, right):
        raise KeyError("mine")
