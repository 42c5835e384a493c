"""Small networks as people write them: nothing in them is made for this library.

`NETS` maps a name to a module and the shape of one input. All take `(x, train=False)`
and return bare logits. Each is there for one way of using parameters or operations that
the networks of `jaxkd.models` do not have.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import _tree
from jaxkd.models.net import Net, from_foreign
from jaxkd.types import Params, State

IMAGE = (8, 8, 3)
SEQUENCE = (6, 12)  # steps, features
NORMAL = nn.initializers.normal(0.3)
CLASSES = 5


def head(x: jax.Array, name: str = "head") -> jax.Array:
    """Logits of the mean over all positions."""
    x = x.mean(tuple(range(1, x.ndim - 1))) if x.ndim > 2 else x
    return nn.Dense(CLASSES, name=name)(x)


def norm(train: bool) -> Callable[[jax.Array], jax.Array]:
    return nn.BatchNorm(use_running_average=not train)


def tokens(x: jax.Array, width: int = 8) -> jax.Array:
    """The patches of an image as a sequence."""
    x = nn.Conv(width, (4, 4), strides=4, padding="VALID", name="patches")(x)
    return x.reshape(x.shape[0], -1, width)


class DenseNet(nn.Module):
    """Every layer reads all before it; BatchNorm after a concatenation stays."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(6, (3, 3), name="stem")(x)
        for i in range(2):
            y = nn.Conv(4, (3, 3), name=f"grow{i}")(nn.relu(norm(train)(x)))
            x = jnp.concatenate([x, y], -1)
        return head(nn.relu(norm(train)(x)))


class Inception(nn.Module):
    """Parallel convolutions and a pooled branch, joined."""

    @nn.compact
    def __call__(self, x, train=False):
        a = nn.relu(norm(train)(nn.Conv(4, (1, 1))(x)))
        b = nn.relu(norm(train)(nn.Conv(4, (3, 3))(nn.Conv(4, (1, 1))(x))))
        c = nn.Conv(4, (1, 1))(nn.avg_pool(x, (3, 3), padding="SAME"))
        d = nn.max_pool(x, (3, 3), padding="SAME")
        return head(nn.Conv(8, (1, 1))(jnp.concatenate([a, b, c, d], -1)))


class Grouped(nn.Module):
    """Grouped and dilated convolutions in a residual block."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(nn.Conv(8, (3, 3), name="stem")(x))
        y = nn.relu(norm(train)(nn.Conv(12, (1, 1))(x)))
        y = nn.Conv(12, (3, 3), feature_group_count=3, kernel_dilation=2)(y)
        return head(nn.relu(x + nn.Conv(8, (1, 1))(nn.relu(y))))


class SqueezeExcite(nn.Module):
    """Gates of channels by hard sigmoid."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(norm(train)(nn.Conv(8, (3, 3))(x)))
        s = nn.relu(nn.Conv(4, (1, 1))(x.mean((1, 2), keepdims=True)))
        return head(x * nn.hard_sigmoid(nn.Conv(8, (1, 1))(s)))


class Shuffle(nn.Module):
    """A channel shuffle between grouped convolutions, then a split."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(nn.Conv(12, (3, 3), name="stem")(x))
        b, h, w, c = x.shape
        x = x.reshape(b, h, w, 3, c // 3).swapaxes(-1, -2).reshape(b, h, w, c)
        x = nn.Conv(12, (1, 1), feature_group_count=3, name="grouped")(x)
        kept, more = jnp.split(x, 2, -1)
        more = nn.relu(nn.Conv(6, (3, 3), name="more")(more))
        return head(jnp.concatenate([kept, more], -1))


class VisionTransformer(nn.Module):
    """A class token, places, flax's own attention."""

    @nn.compact
    def __call__(self, x, train=False):
        x = tokens(x)
        first = self.param("class_token", NORMAL, (1, 1, 8))
        x = jnp.concatenate([jnp.tile(first, (x.shape[0], 1, 1)), x], 1)
        x = x + self.param("places", NORMAL, (1, x.shape[1], 8))
        y = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(2, name="attend")(y, y)
        x = x + nn.Dense(8)(nn.gelu(nn.Dense(16)(nn.LayerNorm()(x))))
        return head(nn.LayerNorm()(x)[:, 0])


class ConvNeXt(nn.Module):
    """Depthwise 7x7, LayerNorm, GELU, LayerScale."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.LayerNorm()(nn.Conv(8, (2, 2), strides=2, name="stem")(x))
        y = nn.Conv(8, (7, 7), feature_group_count=8, name="depth")(x)
        y = nn.gelu(nn.Dense(16, name="up")(nn.LayerNorm()(y)))
        y = nn.Dense(8, name="down")(y) * self.param("layer_scale", NORMAL, (8,))
        return head(x + y)


class Mixer(nn.Module):
    """Dense layers along positions and along channels in turn."""

    @nn.compact
    def __call__(self, x, train=False):
        x = tokens(x)
        y = nn.Dense(6, name="mix")(nn.LayerNorm()(x).swapaxes(1, 2))
        x = x + nn.Dense(x.shape[1], name="unmix")(nn.gelu(y)).swapaxes(1, 2)
        return head(x + nn.Dense(8, name="channels")(nn.LayerNorm()(x)))


class UNet(nn.Module):
    """Skips, a transposed convolution, a resize; its result is a map."""

    @nn.compact
    def __call__(self, x, train=False):
        one = nn.relu(nn.Conv(4, (3, 3), name="one")(x))
        two = nn.relu(nn.Conv(6, (3, 3), strides=2, name="two")(one))
        up = nn.ConvTranspose(4, (3, 3), strides=(2, 2), name="up")(two)
        x = nn.relu(nn.Conv(4, (3, 3), name="join")(jnp.concatenate([up, one], -1)))
        again = nn.ConvTranspose(4, (2, 2), (1, 1), transpose_kernel=True, name="turn")
        return nn.Conv(CLASSES, (1, 1), name="head")(nn.relu(again(x)))


class PixelShuffle(nn.Module):
    """Depth to space, through six axes."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(nn.Conv(16, (3, 3), strides=2, name="stem")(x))
        b, h, w, _ = x.shape
        x = x.reshape(b, h, w, 2, 2, 4).transpose(0, 1, 3, 2, 4, 5)
        return head(nn.Conv(6, (3, 3), name="last")(x.reshape(b, 2 * h, 2 * w, 4)))


class InvertedResidual(nn.Module):
    """MobileNetV3's block: hard swish around a depthwise convolution."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.hard_swish(norm(train)(nn.Conv(6, (3, 3), strides=2, name="stem")(x)))
        y = nn.hard_swish(norm(train)(nn.Conv(12, (1, 1), name="widen")(x)))
        y = norm(train)(nn.Conv(12, (3, 3), feature_group_count=12, name="depth")(y))
        return head(x + norm(train)(nn.Conv(6, (1, 1))(nn.relu6(y))))


class Lstm(nn.Module):
    """A loop of flax's own, whose start is drawn from a constant key."""

    cell: Any = nn.OptimizedLSTMCell

    @nn.compact
    def __call__(self, x, train=False):
        outputs: Any = nn.RNN(self.cell(8), name="rnn")(x)
        return head(outputs[:, -1])


class WrittenOutLstm(nn.Module):
    """The same cell called step after step: each of its kernels is read six times."""

    @nn.compact
    def __call__(self, x, train=False):
        cell = nn.LSTMCell(8, name="cell")
        carry = cell.initialize_carry(jax.random.key(0), x[:, 0].shape)
        for step in range(x.shape[1]):
            carry, y = cell(carry, x[:, step])
        return head(y)


class Scanned(nn.Module):
    """Two layers under `nn.scan`, with their parameters stacked."""

    @nn.compact
    def __call__(self, x, train=False):
        class Layer(nn.Module):
            @nn.compact
            def __call__(self, x, _):
                return x + nn.relu(nn.Dense(x.shape[-1], name="fc")(x)), None

        x = nn.Dense(6, name="stem")(x.mean((1, 2)))
        layers = nn.scan(
            Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=2
        )
        return head(layers(name="layers")(x, None)[0])


class Shared(nn.Module):
    """One convolution three times, and an embedding that is also the head."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(8, (3, 3), name="stem")(x)
        again = nn.Conv(8, (3, 3), name="again")
        for _ in range(3):
            x = x + nn.tanh(again(x))
        return nn.Embed(CLASSES, 8, name="classes").attend(x.mean((1, 2)))


class SameNames(nn.Module):
    """A layer "fc" called twice, a layer "fc_1" of another range, one named "input"."""

    @nn.compact
    def __call__(self, x, train=False):
        fc = nn.Dense(8, name="fc")
        x = nn.relu(fc(nn.relu(fc(nn.Dense(8, name="input")(x.mean((1, 2)))))))
        x = nn.Dense(8, name="fc_1", kernel_init=nn.initializers.normal(30.0))(x)
        return head(nn.relu(nn.Dense(8, name="fc.1")(x)))


class SeveralHeads(nn.Module):
    """Two heads on two depths, side by side."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(nn.Conv(6, (3, 3), name="one")(x))
        early = head(x, "early")
        x = nn.relu(nn.Conv(8, (3, 3), strides=2, name="two")(x))
        return jnp.concatenate([early, head(x, "late")], -1)


class Gated(nn.Module):
    """Gates of all sorts: GLU, a highway, a learned number, a choice by sign."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(8, (3, 3), name="stem")(x)
        x = nn.glu(x) + nn.swish(nn.Conv(4, (1, 1), name="other")(x))
        gate = nn.sigmoid(nn.Conv(4, (1, 1), name="gate")(x))
        x = gate * nn.leaky_relu(x) + (1 - gate) * self.param("beta", NORMAL, ())
        return head(jnp.where(x > 0, x, nn.elu(x)))


class Embedded(nn.Module):
    """Whole numbers as inputs, places added, one table that is read by its rows."""

    @nn.compact
    def __call__(self, x, train=False):
        ids = jnp.abs(x).astype(jnp.int32) % 10
        x = nn.Embed(10, 8, name="words")(ids)
        x = x + nn.Embed(6, 8, name="places")(jnp.arange(ids.shape[1]))
        return head(nn.relu(nn.Dense(8, name="hidden")(x)))


class TiedEmbedding(nn.Module):
    """The table of words is also the kernel of the head, transposed."""

    @nn.compact
    def __call__(self, x, train=False):
        words = nn.Embed(10, 8, name="words")
        x = words(jnp.abs(x).astype(jnp.int32) % 10)
        return words.attend(nn.relu(nn.Dense(8, name="hidden")(x)).mean(1))


class GroupNormed(nn.Module):
    """GroupNorm and InstanceNorm, which no kernel can take up."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(nn.GroupNorm(2)(nn.Conv(8, (3, 3), name="one")(x)))
        return head(nn.relu(nn.InstanceNorm()(nn.Conv(8, (3, 3), name="two")(x))))


class WeightNormed(nn.Module):
    """Kernels g v / |v|, then BatchNorm."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.WeightNorm(nn.Conv(8, (3, 3), name="conv"))(x)
        x = nn.WeightNorm(nn.Dense(8, name="fc"))(nn.relu(norm(train)(x)))
        return head(nn.relu(x))


class SpectralNormed(nn.Module):
    """Kernels divided by their largest singular value, kept in the state."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.SpectralNorm(nn.Conv(8, (3, 3), name="conv"))(x, update_stats=train)
        return head(nn.relu(norm(train)(x)))


class FusedQkv(nn.Module):
    """Queries, keys and values of one kernel, cut up before it is multiplied."""

    @nn.compact
    def __call__(self, x, train=False):
        x = tokens(x)
        kernels = jnp.split(self.param("qkv", NORMAL, (8, 24)), 3, -1)
        q, k, v = (x @ kernel for kernel in kernels)
        weights = nn.softmax(jnp.einsum("bid,bjd->bij", q, k) / np.sqrt(8))
        return head(x + weights @ v)


class CutQkv(nn.Module):
    """Queries, keys and values of one product, cut up after it, in heads."""

    @nn.compact
    def __call__(self, x, train=False):
        x = tokens(x)
        y = nn.DenseGeneral((3, 2, 4), name="qkv")(x)
        q, k, v = y[:, :, 0], y[:, :, 1], y[:, :, 2]
        weights = nn.softmax(jnp.einsum("bihd,bjhd->bhij", q, k) / 2)
        y = jnp.einsum("bhij,bjhd->bihd", weights, v)
        return head(x + nn.DenseGeneral(8, axis=(-2, -1), name="out")(y))


class Einsum(nn.Module):
    """Products over one and several axes, with the kernel on either side."""

    @nn.compact
    def __call__(self, x, train=False):
        a = self.param("a_kernel", NORMAL, (8, 3, 4))
        x = jnp.einsum("bhwc,hck->bwk", x, a)
        x = nn.relu(
            jnp.einsum("ok,bwk->bwo", self.param("b_kernel", NORMAL, (6, 4)), x)
        )
        per_place = self.param("c_kernel", NORMAL, (8, 6, 6))
        return head(nn.relu(jnp.einsum("bwi,wio->bwo", x, per_place)))


class Stacked(nn.Module):
    """Kernels [layers, in, out] of very different size."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(8, name="stem")(x.mean((1, 2)))
        kernels = self.param("kernels", NORMAL, (3, 8, 8))
        biases = self.param("biases", NORMAL, (3, 8))
        for i in range(3):
            x = nn.relu(x @ kernels[i] + biases[i])
        return head(x)


class Cosine(nn.Module):
    """Logits are cosines of the angles to the kernel's columns."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(nn.Conv(8, (3, 3), name="stem")(x)).mean((1, 2))
        w = self.param("classes", NORMAL, (8, CLASSES))
        x = x / jnp.linalg.norm(x, axis=-1, keepdims=True)
        return 10 * (x @ (w / jnp.linalg.norm(w, axis=0)))


class Prototypes(nn.Module):
    """Logits are negative squared distances, multiplied out."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(nn.Dense(8, name="fc")(x.mean((1, 2))))
        p = self.param("prototypes", NORMAL, (8, CLASSES))
        return 2 * x @ p - jnp.square(p).sum(0)


class Tied(nn.Module):
    """An autoencoder's W and W'."""

    @nn.compact
    def __call__(self, x, train=False):
        w = self.param("kernel", NORMAL, (3, 8))
        return head(nn.relu(x.mean((1, 2)) @ w) @ w.T)


class StdConv(nn.Conv):
    """A convolution whose kernel is standardised over each output channel."""

    def param(self, name, *args, **kwargs):
        value = super().param(name, *args, **kwargs)
        if name != "kernel":
            return value
        axes = tuple(range(value.ndim - 1))
        value = value - value.mean(axes, keepdims=True)
        return value / (value.std(axes, keepdims=True) + 1e-5)


class Standardised(nn.Module):
    """StdConv with BatchNorm after it."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(norm(train)(StdConv(8, (3, 3), name="one")(x)))
        return head(nn.relu(norm(train)(StdConv(8, (3, 3), strides=2, name="two")(x))))


class SignConv(nn.Conv):
    """A convolution with binary weights."""

    def param(self, name, *args, **kwargs):
        value = super().param(name, *args, **kwargs)
        return jnp.sign(value) if name == "kernel" else value


class Binary(nn.Module):
    """Binary weights with BatchNorm after them."""

    @nn.compact
    def __call__(self, x, train=False):
        return head(nn.relu(norm(train)(SignConv(8, (3, 3), name="conv")(x))))


class Keywords(nn.Module):
    """Every layer is called by keyword."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(8, (3, 3), name="conv")(inputs=x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x=x))
        return nn.Dense(CLASSES, name="head")(inputs=x.mean((1, 2)))


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "densenet": (DenseNet, IMAGE),
    "inception": (Inception, IMAGE),
    "grouped": (Grouped, IMAGE),
    "squeeze_excite": (SqueezeExcite, IMAGE),
    "shuffle": (Shuffle, IMAGE),
    "vit": (VisionTransformer, IMAGE),
    "convnext": (ConvNeXt, IMAGE),
    "mixer": (Mixer, IMAGE),
    "unet": (UNet, IMAGE),
    "pixel_shuffle": (PixelShuffle, IMAGE),
    "inverted_residual": (InvertedResidual, IMAGE),
    "lstm": (Lstm, SEQUENCE),
    "gru": (functools.partial(Lstm, nn.GRUCell), SEQUENCE),
    "written_out_lstm": (WrittenOutLstm, SEQUENCE),
    "scanned": (Scanned, IMAGE),
    "shared": (Shared, IMAGE),
    "same_names": (SameNames, IMAGE),
    "several_heads": (SeveralHeads, IMAGE),
    "gated": (Gated, IMAGE),
    "embedded": (Embedded, (6,)),
    "tied_embedding": (TiedEmbedding, (6,)),
    "group_norm": (GroupNormed, IMAGE),
    "weight_norm": (WeightNormed, IMAGE),
    "spectral_norm": (SpectralNormed, IMAGE),
    "fused_qkv": (FusedQkv, IMAGE),
    "cut_qkv": (CutQkv, IMAGE),
    "einsum": (Einsum, IMAGE),
    "stacked": (Stacked, IMAGE),
    "cosine": (Cosine, IMAGE),
    "prototypes": (Prototypes, IMAGE),
    "tied": (Tied, IMAGE),
    "std_conv": (Standardised, IMAGE),
    "binary": (Binary, IMAGE),
    "keywords": (Keywords, IMAGE),
}


class Foreign(NamedTuple):
    """A network with random variables, and the shape of one input."""

    net: Net
    params: Params
    state: State
    shape: tuple[int, ...]


def made(name: str, seed: int = 0) -> Foreign:
    """The network of this name; none of its variables is at its start."""
    module, shape = NETS[name]
    net = from_foreign(module(), {}, call=lambda train: {"train": train})
    net = Net(_promoting(net.init), _promoting(net.apply))
    x = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    shapes = jax.eval_shape(net.init, jax.random.key(0), x)
    params, state = _drawn(shapes, seed)
    return Foreign(net, params, state, shape)


def _promoting(f: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, in which axes are added to arrays of lower rank.

    These tests run with `jax_numpy_rank_promotion="raise"`; people do not.
    """

    def call(*args, **kwargs):
        with jax.numpy_rank_promotion("allow"):
            return f(*args, **kwargs)

    return call


def _drawn(shapes: Any, seed: int) -> Any:
    """Kernels of about unit gain, variances and scales positive, stacks uneven."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        value = rng.normal(size=leaf.shape)
        last = path.rpartition("/")[2]
        if last in ("scale", "var", "sigma"):
            value = np.abs(1 + 0.3 * value)
        elif last in ("bias", "mean", "places", "class_token", "biases"):
            value = 0.3 * value
        elif leaf.ndim > 1:
            value /= np.sqrt(np.prod(leaf.shape[:-1]))
        if last == "kernels":
            value *= np.array([4.0, 1.0, 0.25])[:, None, None] * np.sqrt(3)
        if last == "qkv":
            value *= np.repeat([4.0, 1.0, 0.25], 8)
        if "fc_1" in path:
            value *= 30
        return jnp.asarray(value, leaf.dtype)

    return _tree.map_with_path(draw, shapes)


def inputs(name: str, n: int = 8, seed: int = 1) -> np.ndarray:
    """Normal noise; for networks of whole numbers wide enough to meet all of them."""
    shape = NETS[name][1]
    x = np.random.default_rng(seed).normal(size=(n, *shape)).astype(np.float32)
    return 10 * x if len(shape) == 1 else x
