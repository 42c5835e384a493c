"""A small network to prune, and data for it."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.compress import prune
from jaxkd.data import augment
from jaxkd.models.net import from_linen

SHAPE = (6, 6, 1)
VIEW = augment.to_float()


class Small(nn.Module):
    """Two convolutions with a residual third, BatchNorm throughout, and taps."""

    @nn.compact
    def __call__(self, x, train):
        taps = {}
        norm = lambda: nn.BatchNorm(use_running_average=not train, momentum=0.9)
        conv = lambda width: nn.Conv(width, (3, 3), use_bias=False)
        x = taps["one"] = nn.relu(norm()(conv(16)(x)))
        y = nn.relu(norm()(conv(24)(x)))
        x = taps["two"] = nn.relu(x + norm()(conv(16)(y)))
        x = taps["three"] = nn.relu(norm()(conv(32)(x)))
        return nn.Dense(3)(x.mean((1, 2))), taps


net = from_linen(Small())


@functools.cache
def variables():
    """Variables whose batch statistics and scales are not those of the start."""
    params, state = net.init(jax.random.key(0), jnp.ones((1, *SHAPE)))
    leaves, structure = jax.tree.flatten((params, state))
    rng = np.random.default_rng(1)
    moved = [
        leaf * jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), leaf.dtype)
        for leaf in leaves
    ]
    return jax.tree.unflatten(structure, moved)


@functools.cache
def plan():
    return prune.analyse_net(net, *variables(), SHAPE)


@functools.cache
def scores():
    return np.asarray(prune.criteria.l1(plan(), variables()[0]))


@functools.cache
def resident(n=60):
    """Images whose brightness tells their class."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, n)
    images = rng.integers(0, 80, (n, *SHAPE)) + 80 * labels[:, None, None, None]
    return {
        "image": jnp.asarray(images, jnp.uint8),
        "label": jnp.asarray(labels, jnp.int32),
        "index": jnp.arange(n),
    }


def additive(weights):
    """A metric in closed form: the sum of the weights of the units that remain."""
    return prune.Metric(lambda keep: float((weights * keep).sum()), {"metric": "sum"})
