"""The experiment's optimiser against its definition, and a small run of it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import hinton_mnist
from jaxkd import models

TINY = hinton_mnist.Config(
    dataset="digits",
    teacher_units=200,
    units=64,
    small_units=4,
    jitter=1,
    teacher_epochs=25,
    teacher_batch_size=50,
    batch_size=50,
    epochs=10,
    small_epochs=1,
    seeds=2,
    small_seeds=3,
    small_temperatures=(8.0,),
    middle_temperatures=(),
    learning_rate=3e-3,
)


def test_max_norm_is_the_projection_of_where_the_update_leads():
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(5, 4)).astype(np.float32)
    update = rng.normal(size=(5, 4)).astype(np.float32)
    lengths = np.linalg.norm(weights + update, axis=0)
    limit = float(np.median(lengths))  # two columns are too long, two are not
    wanted = (weights + update) * np.minimum(1, limit / lengths)
    tx = hinton_mnist.max_norm(limit)
    changed, _ = tx.update(jnp.asarray(update), tx.init(weights), jnp.asarray(weights))
    np.testing.assert_allclose(weights + changed, wanted, rtol=1e-5, atol=1e-6)


def test_max_norm_leaves_zero_weights_alone():
    tx, zero = hinton_mnist.max_norm(1.0), jnp.zeros((3, 2))
    changed, _ = tx.update(zero, tx.init(zero), zero)
    np.testing.assert_array_equal(changed, zero)


def test_the_constraint_holds_for_hidden_kernels_and_nothing_else():
    net = models.mlp([6, 5], classes=4)
    student, _ = net.init(jax.random.key(0), jnp.zeros((1, 3, 3, 1)))
    params = {"student": student, "terms": {"ce": {}}}
    bounded = optax.masked(hinton_mnist.max_norm(0.5), hinton_mnist.hidden_kernels)
    tx = optax.chain(optax.sgd(1.0), bounded)
    ones = jax.tree.map(jnp.ones_like, params)
    updates, _ = jax.jit(tx.update)(ones, tx.init(params), params)
    new = optax.apply_updates(params, updates)["student"]
    for name in ("hidden1", "hidden2"):
        norms = jnp.linalg.norm(new[name]["kernel"], axis=0)
        np.testing.assert_allclose(norms, 0.5, rtol=1e-5)
        np.testing.assert_array_equal(new[name]["bias"], -1.0)
    wanted = student["head"]["kernel"] - 1
    np.testing.assert_array_equal(new["head"]["kernel"], wanted)
    assert float(jnp.linalg.norm(wanted, axis=0).min()) > 0.5


@pytest.mark.bad_input
@pytest.mark.parametrize("limit", [0.0, -1.0, float("inf"), float("nan")])
def test_max_norm_refuses_what_is_no_limit(limit):
    with pytest.raises(ValueError, match="max_norm must be finite and > 0"):
        hinton_mnist.max_norm(limit)


@pytest.mark.slow
def test_teacher_and_students_learn_and_the_teacher_is_kept(tmp_path):
    results = hinton_mnist.main(dataclasses.replace(TINY, out=str(tmp_path)))
    assert [*results] == [
        "teacher",
        "alone",
        "distilled",
        "4 units alone",
        "4 units T=8",
    ]
    assert results["teacher"] < 0.2 * 500 and results["distilled"] < 0.2 * 500
    (directory,) = (tmp_path / "hinton_mnist").iterdir()
    assert "errors.svg" in (directory / "report.md").read_text()
    (kept,) = (tmp_path / "teachers").iterdir()
    assert kept.name == "digits-1297-mlp200-25-epochs"


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"small_temperatures": (1.0, -2.0)}, "temperature must be finite and > 0"),
        ({"max_norm": 0.0}, "max_norm must be finite and > 0, got 0.0"),
        ({"teacher_batch_size": 5000}, "batch_size must be at most n = 1297"),
    ],
)
def test_what_cannot_work_is_refused_before_a_teacher_is_trained(
    tmp_path, wrong, message
):
    long = {"teacher_epochs": 10**9, "out": str(tmp_path)}
    with pytest.raises(SystemExit, match=message):
        hinton_mnist.main(dataclasses.replace(TINY, **{**long, **wrong}))
    assert not list(tmp_path.iterdir())
