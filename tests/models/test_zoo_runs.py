"""Small members of each family, run: a training step, statistics, taps, precision."""

import functools
from contextlib import nullcontext

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.losses import cross_entropy
from jaxkd.models.convolution import plain_convolutions
from jaxkd.models.imagenet_resnet import imagenet_resnet
from jaxkd.models.mobilenet_v1 import mobilenet_v1
from jaxkd.models.resnet import resnet
from jaxkd.models.shufflenet_v1 import shufflenet_v1
from jaxkd.models.shufflenet_v2 import shufflenet_v2
from jaxkd.models.vgg import vgg
from jaxkd.models.vit import vit
from jaxkd.models.wrn import wrn
from jaxkd.models.zoo import ZOO

KEY = jax.random.key(0)
CLASSES = 3
SMALL = {
    "resnet": functools.partial(resnet, 8, widths=(4, 6, 8, 10)),
    "imagenet_resnet": functools.partial(
        imagenet_resnet, (1, 2, 1, 1), bottleneck=True, stem="cifar", width=4
    ),
    "wrn": functools.partial(wrn, 10, 1),
    "vgg": functools.partial(vgg, [[4], [6, 6], [8], [8], [8]]),
    "mobilenet_v1": functools.partial(mobilenet_v1, width=0.125),
    "mobilenet_v2": functools.partial(
        ZOO["mobilenet_v2"], width=0.25, blocks=(1, 2, 1, 1, 1, 1, 1)
    ),
    "shufflenet_v1": functools.partial(
        shufflenet_v1, widths=(48, 96, 192), blocks=(2, 1, 1)
    ),
    "shufflenet_v2": functools.partial(
        shufflenet_v2, widths=(12, 16, 24, 32), blocks=(2, 1, 1)
    ),
    "vit": functools.partial(vit, patch=4, width=12, depth=1, heads=3),
}
RUN = [name for name in SMALL if name not in ("imagenet_resnet", "mobilenet_v1")]
convolutional = [name for name in RUN if name != "vit"]

# Where the constructors' docstrings say the last BatchNorm before `stage{i}_pre` is.
BEFORE = {
    "resnet": [f"stage{i}_block1/norm2" for i in (1, 2, 3)],
    "wrn": ["stage2_block1/norm1", "stage3_block1/norm1", "last_norm"],
    "vgg": ["stage1_norm2", "stage2_norm1", "stage3_norm1", "stage4_norm1"],
    "mobilenet_v2": [
        "stage1_block3/norm3",
        "stage2_block1/norm3",
        "stage3_block2/norm3",
        "stage4_block2/norm3",
    ],
    "shufflenet_v1": [f"stage{i}_block{n}/norm3" for i, n in enumerate((2, 1, 1), 1)],
    "shufflenet_v2": [f"stage{i}_block{n}/norm3" for i, n in enumerate((2, 1, 1), 1)],
}


def drawn(net, x):
    """Variables of the network without compiling its `init`."""
    draw = np.random.default_rng(0)

    def leaf(path, a):
        kind = path[-1].key
        if kind in ("scale", "var"):
            return jnp.asarray(draw.uniform(0.5, 1.5, a.shape), a.dtype)
        size = (2 / np.prod(a.shape[:-1])) ** 0.5 if kind == "kernel" else 0.1
        return jnp.asarray(size * draw.standard_normal(a.shape), a.dtype)

    return jax.tree_util.tree_map_with_path(leaf, jax.eval_shape(net.init, KEY, x))


@functools.cache
def made(name):
    """The network, its variables and four images."""
    net = SMALL[name](classes=CLASSES)
    x = images(4, 16)
    return net, *drawn(net, x), x


def images(number, side):
    draw = np.random.default_rng(1)
    return jnp.asarray(draw.standard_normal((number, side, side, 3)), jnp.float32)


@functools.cache
def inference(name):
    net = made(name)[0]
    return jax.jit(lambda params, state, x: net.apply(params, state, x, train=False))


def training(net):
    def loss(params, state, x):
        out, state = net.apply(params, state, x, train=True, key=KEY)
        other = out.taps.get("distilled_logits", jnp.zeros(()))
        total = cross_entropy(out.logits, jnp.arange(4) % CLASSES).mean()
        return total + (other**2).mean(), (out, state)

    # Compiled in a hurry: it runs once.
    hurry = {"xla_backend_optimization_level": 0}
    return jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=hurry)


def leaves(tree):
    return {
        jax.tree_util.keystr(k, simple=True, separator="/"): v
        for k, v in jax.tree_util.tree_leaves_with_path(tree)
    }


@pytest.mark.parametrize("name", RUN)
@pytest.mark.slow
def test_a_training_step_is_finite_and_moves_statistics(name):
    net, params, state, x = made(name)
    # lax's gradients compile quicker; those of our own convolution are run for one.
    with nullcontext() if name == "resnet" else plain_convolutions():
        (loss, (out, moved)), grads = training(net)(params, state, x)
    assert jnp.isfinite(loss)
    for path, g in leaves(grads).items():
        assert jnp.isfinite(g).all(), path
        # A bias before BatchNorm changes nothing; a key's bias nothing in a softmax.
        if not path.endswith(("conv1/bias", "conv2/bias")):
            assert g.any(), path
    for path, after in leaves(moved).items():
        assert (after != leaves(state)[path]).any(), path
        assert jnp.isfinite(after).all(), path
    assert bool(moved) == (name != "vit")
    _, still = inference(name)(params, state, x)
    jax.tree.map(np.testing.assert_array_equal, still, state)


@pytest.mark.parametrize("name", convolutional)
def test_the_head_sees_the_mean_of_unpooled(name):
    _, params, state, x = made(name)
    out, _ = inference(name)(params, state, x)
    pooled = np.asarray(out.tap("unpooled")).mean((1, 2))
    np.testing.assert_allclose(out.tap("pooled"), pooled, rtol=1e-5, atol=1e-6)
    head = jax.tree.map(np.asarray, params["head"])
    logits = pooled @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(out.logits, logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", convolutional)
def test_a_stage_is_its_pre_activation_after_relu(name):
    _, params, state, x = made(name)
    taps = inference(name)(params, state, x)[0].taps
    stages = [tap.removesuffix("_pre") for tap in taps if tap.endswith("_pre")]
    assert len(stages) == len(BEFORE[name])
    if name == "wrn":  # ReLU comes after the stage: the last one's is known
        np.testing.assert_array_equal(nn.relu(taps["stage3_pre"]), taps["unpooled"])
        return
    activate = (lambda a: a) if name == "mobilenet_v2" else nn.relu
    for stage in stages:
        assert (taps[f"{stage}_pre"] < 0).any()
        np.testing.assert_array_equal(activate(taps[f"{stage}_pre"]), taps[stage])


def raised(params, path, by=1.0):
    """The same parameters with the bias of one BatchNorm raised."""
    first, *rest = path.split("/")
    inner = params[first]
    inner = raised(inner, rest[0], by) if rest else inner | {"bias": inner["bias"] + by}
    return params | {first: inner}


@pytest.mark.parametrize("name", convolutional)
def test_the_last_batch_norm_is_where_the_docstring_says(name):
    _, params, state, x = made(name)
    taps = inference(name)(params, state, x)[0].taps
    for i, path in enumerate(BEFORE[name], start=1):
        other = inference(name)(raised(params, path), state, x)[0].taps
        change = np.asarray(other[f"stage{i}_pre"] - taps[f"stage{i}_pre"])
        wanted = np.ones_like(change)
        if name == "shufflenet_v2":
            wanted[..., ::2] = 0  # what passed by, or has a BatchNorm of its own
        elif name == "shufflenet_v1" and "block1/" in path:
            wanted[..., change.shape[-1] // 2 :] = 0  # the input, beside the branch
        np.testing.assert_allclose(change, wanted, atol=1e-4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", SMALL)
def test_half_precision_computes_but_neither_stores_nor_decides(name, dtype):
    net = SMALL[name](classes=CLASSES, dtype=jnp.dtype(dtype))
    x = jax.ShapeDtypeStruct((2, 16, 16, 3), jnp.float32)
    params, state = jax.eval_shape(net.init, KEY, x)
    apply = lambda p, s, x: net.apply(p, s, x, train=True, key=KEY)
    out, moved = jax.eval_shape(apply, params, state, x)
    for tree in (params, state, moved):
        assert {v.dtype for v in jax.tree.leaves(tree)} <= {jnp.dtype("float32")}
    half = {k: v.dtype for k, v in out.taps.items() if not k.endswith("logits")}
    assert set(half.values()) == {jnp.dtype(dtype)}
    assert out.logits.dtype == jnp.float32


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_statistics_of_half_precision_are_taken_in_single(dtype):
    net = resnet(8, classes=CLASSES, widths=(2, 2, 2, 2), dtype=jnp.dtype(dtype))
    x = 100 + images(64, 4)
    params, state = drawn(net, x)
    apply = lambda p, s, x: net.apply(p, s, x, train=True)[1]
    moved = jax.jit(apply)(params, state, x)["batch_stats"]["stem_norm"]
    # What the stem's convolution gives in half precision, its statistics in double.
    kernel = params["stem_conv"]["kernel"].astype(dtype)
    y = jax.lax.conv_general_dilated(
        x.astype(dtype), kernel, (1, 1), "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip
    y = np.asarray(y, np.float64)
    before = state["batch_stats"]["stem_norm"]
    mean = 0.9 * before["mean"] + 0.1 * y.mean((0, 1, 2))
    np.testing.assert_allclose(moved["mean"], mean, rtol=1e-3)
    variance = 0.9 * before["var"] + 0.1 * y.var((0, 1, 2))
    np.testing.assert_allclose(moved["var"], variance, rtol=1e-3)


REMAT = {
    "resnet": functools.partial(resnet, 8, widths=(2, 2, 3, 4)),
    "wrn": functools.partial(wrn, 10, 1, dropout=0.3),
    "imagenet_resnet": functools.partial(
        imagenet_resnet, (1, 1, 1, 1), stem="cifar", width=2
    ),
}


@pytest.mark.parametrize(
    "name",
    ["resnet", "imagenet_resnet", pytest.param("wrn", marks=pytest.mark.slow)],
)
def test_rematerialised_blocks_give_the_same(name):
    x = images(4, 8)
    plain, remat = (REMAT[name](classes=CLASSES, remat=on) for on in (False, True))
    params, state = drawn(remat, x)
    same = jax.eval_shape(plain.init, KEY, x)
    assert jax.tree.structure(same) == jax.tree.structure((params, state))
    with plain_convolutions():  # whose gradients are the quicker to compile
        run = training(remat)
        assert "prevent_cse" in str(run.trace(params, state, x).jaxpr)
        if name == "imagenet_resnet":  # the blocks are those of the others
            return
        got, wanted = run(params, state, x), training(plain)(params, state, x)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), got, wanted
    )


WRONG = {
    "depth must be 6n": [
        lambda: resnet(21, classes=2),
        lambda: resnet(2, classes=2),
        lambda: wrn(20, 1, classes=2),
        lambda: wrn(4, 1, classes=2),
    ],
    "widths must be": [
        lambda: resnet(8, classes=2, widths=(16, 32, 64)),
        lambda: shufflenet_v2(classes=2, widths=(116, 232, 464)),
        lambda: shufflenet_v1(classes=2, widths=(240, 480)),
    ],
    "widths must be >= 1": [lambda: resnet(8, classes=2, widths=(16, 0, 32, 64))],
    "widths of the stages must be even": [
        lambda: shufflenet_v2(classes=2, widths=(115, 232, 464, 1024))
    ],
    "widths must grow by channels that 4 groups divide": [
        lambda: shufflenet_v1(classes=2, groups=4, widths=(242, 484, 968))
    ],
    "blocks must be 4 numbers": [lambda: imagenet_resnet((2, 2, 2), classes=2)],
    "stem must be one of": [
        lambda: imagenet_resnet((1,) * 4, classes=2, stem="tiny"),
        lambda: shufflenet_v2(classes=2, stem="tiny"),
    ],
    "stages must be": [
        lambda: vgg([[4], []], classes=2),
        lambda: vgg([[4]], classes=2),
        lambda: vgg([[4], [-1]], classes=2),
    ],
    "pools must be in": [lambda: vgg([[4], [4]], classes=2, pools=3)],
    "blocks must be 7": [lambda: ZOO["mobilenet_v2"](classes=2, blocks=(1, 2))],
    "strides must be 7": [lambda: ZOO["mobilenet_v2"](classes=2, strides=(1, 2))],
    "width must": [
        lambda: ZOO["mobilenet_v2"](classes=2, width=0.01),
        lambda: mobilenet_v1(classes=2, width=0.01),
        lambda: mobilenet_v1(classes=2, width=-1.0),
    ],
    "heads must divide width 12": [
        lambda: vit(patch=4, width=12, depth=1, heads=5, classes=2)
    ],
    "dropout must be": [
        lambda: wrn(10, 1, classes=2, dropout=1.0),
        lambda: wrn(10, 1, classes=2, dropout=-0.1),
    ],
    "drop_path must be": [lambda: ZOO["vit_tiny"](classes=2, drop_path=1.0)],
    "classes must be": [
        functools.partial(make, classes=wrong)
        for make in SMALL.values()
        for wrong in (0, 10.0)
    ],
}


@pytest.mark.bad_input
@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments_are_named(message):
    for make in WRONG[message]:
        with pytest.raises(ValueError, match=message):
            make()
