"""A network written by hand, in float and marked as quantized, for the exporters."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

LAYOUT = ("NHWC", "HWIO", "NHWC")
SHAPE = (8, 8, 3)


def marked(x, scale, zero=0, *, axis=None, narrow=False, dtype="i8"):
    """`quant.fake_quant` as the exporters read it."""
    scale = np.asarray(scale, np.float32).reshape(-1)
    most = {"i8": 127, "i4": 7}[dtype]
    attributes = {
        "scale": scale,
        "zero_point": np.full(scale.size, zero, np.int64),
        "dtype": dtype,
        "narrow_range": narrow,
    }
    along = [1] * np.ndim(x)
    if axis is not None:
        attributes["quantization_dimension"] = axis
        along[axis] = -1
    step = scale.reshape(along) if scale.size > 1 else scale[0]

    @functools.partial(jax.lax.composite, name="quant.fake_quant")
    def fake(x, **_):
        numbers = jnp.clip(jnp.round(x / step) + zero, -most - (not narrow), most)
        return (numbers - zero) * step

    return fake(x, **attributes)


def kernels(seed=0):
    """A stem, a residual convolution, a depthwise one and a head, with their biases."""
    rng = np.random.default_rng(seed)
    shapes = {
        "stem": (3, 3, 3, 8),
        "residual": (3, 3, 8, 8),
        "depthwise": (3, 3, 1, 8),
        "head": (8, 5),
    }
    draw = lambda s: rng.normal(size=s).astype(np.float32)
    return {
        name: (draw(s) / np.sqrt(np.prod(s[:-1])), 0.1 * draw(s[-1:]))
        for name, s in shapes.items()
    }


def network(layer, act, add):
    """Stem, residual addition, max pooling, depthwise, mean over positions, head.

    Args:
      layer: `(name, x, product)` gives the product with its kernel and bias.
      act: `(name, x)` is called on every value that has a range.
      add: likewise on a sum or mean.
    """

    def f(x):
        x = act("image", x)
        x = act("stem", jax.nn.relu(layer("stem", x, strides=(2, 2))))
        y = act("residual", layer("residual", x))
        x = act("sum", jax.nn.relu(x + y))
        x = act("sum", _pool(x))
        x = act("depthwise", jax.nn.relu6(layer("depthwise", x, groups=8)))
        x = add("mean", x.mean((1, 2)))
        return act("logits", layer("head", x))

    return f


def _pool(x):
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def convolve(x, kernel, bias, strides=(1, 1), groups=1):
    y = lax.conv_general_dilated(
        x, kernel, strides, ((1, 1), (1, 1)), None, None, LAYOUT, groups
    )
    return y + bias


def _apply(weights, kernel_of):
    def layer(name, x, **how):
        kernel, bias = kernel_of(name), weights[name][1]
        if kernel.ndim == 2:
            return x @ kernel + bias.reshape(1, -1)
        return convolve(x, kernel, bias.reshape(1, 1, 1, -1), **how)

    return layer


def float_net(seed=0):
    """In float, folded."""
    weights = kernels(seed)
    same = lambda name, x: x
    return network(_apply(weights, lambda name: weights[name][0]), same, same)


def int8_net(seed=0, *, per_channel=True, weights_only=False, skip=(), bits="i8"):
    """The same with every value on a grid; `skip` are values and kernels left alone."""
    weights, seen = kernels(seed), {}

    def kernel_of(name):
        kernel = weights[name][0]
        if name in skip:
            return kernel
        axis = kernel.ndim - 1
        least = tuple(range(axis)) if per_channel else None
        most = {"i8": 127, "i4": 7}[bits]
        scale = np.abs(kernel).max(least) / most
        axis = axis if per_channel else None
        return marked(kernel, scale, axis=axis, narrow=True, dtype=bits)

    def note(name, x):
        low, high = seen.get(name, (0.0, 0.0))
        seen[name] = min(low, float(x.min())), max(high, float(x.max()))
        return x

    same = lambda name, x: x
    plain = network(_apply(weights, lambda name: weights[name][0]), note, note)
    plain(images())

    def act(name, x):
        if name in skip or weights_only:
            return x
        low, high = seen[name]
        scale = (high - low) / 255
        return marked(x, scale, round(-128 - low / scale))

    return network(_apply(weights, kernel_of), act if not weights_only else same, act)


def images(n=16, seed=1):
    return np.random.default_rng(seed).normal(size=(n, *SHAPE)).astype(np.float32)
