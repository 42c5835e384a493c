"""A network of flax.nnx is pruned, folded, quantized and exported as one of linen."""

import jax
import numpy as np
import pytest
from flax import nnx

from jaxkd import export
from jaxkd.compress import prune, quantize
from jaxkd.models import from_nnx
from jaxkd.transfer import frozen_statistics

KEY = jax.random.key(0)
SHAPE = (6, 6, 3)
X = jax.random.normal(jax.random.key(1), (16, *SHAPE))


class Separable(nnx.Module):
    """A depthwise and a pointwise convolution, with every normalisation."""

    def __init__(self, *, rngs):
        self.stem = nnx.Conv(3, 16, (3, 3), use_bias=False, rngs=rngs)
        self.norms = nnx.List([nnx.BatchNorm(16, rngs=rngs) for _ in range(2)])
        self.depth = nnx.Conv(16, 16, (3, 3), feature_group_count=16, rngs=rngs)
        self.point = nnx.Conv(16, 24, (1, 1), rngs=rngs)
        self.groups = nnx.GroupNorm(24, num_groups=6, rngs=rngs)
        self.drop = nnx.Dropout(0.1, rngs=rngs)
        self.hidden = nnx.LinearGeneral(24, (12,), rngs=rngs)
        self.last = nnx.BatchNorm(12, use_scale=False, rngs=rngs)
        self.head = nnx.Linear(12, 5, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norms[0](self.stem(x)))
        x = nnx.relu(self.norms[1](self.depth(x)))
        x = self.drop(self.groups(self.point(x)))
        x = self.hidden(nnx.relu(x.mean((1, 2))))
        return self.head(self.last(x))


def made():
    net = from_nnx(Separable, taps={"depth": "depth"})
    params, state = net.init(KEY, X)
    train = jax.jit(lambda s: net.apply(params, s, X, train=True, key=KEY)[1])
    for _ in range(50):  # statistics that are not zero and one
        state = train(state)
    return net, params, state


def test_channels_are_removed_as_masked():
    net, *variables = made()
    plan = prune.analyse_net(net, *variables, SHAPE)
    dropped = prune.choose(plan, prune.criteria.l1(plan, variables[0]), 0.5, round_to=1)
    small = plan.apply(tuple(variables), dropped)
    shapes = jax.tree.map(np.shape, small[0])
    assert shapes["depth"]["kernel"] == (3, 3, 1, 8)
    assert shapes["point"]["kernel"] == (1, 1, 8, 12)
    assert shapes["hidden"]["kernel"] == (12, 6)
    result = prune.check_net(net, plan, *variables, dropped, X)
    assert result.difference < 1e-5
    assert result.macs == len(X) * plan.macs(dropped)


def test_norms_are_folded_and_the_int8_file_is_the_network(tmp_path):
    net, params, state = made()
    assert quantize.unfolded(net, params, state, SHAPE) == ["last"]
    folded = quantize.fold(net, params, state, SHAPE, examples=X)
    assert folded[2] == {}
    assert "norms" not in folded[1] and set(folded[1]["stem"]) == {"bias", "kernel"}
    a = net.apply(params, state, X, train=False)[0].logits
    b = folded[0].apply(*folded[1:], X, train=False)[0].logits
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)

    config = quantize.Quantization(activation="static")
    ready, params, state = quantize.quantized(*folded, config, SHAPE)
    state = quantize.calibrate(ready, params, state, [X])
    c = ready.apply(params, state, X, train=False)[0].logits
    assert 0 < np.abs(c - a).max() < 0.1 * np.abs(a).max()
    path = tmp_path / "small.stablehlo"
    export.stablehlo(
        ready, params, state, path, inputs=X, quantize=config, float_ops="any"
    )
    np.testing.assert_allclose(export.load(path)(X), c, rtol=1e-4, atol=1e-4)


def test_statistics_stay_where_they_are_frozen():
    net, params, state = made()
    frozen = frozen_statistics(net, "norms/*")
    _, after = frozen.apply(params, state, X + 1, train=True, key=KEY)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), state, after)
    assert moved["batch_stats"]["last"] == {"mean": True, "var": True}
    assert not any(jax.tree.leaves(moved["batch_stats"]["norms"]))
    with pytest.raises(ValueError, match="fits no BatchNorm"):
        frozen_statistics(net, "stem*").apply(params, state, X, train=True, key=KEY)


class Reshapes(nnx.Module):
    """Has a width of its own in a reshape."""

    def __init__(self, *, rngs):
        self.body = Body(rngs=rngs)
        self.head = nnx.Linear(4, 5, rngs=rngs)

    def __call__(self, x):
        return self.head(self.body(x.mean((1, 2))))


class Body(nnx.Module):
    def __init__(self, *, rngs):
        self.inner = nnx.Linear(3, 8, rngs=rngs)

    def __call__(self, x):
        return nnx.relu(self.inner(x)).reshape(-1, 2, 4).sum(1)


def test_what_cannot_be_resized_is_listed_with_its_module():
    net = from_nnx(Reshapes)
    listing = prune.analyse_net(net, *net.init(KEY, X), SHAPE).listing()
    assert "0 units" in listing and "in body: " in listing
