"""mlp and cnn are, layer for layer, the networks they are named after."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.models import CNNS, MLPS, cnn, mlp

KEY = jax.random.key(0)


def shapes(net, image_shape):
    x = jax.ShapeDtypeStruct((2, *image_shape), jnp.float32)
    params, state = jax.eval_shape(net.init, KEY, x)
    apply = lambda p, x: net.apply(p, state, x, train=False)[0]
    return params, jax.eval_shape(apply, params, x)


@pytest.mark.parametrize(
    ("name", "shape", "kernels"),
    [
        (
            "teacher",
            (32, 32, 3),
            {
                "stage1_conv1": (3, 3, 3, 128),
                "stage1_conv2": (3, 3, 128, 64),
                "stage2_conv1": (3, 3, 64, 64),
                "stage2_conv2": (3, 3, 64, 32),
                "hidden1": (2048, 512),
                "head": (512, 10),
            },
        ),
        (
            "student",
            (32, 32, 3),
            {
                "stage1_conv1": (3, 3, 3, 16),
                "stage2_conv1": (3, 3, 16, 16),
                "hidden1": (1024, 256),
                "head": (256, 10),
            },
        ),
        (
            "wide",
            (32, 32, 3),
            {
                "stage1_conv1": (3, 3, 3, 64),
                "stage2_conv1": (3, 3, 64, 128),
                "hidden1": (8192, 512),
                "head": (512, 10),
            },
        ),
        (
            "narrow",
            (32, 32, 3),
            {
                "stage1_conv1": (3, 3, 3, 32),
                "stage2_conv1": (3, 3, 32, 64),
                "hidden1": (4096, 128),
                "head": (128, 10),
            },
        ),
        (
            "digits_student",
            (8, 8, 1),
            {
                "stage1_conv1": (3, 3, 1, 8),
                "stage2_conv1": (3, 3, 8, 16),
                "hidden1": (64, 32),
                "head": (32, 10),
            },
        ),
    ],
)
def test_layers_of_the_cnns(name, shape, kernels):
    params, _ = shapes(cnn(**CNNS[name]), shape)
    assert {k: v["kernel"].shape for k, v in params.items()} == kernels
    assert all(v["bias"].shape == v["kernel"].shape[-1:] for v in params.values())


def test_taps_of_the_teacher():
    _, out = shapes(cnn(**CNNS["teacher"]), (32, 32, 3))
    assert {k: v.shape[1:] for k, v in out.taps.items()} == {
        "stem": (32, 32, 128),
        "stage1_pre": (32, 32, 64),
        "stage1": (16, 16, 64),
        "stage2_pre": (16, 16, 32),
        "stage2": (8, 8, 32),
        "pooled": (512,),
    }


def test_taps_of_an_mlp():
    params, out = shapes(mlp(**MLPS["student"]), (28, 28, 1))
    names = ("stage1", "stage1_pre", "stage2", "stage2_pre", "pooled")
    taps = {k: v.shape[1:] for k, v in out.taps.items()}
    assert taps == dict.fromkeys(names, (200,))
    assert params["hidden1"]["kernel"].shape == (784, 200)


def test_a_tiny_cnn_is_what_its_layers_compute():
    net = cnn([[2]], hidden=[], classes=2)
    x = jax.random.normal(KEY, (3, 4, 4, 1))
    params, state = net.init(KEY, x)
    out, _ = net.apply(params, state, x, train=False)
    kernel, padded = (
        params["stage1_conv1"]["kernel"],
        np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)]),
    )
    y = np.zeros((3, 4, 4, 2))
    for i, j in np.ndindex(4, 4):
        y[:, i, j] = np.einsum("nabc,abco->no", padded[:, i : i + 3, j : j + 3], kernel)
    np.testing.assert_allclose(out.tap("stage1_pre"), y, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(out.tap("stem"), np.maximum(y, 0), rtol=1e-4, atol=1e-5)
    pooled = np.maximum(y, 0).reshape(3, 2, 2, 2, 2, 2).max((2, 4))
    np.testing.assert_allclose(out.tap("stage1"), pooled, rtol=1e-4, atol=1e-5)
    logits = pooled.reshape(3, -1) @ params["head"]["kernel"]
    np.testing.assert_allclose(out.logits, logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda dtype: cnn(**CNNS["digits_student"], dtype=dtype), (8, 8, 1)),
        (lambda dtype: mlp([8], classes=10, dtype=dtype), (8, 8, 1)),
    ],
)
def test_half_precision_computes_but_neither_stores_nor_decides(make, shape):
    params, out = shapes(make(jnp.bfloat16), shape)
    assert {v.dtype for v in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    assert {v.dtype for v in out.taps.values()} == {jnp.dtype("bfloat16")}
    assert out.logits.dtype == jnp.float32
