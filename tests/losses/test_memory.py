"""What a divergence of large logits holds, and that chunks change nothing."""

import inspect

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest

from jaxkd import losses
from jaxkd.losses import _divergence

NAMES = ["kd", "soft_cross_entropy", "reverse_kd", "jsd"]
ROWS, CLASSES = 4096, 32000


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("arguments", [(0,), (0, 1)], ids=["student", "both"])
def test_holds_at_most_two_arrays_of_the_logits_size(name, masked, arguments):
    logits = jax.ShapeDtypeStruct((ROWS, CLASSES), jnp.float32)
    mask = jax.ShapeDtypeStruct((CLASSES,), jnp.bool_) if masked else None

    def total(student, teacher, temperature, class_mask):
        knobs = {"temperature": temperature, "class_mask": class_mask}
        return getattr(losses, name)(student, teacher, **knobs).mean()

    graded = jax.jit(jax.value_and_grad(total, arguments))
    memory = graded.lower(logits, logits, 4.0, mask).compile().memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes <= 2 * ROWS * CLASSES * 4


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mask_shape", [None, (5,), (3, 4, 5)], ids=str)
def test_chunks_change_nothing(name, mask_shape, monkeypatch):
    rng = np.random.default_rng(0)
    s, t = jnp.asarray(rng.normal(size=(2, 3, 4, 5)))
    mask = None if mask_shape is None else jnp.asarray(rng.random(mask_shape) < 0.7)
    weights = jnp.arange(12.0).reshape(3, 4)
    loss = inspect.unwrap(getattr(losses, name))  # not the program compiled before

    def total(s, t, temperature):
        knobs = {"temperature": temperature, "class_mask": mask}
        return jnp.sum(weights * loss(s, t, **knobs))

    grade = lambda *args: jax.jit(jax.value_and_grad(total, (0, 1, 2)))(*args)
    want = grade(s, t, 2.0)
    monkeypatch.setattr(_divergence, "CHUNK", 20)
    assert _divergence._chunks(12, 5) == 3
    got = grade(s, t, 2.0)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)
    assert "scan" in str(jax.make_jaxpr(total)(s, t, 2.0))


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_chunks_have_two_derivatives(monkeypatch):
    s, t = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 3)))
    loss = inspect.unwrap(losses.kd)
    monkeypatch.setattr(_divergence, "CHUNK", 6)
    total = jax.jit(lambda s, t, temperature: loss(s, t, temperature=temperature).sum())
    jax.test_util.check_grads(
        total, (s, t, 2.0), 2, ["fwd", "rev"], atol=1e-4, rtol=1e-4
    )


def test_chunks_are_equal_or_none():
    chunk = _divergence.CHUNK
    assert _divergence._chunks(1, chunk) == 1
    assert _divergence._chunks(8, chunk) == 8
    assert _divergence._chunks(6, chunk // 2) == 3
    assert _divergence._chunks(7, chunk // 2) == 7
    assert _divergence._chunks(10007, chunk // 64) == 1  # a prime number of examples
