"""Networks as people write them: nothing in them is made for pruning."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

SIDE = 8


class BottleneckBlock(nn.Module):
    """The block of flax's example ResNet: the projection is decided by the shape."""

    filters: int
    conv: Any
    norm: Any
    strides: tuple[int, int] = (1, 1)

    @nn.compact
    def __call__(self, x):
        residual = x
        y = nn.relu(self.norm()(self.conv(self.filters, (1, 1))(x)))
        y = nn.relu(self.norm()(self.conv(self.filters, (3, 3), self.strides)(y)))
        y = self.norm(scale_init=nn.initializers.zeros_init())(
            self.conv(self.filters * 4, (1, 1))(y)
        )
        if residual.shape != y.shape:
            residual = self.norm(name="norm_proj")(
                self.conv(self.filters * 4, (1, 1), self.strides, name="conv_proj")(x)
            )
        return nn.relu(residual + y)


class FlaxResNet(nn.Module):
    """Stem, max-pool, two stages of a bottleneck, as in flax's ImageNet example."""

    stages: Sequence[int] = (1, 1)
    filters: int = 6

    @nn.compact
    def __call__(self, x, train: bool = True):
        conv = functools.partial(nn.Conv, use_bias=False, dtype=jnp.float32)
        norm = functools.partial(
            nn.BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-5
        )
        x = conv(
            self.filters, (7, 7), (2, 2), padding=[(3, 3), (3, 3)], name="conv_init"
        )(x)
        x = nn.relu(norm(name="bn_init")(x))
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding="SAME")
        for i, blocks in enumerate(self.stages):
            for j in range(blocks):
                strides = (2, 2) if i > 0 and j == 0 else (1, 1)
                x = BottleneckBlock(self.filters * 2**i, conv, norm, strides)(x)
        x = jnp.mean(x, axis=(1, 2))
        return jnp.asarray(nn.Dense(5)(x), jnp.float32)


class DenseNet(nn.Module):
    """Each layer sees all before it; a transition halves the channels."""

    growth: int = 4

    @nn.compact
    def __call__(self, x, train: bool = False):
        norm = lambda: nn.BatchNorm(use_running_average=not train)
        x = nn.Conv(6, (3, 3), name="stem")(x)
        for block, layers in ((1, (1, 2)), (2, (1,))):
            for layer in layers:
                y = nn.Conv(8, (1, 1), name=f"b{block}l{layer}a")(nn.relu(norm()(x)))
                y = nn.Conv(self.growth, (3, 3), name=f"b{block}l{layer}b")(nn.relu(y))
                x = jnp.concatenate([x, y], -1)
            if block == 1:
                x = nn.Conv(x.shape[-1] // 2, (1, 1), name="transition")(x)
                x = nn.avg_pool(x, (2, 2), (2, 2))
        return nn.Dense(5, name="head")(jnp.mean(nn.relu(norm()(x)), (1, 2)))


class SqueezeExcite(nn.Module):
    """Gates of channels with hard sigmoid, between hard swishes; depthwise inside."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.hard_swish(nn.Conv(8, (3, 3), name="stem")(x))
        for i in (1, 2):
            y = nn.hard_swish(nn.Conv(12, (1, 1), name=f"expand{i}")(x))
            y = nn.Conv(12, (3, 3), feature_group_count=12, name=f"depth{i}")(y)
            y = nn.BatchNorm(use_running_average=not train)(y)
            s = jnp.mean(y, (1, 2), keepdims=True)
            s = nn.relu(nn.Dense(4, name=f"squeeze{i}")(s))
            s = nn.hard_sigmoid(nn.Dense(12, name=f"excite{i}")(s))
            x = x + nn.Conv(8, (1, 1), name=f"project{i}")(nn.elu(y) * s)
        return nn.Dense(5, name="head")(nn.leaky_relu(x).mean((1, 2)))


class UNet(nn.Module):
    """Written with `setup`: skips, a transposed convolution and a resize."""

    def setup(self):
        self.down1 = nn.Conv(4, (3, 3))
        self.down2 = nn.Conv(6, (3, 3), strides=2)
        self.bottom = nn.Sequential([nn.Conv(8, (3, 3), strides=2), nn.gelu])
        self.up2 = nn.ConvTranspose(6, (2, 2), strides=(2, 2))
        self.join2 = nn.Conv(6, (3, 3))
        self.join1 = nn.Conv(4, (3, 3))
        self.turned = nn.ConvTranspose(6, (3, 3), transpose_kernel=True)
        self.out = nn.Conv(2, (1, 1))

    def encode(self, x):
        one = nn.relu(self.down1(x))
        two = nn.relu(self.down2(one))
        return one, two, self.bottom(two)

    def __call__(self, x, train: bool = False):
        one, two, x = self.encode(x)
        x = nn.relu(self.join2(jnp.concatenate([self.up2(x), two], -1)))
        b, h, w, c = x.shape
        x = jax.image.resize(x, (b, 2 * h, 2 * w, c), "bilinear")
        x = nn.relu(self.join1(jnp.concatenate([x, one], -1)))
        return self.out(nn.relu(self.turned(x)))


class Shared(nn.Module):
    """One convolution three times, and an embedding that is also the head."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Conv(8, (3, 3), name="stem")(x)
        again = nn.Conv(8, (3, 3), name="again")
        for _ in range(3):
            x = x + nn.tanh(again(x))
        classes = nn.Embed(5, 8, name="classes")
        return classes.attend(nn.sigmoid(x).mean((1, 2)))


class ResNeXt(nn.Module):
    """Grouped 3x3 convolutions inside a residual block."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.relu(nn.Conv(8, (3, 3), name="stem")(x))
        y = nn.relu(nn.Conv(12, (1, 1), name="reduce")(x))
        y = nn.relu(nn.Conv(24, (3, 3), feature_group_count=3, name="grouped")(y))
        y = nn.relu(nn.Conv(24, (3, 3), feature_group_count=6, name="grouped2")(y))
        x = nn.relu(x + nn.Conv(8, (1, 1), name="expand")(y))
        return nn.Dense(5, name="head")(x.mean((1, 2)))


class InvertedResidual(nn.Module):
    """MobileNetV2's block, and a depthwise convolution with a multiplier."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        norm = lambda: nn.BatchNorm(use_running_average=not train)
        x = nn.relu6(norm()(nn.Conv(6, (3, 3), strides=2, name="stem")(x)))
        y = nn.relu6(norm()(nn.Conv(12, (1, 1), name="widen")(x)))
        y = nn.Conv(12, (3, 3), feature_group_count=12, name="depth")(y)
        y = norm()(nn.Conv(6, (1, 1), name="narrow")(nn.relu6(norm()(y))))
        x = x + y
        x = nn.Conv(12, (3, 3), feature_group_count=6, name="double")(x)
        return nn.Dense(5, name="head")(nn.relu6(x).mean((1, 2)))


class PadShortcut(nn.Module):
    """He et al.'s option A: every second pixel, zeros for the new channels."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.relu(nn.Conv(6, (3, 3), name="stem")(x))
        y = nn.relu(nn.Conv(10, (3, 3), strides=2, name="conv1")(x))
        y = nn.Conv(10, (3, 3), name="conv2")(y)
        more = y.shape[-1] - x.shape[-1]
        x = jnp.pad(x[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (more // 2, more // 2)))
        return nn.Dense(5, name="head")(nn.relu(x + y).mean((1, 2)))


class FlatVgg(nn.Module):
    """A flattened map into dense layers."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        for i, width in enumerate((4, 6)):
            x = nn.Conv(width, (3, 3), name=f"conv{i}")(x)
            x = nn.max_pool(nn.relu(nn.BatchNorm(not train)(x)), (2, 2), (2, 2))
        x = x.reshape((x.shape[0], -1))
        x = nn.relu(nn.Dense(10, name="fc1")(x))
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return nn.Dense(5, name="head")(x)


class Rematerialised(nn.Module):
    """Blocks under `nn.remat`, and a compiled one."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        class Block(nn.Module):
            @nn.compact
            def __call__(self, x):
                y = nn.relu(nn.Conv(8, (3, 3), name="conv1")(x))
                return x + nn.Conv(x.shape[-1], (3, 3), name="conv2")(y)

        x = nn.Conv(6, (3, 3), name="stem")(x)
        x = nn.remat(Block)(name="block1")(x)
        x = nn.jit(Block)(name="block2")(x)
        return nn.Dense(5, name="head")(x.mean((1, 2)))


class Transformer(nn.Module):
    """Patches, flax's own attention, LayerNorm: heads and hidden units can go."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Conv(12, (4, 4), strides=4, padding="VALID", name="patches")(x)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        x = x + self.param("place", nn.initializers.normal(1.0), (1, 4, 12))
        y = nn.MultiHeadDotProductAttention(3, qkv_features=12, name="attend")(
            nn.LayerNorm()(x)
        )
        x = x + y
        y = nn.gelu(nn.Dense(16, name="mlp1")(nn.LayerNorm()(x)))
        x = x + nn.Dense(x.shape[-1], name="mlp2")(y)
        return nn.Dense(5, name="head")(nn.LayerNorm()(x).mean(1))


class Scanned(nn.Module):
    """Two layers under `nn.scan`, with parameters stacked."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        class Layer(nn.Module):
            @nn.compact
            def __call__(self, x, _):
                y = nn.relu(nn.Dense(9, name="up")(x))
                return x + nn.Dense(x.shape[-1], name="down")(y), None

        x = nn.Dense(7, name="stem")(x.mean((1, 2)))
        layers = nn.scan(
            Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=2
        )
        x, _ = layers(name="layers")(x, None)
        return nn.Dense(5, name="head")(x)


class Shuffled(nn.Module):
    """A channel shuffle between grouped convolutions, a gate, space to depth."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.relu(nn.Conv(12, (3, 3), name="stem")(x))
        b, h, w, c = x.shape
        x = x.reshape(b, h, w, 3, c // 3).swapaxes(-1, -2).reshape(b, h, w, c)
        x = nn.Conv(8, (1, 1), name="mix")(x)
        x = x.reshape(b, h // 2, 2, w // 2, 2, x.shape[-1]).transpose(0, 1, 3, 2, 4, 5)
        x = nn.Conv(8, (1, 1), name="deep")(x.reshape(b, h // 2, w // 2, -1))
        a, gate = jnp.split(x, 2, axis=-1)
        x = nn.Conv(6, (1, 1), name="out")(a * nn.sigmoid(gate))
        x = x[..., : x.shape[-1] // 2] - x[..., x.shape[-1] // 2 :]
        return nn.Dense(5, name="head")(x.mean((1, 2)))


class OwnParameters(nn.Module):
    """Parameters with a width of their own: nothing in them asks the input for it."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        normal = nn.initializers.normal(1.0)
        x = nn.Conv(12, (4, 4), strides=4, padding="VALID", name="patches")(x)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        token = self.param("token", normal, (1, 1, 12))
        token = jnp.broadcast_to(token, (len(x), 1, token.shape[-1]))
        x = jnp.concatenate([token, x], 1) + self.param("place", normal, (1, 5, 12))
        y = nn.gelu(jnp.einsum("btc,cd->btd", x, self.param("up", normal, (12, 9))))
        y = jnp.einsum("btd,dc->btc", y, self.param("down", normal, (9, 12)))
        x = x + y * self.param("layer_scale", normal, (1, 1, 12))
        y = nn.DenseGeneral((2, 4), name="heads")(x)
        y = y / (1 + jnp.linalg.norm(y, axis=-1, keepdims=True))
        x = x + nn.DenseGeneral(12, axis=(-2, -1), name="join")(y)
        return nn.Dense(5, name="head")(x[:, 0])


class OwnInSetup(nn.Module):
    """The same with `setup`, by a parameter that is stored as an attribute."""

    def setup(self):
        self.stem = nn.Conv(8, (3, 3))
        self.scale = self.param("scale", nn.initializers.ones, (1, 1, 1, 8))
        self.head = nn.Dense(5)

    def __call__(self, x, train: bool = False):
        return self.head(nn.relu(self.stem(x) * self.scale).mean((1, 2)))


class GroupNormed(nn.Module):
    """Groups by number and by size, in a residual block, and under `nn.remat`."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Conv(12, (3, 3), name="stem")(x)
        y = nn.relu(nn.GroupNorm(3, name="norm1")(x))
        y = nn.Conv(8, (3, 3), name="inner")(y)
        y = nn.GroupNorm(None, group_size=2, name="norm2")(y)
        x = x + nn.Conv(12, (3, 3), name="outer")(nn.relu(y))
        x = nn.remat(nn.GroupNorm)(6, name="norm3")(x)
        return nn.Dense(5, name="head")(nn.relu(x).mean((1, 2)))


# The groups that each has, by hand: name -> (units, channels of each unit).
NETS: dict[str, tuple[Callable[[], nn.Module], dict[str, tuple[int, int]]]] = {
    "resnet": (
        FlaxResNet,
        {
            "conv_init": (6, 1),
            "BottleneckBlock_0/Conv_0": (6, 1),
            "BottleneckBlock_0/Conv_1": (6, 1),
            "BottleneckBlock_0/Conv_2": (24, 1),
            "BottleneckBlock_1/Conv_0": (12, 1),
            "BottleneckBlock_1/Conv_1": (12, 1),
            "BottleneckBlock_1/Conv_2": (48, 1),
        },
    ),
    "densenet": (
        DenseNet,
        {
            "stem": (6, 1),
            **{f"{layer}a": (8, 1) for layer in ("b1l1", "b1l2", "b2l1")},
            **{f"{layer}b": (4, 1) for layer in ("b1l1", "b1l2", "b2l1")},
            "transition": (7, 1),
        },
    ),
    "squeeze_excite": (
        SqueezeExcite,
        {
            "stem": (8, 1),  # and both projections, by the residual sums
            **{f"expand{i}": (12, 1) for i in (1, 2)},  # with depthwise and gate
            **{f"squeeze{i}": (4, 1) for i in (1, 2)},
        },
    ),
    "unet": (
        UNet,
        {
            "down1": (4, 1),
            "down2": (6, 1),
            "bottom/layers_0": (8, 1),
            "up2": (6, 1),
            "join2": (6, 1),
            "join1": (4, 1),
            "turned": (6, 1),
        },
    ),
    "shared": (Shared, {"stem": (8, 1)}),
    "resnext": (
        ResNeXt,
        {
            "stem": (8, 1),
            # Three groups of four inputs each lose the same.
            "reduce": (4, 3),
            # Of 24 channels three groups lose the same of eight, and six of four:
            # channels 4 apart and 8 apart go together, which is 4 apart.
            "grouped": (4, 6),
            "grouped2": (4, 6),
        },
    ),
    "inverted_residual": (InvertedResidual, {"stem": (6, 1), "widen": (12, 1)}),
    # The stem's six meet channels 2 to 7 of conv2's ten; the others stay.
    "pad_shortcut": (PadShortcut, {"stem": (6, 1), "conv1": (10, 1)}),
    "flat_vgg": (FlatVgg, {"conv0": (4, 1), "conv1": (6, 1), "fc1": (10, 1)}),
    "remat": (
        Rematerialised,
        {"stem": (6, 1), "block1/conv1": (8, 1), "block2/conv1": (8, 1)},
    ),
    # Three heads; the four values of each head, the same in all; not the width, which
    # LayerNorm goes over, nor the queries' and keys', which are multiplied.
    "transformer": (
        Transformer,
        {"attend/query": (3, 1), "attend/value": (4, 1), "mlp1": (16, 1)},
    ),
    "scanned": (Scanned, {"stem": (7, 1), "layers/up": (9, 1)}),
    "own_parameters": (
        OwnParameters,
        {"patches": (12, 1), "up": (9, 1), "heads": (2, 1), "heads#2": (4, 1)},
    ),
    "own_in_setup": (OwnInSetup, {"stem": (8, 1)}),
    # norm1's groups of four hold two of norm3's groups each.
    "group_norm": (GroupNormed, {"stem": (3, 4), "inner": (4, 2)}),
}
# With splits="equal". The stem's three shuffled groups of four lose the same; deep's
# and out's halves too.
SHUFFLED = {"stem": (4, 3), "mix": (8, 1), "deep": (4, 2), "out": (3, 2)}


def images(n: int = 2, seed: int = 0) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), (n, SIDE, SIDE, 3))


def made(module: nn.Module, seed: int = 0) -> Any:
    """Random variables, none of them at its start: biases, statistics and all."""
    x = jax.ShapeDtypeStruct((1, SIDE, SIDE, 3), jnp.float32)
    init = lambda: module.init(jax.random.key(0), jnp.zeros(x.shape), train=False)
    return randomised(jax.eval_shape(init), seed)


def randomised(variables: Any, seed: int = 0) -> Any:
    """Variables of these shapes: kernels of about unit gain, variances positive."""
    rng = np.random.default_rng(seed)

    def draw(keys, leaf):
        a = rng.normal(size=leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1]) or 1)
        if "var" in str(keys[-1]):
            a = rng.uniform(0.5, 2, leaf.shape)
        return jnp.asarray(a, leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, variables)


def applied(module: nn.Module) -> Callable[[Any, Any], Any]:
    """`(variables, x) -> output` in inference."""
    return lambda variables, x: module.apply(variables, x, train=False)


def some(plan: Any, part: float = 0.4, seed: int = 0) -> np.ndarray:
    """Random units of every group, at least one and not all."""
    rng = np.random.default_rng(seed)
    drawn = []
    for group in plan.groups:
        n = min(len(group.units) - 1, max(1, round(part * len(group.units))))
        drawn.extend(rng.choice(np.asarray(group.units), n, replace=False))
    return np.asarray(drawn)
