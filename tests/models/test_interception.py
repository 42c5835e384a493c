"""A call by keyword is to every interceptor what the call by position is."""

import flax.linen as nn
import jax
import numpy as np

from jaxkd import models, transfer
from jaxkd.compress import prune, quantize
from jaxkd.compress.search._blocks import taken_apart

X = np.random.default_rng(0).normal(size=(4, 6, 6, 3)).astype("f4")


class Net(nn.Module):
    """Two layers and a BatchNorm, called one way or the other."""

    by_keyword: bool

    @nn.compact
    def __call__(self, x, train=False):
        given = (lambda name, x: {name: x}) if self.by_keyword else None
        called = lambda layer, name, x: layer(**given(name, x)) if given else layer(x)
        x = called(nn.Conv(8, (3, 3), name="conv"), "inputs", x)
        norm = nn.BatchNorm(use_running_average=not train, name="norm")
        x = nn.relu(called(norm, "x", x))
        return called(nn.Dense(5, name="head"), "inputs", x.mean((1, 2)))


def both(does):
    """What `does` returns for the two networks, with the same variables."""
    nets = [
        models.from_foreign(Net(way), {}, call=lambda train: {"train": train})
        for way in (False, True)
    ]
    variables = nets[0].init(jax.random.key(0), X)
    one, other = (jax.tree.leaves(does(net, *variables)) for net in nets)
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    return one


def test_pruning():
    def pruned(net, params, state):
        plan = prune.analyse_net(net, params, state, X.shape[1:])
        dropped = prune.choose(plan, prune.criteria.l1(plan, params), 0.5, round_to=1)
        prune.check_net(net, plan, params, state, dropped, X)
        small = plan.apply((params, state), dropped)
        return prune.resized(net).apply(*small, X, train=False)[0].logits, small

    assert len(both(pruned)[0]) == len(X)


def test_folding():
    assert both(lambda net, *v: quantize.fold(net, *v, X.shape[1:], check=False)[1:])


def test_stored_statistics():
    frozen = lambda net, *v: transfer.frozen_statistics(net).apply(*v, X, train=True)[1]
    assert both(frozen)


def test_blocks():
    blocks = lambda net, *_: list(taken_apart(net, X.shape[1:], {})[1:])
    macs, parameters = both(blocks)
    assert macs == 36 * 27 * 8 + 8 * 5 and parameters > 0
