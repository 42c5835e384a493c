"""Batch statistics taken anew: by definition, of masked as of pruned networks."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import distill, evaluate
from jaxkd.compress import prune
from jaxkd.data import augment
from jaxkd.models.net import from_linen
from tests.compress.prune import small


class Normed(nn.Module):
    """BatchNorm of two momenta, and a state that is none of its statistics."""

    frozen: bool = False

    @nn.compact
    def __call__(self, x, train):
        calls = self.variable("counters", "calls", lambda: jnp.zeros((), jnp.int32))
        if train:
            calls.value += 1
        x = x.reshape(len(x), -1)
        x = nn.BatchNorm(not train, momentum=0.99, name="first")(x)
        x = nn.Dropout(0.5, deterministic=not train)(nn.Dense(5, name="dense")(x))
        x = nn.BatchNorm(not train or self.frozen, momentum=0.5, name="second")(x)
        return x, {}


def started(module):
    net = from_linen(module)
    params, state = net.init(jax.random.key(0), jnp.ones((1, *small.SHAPE)))
    # Statistics far from the true ones: nothing of them may remain.
    stats = jax.tree.map(lambda a: a + 1e3, state["batch_stats"])
    return net, params, {**state, "batch_stats": stats}


def test_first_statistics_are_means_over_batches_whatever_was_there_and_the_momentum():
    net, params, state = started(Normed())
    new = prune.recalibrated(
        net, params, state, small.resident(), view=small.VIEW, batch_size=25
    )
    # 60 images: two batches of 25, and 10 that are left over.
    x = np.asarray(small.resident()["image"][:50], np.float64) / 255
    first = new["batch_stats"]["first"]
    batches = x.reshape(2, 25, -1)
    np.testing.assert_allclose(first["mean"], batches.mean(1).mean(0), rtol=1e-5)
    np.testing.assert_allclose(first["var"], batches.var(1).mean(0), rtol=2e-4)
    assert new["counters"] == state["counters"]


def test_fewer_images_than_a_batch_are_one_batch_and_later_layers_see_what_they_get():
    net, params, state = small.net, *small.variables()
    new = prune.recalibrated(net, params, state, small.resident(), view=small.VIEW)
    batch = small.VIEW(jax.random.key(0), small.resident())
    # With the statistics of this batch, inference says what training says of it.
    trained, _ = net.apply(params, state, batch["image"], train=True)
    after, _ = net.apply(params, new, batch["image"], train=False)
    before, _ = net.apply(params, state, batch["image"], train=False)
    np.testing.assert_allclose(after.logits, trained.logits, atol=1e-4)
    assert np.abs(before.logits - trained.logits).max() > 0.1


def test_dropout_and_views_are_those_of_the_seed():
    net, params, state = started(Normed())
    noisy = augment.chain(augment.flip(), small.VIEW)
    go = lambda seed: prune.recalibrated(
        net, params, state, small.resident(), view=noisy, batch_size=20, seed=seed
    )["batch_stats"]
    one, same, other = go(0), go(0), go(1)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, one, same))
    for name in ("first", "second"):
        assert not np.allclose(one[name]["mean"], other[name]["mean"])
    # Each batch is drawn by itself: the same images again are seen in other ways.
    twice = jax.tree.map(lambda a: jnp.concatenate([a, a]), small.resident())
    again = lambda images: prune.recalibrated(
        net, params, state, images, view=noisy, batch_size=60
    )["batch_stats"]["first"]["mean"]
    assert not np.allclose(again(twice), again(small.resident()))


def test_masked_with_recalibration_is_the_pruned_network_recalibrated():
    plan, images = small.plan(), small.resident()
    some = jax.tree.map(lambda a: a[:30], images)
    make = lambda **how: prune.masked_metric(
        small.net, plan, small.variables(), images, view=small.VIEW, measure="nll",
        **how,
    )  # fmt: skip
    anew, old = make(recalibrate_on=some), make()
    dropped = np.random.default_rng(0).choice(plan.units, 20, replace=False)
    params, state = plan.apply(small.variables(), dropped)
    net = prune.resized(small.net)
    state = prune.recalibrated(net, params, state, some, view=small.VIEW)
    logits = evaluate.predict(
        distill.frozen(net), (params, state), images, view=small.VIEW
    )
    expected = -float(evaluate.nll(logits, images["label"]))
    keep = plan.keep(dropped)
    assert anew(keep) == pytest.approx(expected, abs=1e-4)
    assert abs(anew(keep) - old(keep)) > 0.01
    # A file of the one is not a file of the other, nor of other images.
    assert anew.settings != old.settings
    other = make(recalibrate_on=jax.tree.map(lambda a: a[:31], images))
    assert anew.settings != other.settings


def test_a_network_without_batch_statistics_stays_as_it_is():
    class Plain(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            return nn.Dense(3)(x.reshape(len(x), -1)), {}

    net = from_linen(Plain())
    params, state = net.init(jax.random.key(0), jnp.ones((1, *small.SHAPE)))
    new = prune.recalibrated(net, params, state, small.resident(), view=small.VIEW)
    assert new == state == {}


@pytest.mark.bad_input
def test_what_cannot_be_recalibrated_is_named():
    net, params, state = started(Normed(frozen=True))
    with pytest.raises(ValueError, match="batch_stats/second/mean does not move"):
        prune.recalibrated(net, params, state, small.resident(), view=small.VIEW)
    with pytest.raises(ValueError, match="batch_size must be"):
        prune.recalibrated(
            small.net, *small.variables(), small.resident(), view=small.VIEW,
            batch_size=0,
        )  # fmt: skip
