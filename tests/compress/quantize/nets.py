"""A small network with all that is hard to quantize, trained on real images."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxkd import _tree, data, distill, evaluate, losses, train
from jaxkd.data import augment
from jaxkd.models._layers import conv, global_mean, norm
from jaxkd.models.net import from_linen

SHAPE = (8, 8, 1)
view = augment.to_float()
labels_only = {"ce": (1.0, distill.on_labels(losses.cross_entropy))}


class Small(nn.Module):
    """Residual sum, pointwise and depthwise convolution, mean, dense head."""

    width: int = 16
    activate: object = nn.relu

    @nn.compact
    def __call__(self, x, train=False):
        taps = {}
        x = self.activate(
            norm(train, name="stem_norm")(conv(self.width, 3, name="stem")(x))
        )
        taps["stem"] = x
        y = self.activate(norm(train, name="norm1")(conv(24, 3, name="conv1")(x)))
        y = norm(train, name="norm2")(conv(self.width, 3, name="conv2")(y))
        x = taps["block"] = self.activate(x + y)
        x = self.activate(norm(train, name="norm3")(conv(32, 1, name="point")(x)))
        x = conv(32, 3, 2, groups=32, name="depth")(x)
        x = taps["last"] = self.activate(norm(train, name="norm4")(x))
        x = taps["pooled"] = global_mean(x)
        return nn.Dense(10, name="head")(x), taps


small = from_linen(Small())
LAYERS = ["stem", "conv1", "conv2", "point", "depth", "head"]


def images(n=4, shape=SHAPE, seed=0):
    return np.asarray(jax.random.uniform(jax.random.key(seed), (n, *shape)))


def made(net, shape=SHAPE, seed=0):
    """Variables whose BatchNorms have statistics, scales and biases of all sorts.

    Drawn without compiling the network's own `init`.
    """
    x = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    shapes = jax.eval_shape(net.init, jax.random.key(0), x)
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        value = rng.normal(size=leaf.shape)
        if path.endswith("kernel"):
            value *= np.sqrt(2 / np.prod(leaf.shape[:-1]))
        elif path.endswith(("scale", "var")):
            value = np.abs(1 + 0.3 * value)
        else:
            value *= 0.3
        return jnp.asarray(value, leaf.dtype)

    return _tree.map_with_path(draw, shapes)


def infer(net, params, state, x, **how):
    run = jax.jit(lambda p, s, x: net.apply(p, s, x, train=False, **how)[0])
    return run(params, state, x)


@functools.cache
def digits(split):
    return data.on_device(data.load("digits", split))


def trained(net, variables, *, epochs, rate, seed=0):
    """The variables after some epochs on digits, by the ordinary procedure."""
    fit = distill.distiller(net, distill.no_teacher, labels_only, optax.adam(rate))
    epoch = train.make_epoch(fit, view=view, batch_size=100)
    key, example = jax.random.key(seed), train.example(digits("train"), view)
    state = jax.jit(lambda key: fit.init(key, None, example))(key)
    if variables is not None:
        params, own = variables
        state = state._replace(
            params={**state.params, "student": params},
            state={**state.state, "student": own},
        )
        state = state._replace(opt_state=optax.adam(rate).init(state.params))
    # A copy: the steps take over the memory of what they are given.
    state = jax.tree.map(jnp.copy, state)
    run = train.fit(
        epoch, state, None, digits("train"), key=key, epochs=epochs, progress=False
    )
    return run.state.params["student"], run.state.state["student"]


def accuracy(net, params, state):
    return predicted(distill.frozen(net), (params, state))


def predicted(teacher, variables):
    @jax.jit
    def score(variables, resident):
        logits = evaluate.predict(teacher, variables, resident, view=view)
        return evaluate.accuracy(logits, resident["label"])

    return float(score(variables, digits("test")))


def batches(n=3, size=100):
    x = np.asarray(digits("train")["image"][: n * size], np.float32) / 255
    return list(x.reshape(n, size, *x.shape[1:]))
