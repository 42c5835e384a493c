"""Each family's block equals its paper's figure, written out in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.models.mobilenet_v1 import SeparableBlock
from jaxkd.models.mobilenet_v2 import InvertedResidual
from jaxkd.models.resnet import BasicBlock, Bottleneck
from jaxkd.models.shufflenet_v1 import ShuffleUnit
from jaxkd.models.shufflenet_v2 import SplitUnit
from jaxkd.models.wrn import PreActivationBlock


class Layers:
    """The block's convolutions and BatchNorms by name, in NumPy."""

    def __init__(self, variables):
        self.params, self.state = variables["params"], variables["batch_stats"]

    def conv(self, name, x, stride=1, groups=1):
        kernel = np.asarray(self.params[name]["kernel"], np.float64)
        k, _, _, outputs = kernel.shape
        reach = (k - 1) // 2
        x = np.pad(x, [(0, 0), (reach, reach), (reach, reach), (0, 0)])
        rows = range(0, x.shape[1] - k + 1, stride)
        columns = range(0, x.shape[2] - k + 1, stride)
        out = np.zeros((len(x), len(rows), len(columns), outputs))
        for i, row in enumerate(rows):
            for j, column in enumerate(columns):
                seen = np.split(x[:, row : row + k, column : column + k], groups, -1)
                cut = np.split(kernel, groups, -1)
                each = [
                    np.einsum("nhwi,hwio->no", a, b)
                    for a, b in zip(seen, cut, strict=True)
                ]
                out[:, i, j] = np.concatenate(each, -1)
        return out

    def norm(self, name, x):
        p, s = self.params[name], self.state[name]
        scale, bias, mean, var = (
            np.asarray(a, np.float64)
            for a in (p["scale"], p["bias"], s["mean"], s["var"])
        )
        return (x - mean) / np.sqrt(var + 1e-5) * scale + bias


def relu(x):
    return np.maximum(x, 0)


def relu6(x):
    return np.clip(x, 0, 6)


def dealt(x, groups):
    return np.concatenate(
        [x[..., i :: x.shape[-1] // groups] for i in range(x.shape[-1] // groups)], -1
    )


def basic(f, x):
    y = relu(f.norm("norm1", f.conv("conv1", x, 2)))
    shortcut = f.norm("shortcut_norm", f.conv("shortcut_conv", x, 2))
    return f.norm("norm2", f.conv("conv2", y)) + shortcut


def basic_same(f, x):
    y = relu(f.norm("norm1", f.conv("conv1", x)))
    return f.norm("norm2", f.conv("conv2", y)) + x


def bottleneck(f, x):
    y = relu(f.norm("norm1", f.conv("conv1", x)))
    y = relu(f.norm("norm2", f.conv("conv2", y, 2)))
    shortcut = f.norm("shortcut_norm", f.conv("shortcut_conv", x, 2))
    return f.norm("norm3", f.conv("conv3", y)) + shortcut


def pre_activation(f, x):
    y = relu(f.norm("norm1", x))
    z = relu(f.norm("norm2", f.conv("conv1", y, 2)))
    return f.conv("shortcut_conv", y, 2) + f.conv("conv2", z)


def pre_activation_same(f, x):
    z = relu(f.norm("norm2", f.conv("conv1", relu(f.norm("norm1", x)))))
    return x + f.conv("conv2", z)


def separable(f, x):
    y = relu(f.norm("norm1", f.conv("conv1", x, 2, groups=4)))
    return f.norm("norm2", f.conv("conv2", y))


def inverted(f, x):
    y = relu6(f.norm("norm1", f.conv("conv1", x)))
    y = relu6(f.norm("norm2", f.conv("conv2", y, groups=8)))
    return x + f.norm("norm3", f.conv("conv3", y))


def inverted_strided(f, x):
    y = relu(f.norm("norm2", f.conv("conv2", x, 2, groups=4)))
    return f.norm("norm3", f.conv("conv3", y))


def unit(f, x):
    y = relu(f.norm("norm1", f.conv("conv1", x, groups=2)))
    y = relu(f.norm("norm2", f.conv("conv2", dealt(y, 2), groups=4)))
    return x + f.norm("norm3", f.conv("conv3", y, groups=2))


def unit_strided(f, x):
    y = relu(f.norm("norm1", f.conv("conv1", x)))
    y = relu(f.norm("norm2", f.conv("conv2", y, 2, groups=4)))
    y = f.norm("norm3", f.conv("conv3", y, groups=2))
    padded = np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)])
    mean = sum(
        padded[:, i : i + 5 : 2, j : j + 5 : 2] for i in range(3) for j in range(3)
    )
    return np.concatenate([y, mean / 9], -1)


def split(f, x):
    y = relu(f.norm("norm1", f.conv("conv1", x[..., 2:])))
    y = f.norm("norm2", f.conv("conv2", y, groups=2))
    y = f.norm("norm3", f.conv("conv3", y))
    return dealt(np.concatenate([x[..., :2], y], -1), 2)


def split_strided(f, x):
    left = f.norm("left_norm1", f.conv("left_conv1", x, 2, groups=4))
    left = f.norm("left_norm2", f.conv("left_conv2", left))
    y = relu(f.norm("norm1", f.conv("conv1", x)))
    y = f.norm("norm2", f.conv("conv2", y, 2, groups=3))
    y = f.norm("norm3", f.conv("conv3", y))
    return dealt(np.concatenate([left, y], -1), 2)


# Block, channels that go in, its definition.
CASES = {
    "basic": (BasicBlock(6, 2, False, projects=True), 4, basic),
    "basic_same": (BasicBlock(4, 1, False), 4, basic_same),
    "bottleneck": (Bottleneck(2, 2, False, projects=True), 4, bottleneck),
    "pre_activation": (
        PreActivationBlock(6, 2, False, projects=True),
        4,
        pre_activation,
    ),
    "pre_activation_same": (PreActivationBlock(4, 1, False), 4, pre_activation_same),
    "separable": (SeparableBlock(6, 2, False), 4, separable),
    "inverted": (InvertedResidual(4, 1, 8, True, False, joins=True), 4, inverted),
    "inverted_strided": (
        InvertedResidual(4, 2, None, False, False),
        4,
        inverted_strided,
    ),
    "unit": (ShuffleUnit(16, 1, 2, False, False), 16, unit),
    "unit_strided": (ShuffleUnit(20, 2, 2, True, False), 4, unit_strided),
    "split": (SplitUnit(4, 1, False), 4, split),
    "split_strided": (SplitUnit(6, 2, False), 4, split_strided),
}


@pytest.mark.parametrize("case", CASES)
def test_block_is_its_papers(case):
    block, channels, definition = CASES[case]
    draw = np.random.default_rng(0)
    x = 3 * draw.standard_normal((2, 6, 6, channels)).astype(np.float32)
    shapes = jax.eval_shape(block.init, jax.random.key(0), x)
    variables = jax.tree.map(
        lambda a: (
            jnp.asarray(draw.uniform(0.2, 1.5, a.shape), a.dtype)
            * (1 if len(a.shape) == 1 else draw.choice([-1, 1], a.shape))
        ),
        shapes,
    )
    out = jax.jit(block.apply)(variables, x)
    out = out[0] if isinstance(out, tuple) else out
    wanted = definition(Layers(variables), x.astype(np.float64))
    np.testing.assert_allclose(out, wanted, rtol=1e-4, atol=2e-4)
