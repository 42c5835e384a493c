"""What a divergence of large logits holds, and that chunks change nothing."""

import inspect
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses
from jaxkd.losses import _chunks
from tests.losses.derivatives import assert_two_derivatives

NAMES = ["kd", "soft_cross_entropy", "reverse_kd", "jsd"]
ROWS, CLASSES = 4096, 32000


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "batch, masked, arguments",
    [
        ((ROWS,), False, (0,)),
        ((8, ROWS // 8), True, (0, 1)),
        ((ROWS + 3,), False, (0, 1)),
        ((ROWS + 3,), True, (0,)),
    ],
    ids=str,
)
def test_holds_at_most_two_arrays_of_the_logits_size(name, batch, masked, arguments):
    logits = jax.ShapeDtypeStruct((*batch, CLASSES), jnp.float32)
    masks = {}
    if masked:
        masks["class_mask"] = jax.ShapeDtypeStruct((CLASSES,), jnp.bool_)
        masks["where"] = jax.ShapeDtypeStruct(batch, jnp.bool_)

    def total(student, teacher, temperature, masks):
        loss = getattr(losses, name)
        return loss(student, teacher, temperature=temperature, **masks).mean()

    graded = jax.jit(jax.value_and_grad(total, arguments))
    compiled = graded.lower(logits, logits, 4.0, masks).compile()
    memory = compiled.memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes <= 2 * logits.size * 4


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mask_shape", [None, (5,), (3, 14, 5)], ids=str)
def test_chunks_change_nothing(name, mask_shape, monkeypatch):
    rng = np.random.default_rng(0)
    s, t = jnp.asarray(rng.normal(size=(2, 3, 14, 5)))
    mask = None if mask_shape is None else jnp.asarray(rng.random(mask_shape) < 0.7)
    where = jnp.asarray(rng.random((3, 14)) < 0.7)
    s, t = (jnp.where(where[..., None], x, jnp.nan) for x in (s, t))
    weights = jnp.arange(42.0).reshape(3, 14)
    loss = inspect.unwrap(getattr(losses, name))  # not the program compiled before

    def total(s, t, temperature):
        knobs = {"temperature": temperature, "class_mask": mask, "where": where}
        return jnp.sum(weights * loss(s, t, **knobs))

    def graded():
        return jax.jit(jax.value_and_grad(lambda *args: total(*args), (0, 1, 2)))

    want = graded()(s, t, 2.0)
    # 14 are 2 groups of 7, and these are cut into 3, 3 and the last 3 once more.
    monkeypatch.setattr(_chunks, "CHUNK", 70)
    assert "scan" in str(jax.make_jaxpr(total)(s, t, 2.0))
    got = graded()(s, t, 2.0)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert np.all(np.isfinite(b))
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)
    for gradient in got[1][:2]:
        np.testing.assert_array_equal(gradient[~where], 0)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", NAMES)
def test_excluded_examples_have_no_tangent(name, monkeypatch):
    monkeypatch.setattr(_chunks, "CHUNK", 6)
    loss = inspect.unwrap(getattr(losses, name))
    where = jnp.asarray([True, False, False, True])
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 3)))
    spoilt = jnp.where(where[:, None], logits, jnp.asarray([jnp.nan, jnp.inf, 0]))

    def change(s, t):
        f = lambda s, t, temperature: loss(s, t, temperature=temperature, where=where)
        return jax.jvp(f, (s, t, 2.0), (s, t, 1.0))

    for got, want in zip(change(*spoilt), change(*logits), strict=True):
        np.testing.assert_array_equal(got[~where], 0)
        np.testing.assert_allclose(got, want, rtol=1e-12)


@pytest.mark.usefixtures("x64")
def test_chunks_have_two_derivatives(monkeypatch):
    s, t = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 3)))
    loss = inspect.unwrap(losses.kd)
    monkeypatch.setattr(_chunks, "CHUNK", 6)
    total = lambda s, t, temperature: loss(s, t, temperature=temperature).sum()
    assert_two_derivatives(total, s, t, 2.0)


@pytest.mark.parametrize("length", [1, 2, 7, 48, 500, 524, 4096, 4099, 10007])
@pytest.mark.parametrize("chunks", [1, 3, 8, 16])
def test_an_axis_is_cut_into_about_equal_chunks(length, chunks):
    chunks = min(chunks, length)
    groups = _chunks._groups(length, chunks)
    assert length % groups == 0
    assert length // groups >= chunks
    assert (length % 4 != 0) or groups % 4 == 0 or length < 4 * chunks


def test_small_logits_and_single_examples_are_not_cut():
    assert _chunks._chunks((512, 2**15)) == 1
    assert _chunks._chunks((512, 2**15 + 1)) == 2
    assert _chunks._chunks((2**30,)) == 1
    assert _chunks._chunks((3, 2**30)) == 3
    assert _chunks._chunks((2**15, 2**15)) == _chunks.MOST_CHUNKS


def test_cuts_sequences_in_time_and_views_in_examples():
    assert _chunks._axis([64, 512], 8) == 1
    assert _chunks._axis([512, 5], 8) == 0


SHARDED = """
import re
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxkd import losses
from jaxkd.losses import _chunks

_chunks.CHUNK = 2**12
devices = np.array(jax.devices())
assert len(devices) == 4
s, t = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 64, 50)))
where = jnp.asarray(np.random.default_rng(1).random((8, 64)) < 0.7)
f = jax.jit(
    jax.value_and_grad(lambda s, t, where: losses.kd(s, t, where=where).mean())
)
flat = lambda x: x.reshape(512, *x.shape[2:])
for shape, axes, change in (
    ((4,), ("a",), flat),
    ((4,), ("a",), lambda x: x),
    ((4,), (None, "a"), lambda x: x),
    ((2, 2), ("a", "b"), lambda x: x),
):
    mesh = jax.sharding.Mesh(devices.reshape(shape), ("a", "b")[: len(shape)])
    sharding = NamedSharding(mesh, PartitionSpec(*axes))
    whole = [change(x) for x in (s, t, where)]
    parts = [jax.device_put(x, sharding) for x in whole]
    program = f.lower(*parts).compile().as_text()
    assert "while" in program
    moved = r"all-gather|all-to-all|collective-permute|reduce-scatter"
    assert not re.search(moved, program), axes
    got, want = f(*parts), f(*whole)
    np.testing.assert_allclose(got[0], want[0], rtol=1e-5)
    np.testing.assert_allclose(got[1], want[1], rtol=1e-5, atol=1e-8)
    assert got[1].sharding.is_equivalent_to(sharding, got[1].ndim)
"""


def test_chunks_of_a_sharded_batch_stay_on_their_devices():
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", SHARDED], env=environment, check=True)
