"""The vision transformer is the papers' equations, and its two heads are DeiT's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from jaxkd.models.vit import vit

KEY = jax.random.key(0)
SMALL = {"patch": 2, "width": 6, "depth": 2, "heads": 3, "classes": 4}


def drawn(net, x):
    """Variables of the network, all of them standard normal."""
    draw = np.random.default_rng(0).standard_normal
    normal = lambda a: jnp.asarray(draw(a.shape), jnp.float32)
    return jax.tree.map(normal, jax.eval_shape(net.init, KEY, x))


@functools.cache
def made(distilled):
    net = vit(**SMALL, distilled=distilled)
    x = jax.random.normal(jax.random.key(1), (2, 4, 6, 3))
    params, state = drawn(net, x)
    run = jax.jit(net.apply, static_argnames="train")
    return params, x, {t: run(params, state, x, train=t)[0] for t in (False, True)}


def layer_norm(p, x):
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
    return scaled * p["scale"] + p["bias"]


def dense(p, x):
    return x @ p["kernel"] + p["bias"]


def block(p, x):
    """Dosovitskiy et al. (2021), equations 2 and 3, one head at a time."""
    q, k, v = np.split(dense(p["qkv"], layer_norm(p["norm1"], x)), 3, axis=-1)
    mixed = []
    for head in range(3):
        at = slice(2 * head, 2 * head + 2)
        scores = np.exp(q[..., at] @ k[..., at].swapaxes(-1, -2) / np.sqrt(2))
        mixed.append(scores / scores.sum(-1, keepdims=True) @ v[..., at])
    x = x + dense(p["projection"], np.concatenate(mixed, -1))
    y = dense(p["mlp1"], layer_norm(p["norm2"], x))
    return x + dense(p["mlp2"], y * 0.5 * (1 + erf(y / np.sqrt(2))))


@pytest.mark.parametrize("distilled", [False, True])
def test_it_is_the_equations(distilled):
    params, x, outputs = made(distilled)
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    patches = np.asarray(x, np.float64).reshape(2, 2, 2, 3, 2, 3).swapaxes(2, 3)
    tokens = patches.reshape(2, 6, 12) @ p["stem_conv"]["kernel"].reshape(12, 6)
    first = ["class_token", "distilled_token"][: 1 + distilled]
    first = [np.tile(p[name], (2, 1, 1)) for name in first]
    embedded = np.concatenate([*first, tokens + p["stem_conv"]["bias"]], 1)
    z = {"stem": embedded + p["positions"]}
    z["stage1"] = block(p["stage1_block"], z["stem"])
    z["stage2"] = block(p["stage2_block"], z["stage1"])
    out = outputs[False]
    for tap, wanted in z.items():
        np.testing.assert_allclose(out.tap(tap), wanted, rtol=1e-3, atol=1e-3)
    y = layer_norm(p["last_norm"], z["stage2"])
    np.testing.assert_allclose(out.tap("pooled"), y[:, 0], rtol=1e-3, atol=1e-3)
    logits = dense(p["head"], y[:, 0])
    if distilled:
        logits = (logits + dense(p["distilled_head"], y[:, 1])) / 2
    np.testing.assert_allclose(out.logits, logits, rtol=1e-3, atol=1e-3)


def test_two_heads_train_apart_and_decide_together():
    *_, outputs = made(True)
    for train, out in outputs.items():
        labels, teacher = out.tap("class_logits"), out.tap("distilled_logits")
        assert not np.allclose(labels, teacher)
        wanted = labels if train else (labels + teacher) / 2
        np.testing.assert_array_equal(out.logits, wanted)


def test_branches_are_left_out_for_whole_images():
    net = vit(**{**SMALL, "depth": 3}, drop_path=0.5)
    x = jax.random.normal(KEY, (64, 4, 4, 3))
    params, state = drawn(net, x)
    out, _ = jax.jit(net.apply, static_argnames="train")(
        params, state, x, train=True, key=jax.random.key(3)
    )
    same = [
        np.all(out.tap(after) == out.tap(before), axis=(1, 2))
        for before, after in (("stem", "stage1"), ("stage2", "stage3"))
    ]
    assert not same[0].any()  # the rate rises from 0
    # Both of the last block's branches are left out with probability 1/4: of 64 images
    # 16 +- 3.5, so that five deviations leave 0 to 33.
    assert 0 < same[1].sum() < 34


@pytest.mark.bad_input
def test_patches_must_divide_the_image():
    net = vit(**SMALL)
    with pytest.raises(ValueError, match="patches of 2x2 divide, got .1, 5, 4, 3."):
        jax.eval_shape(net.init, KEY, jnp.ones((1, 5, 4, 3)))
