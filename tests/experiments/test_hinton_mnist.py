"""The parts of the experiment against their definitions, and a small run of it."""

import dataclasses
import json

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
    teacher_epochs=(25, 5),
    teacher_learning_rates=(3e-3, 1e-3),
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


# The constraint


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


# The biases


@pytest.fixture
def logits():
    return np.random.default_rng(1).normal(size=(3, 1000, 10)).astype(np.float32)


def won(logits, classes):
    return np.isin(logits.argmax(-1), classes).mean(-1)


@pytest.mark.parametrize("classes", [(3,), (7, 8)])
@pytest.mark.parametrize("share", [0.01, 0.1, 0.6])
def test_with_its_bias_the_classes_win_their_share(logits, classes, share):
    bias = hinton_mnist.bias_for(logits, classes, share)
    assert bias.shape == (3,) and len(set(bias)) == 3  # each seed has its own
    found = won(hinton_mnist.move(logits, classes, bias), classes)
    np.testing.assert_allclose(found, share, atol=1.5 / 1000)


def test_moving_a_bias_back_restores_it_and_touches_no_other_class(logits):
    there = hinton_mnist.move(logits, (7, 8), [1.0, 2.0, 3.0])
    others = [0, 1, 2, 3, 4, 5, 6, 9]
    np.testing.assert_array_equal(there[..., others], logits[..., others])
    for seed, bias in enumerate((1.0, 2.0, 3.0)):
        raised = there[seed][:, [7, 8]] - logits[seed][:, [7, 8]]
        np.testing.assert_allclose(raised, bias, rtol=1e-5)


def test_the_best_bias_undoes_a_shift():
    # Logits that are right by a margin of 1, then the 3s lowered by 2.5: every bias
    # from 1.5 (excluded) to 3.5 (excluded) makes them right, 1.6 is the smallest.
    labels = np.arange(10).repeat(4)
    right = np.broadcast_to(np.eye(10)[labels], (2, 40, 10))
    lowered = hinton_mnist.move(right, (3,), np.array([-2.5, 0.0]))
    assert hinton_mnist.errors(lowered, labels).tolist() == [4, 0]
    best = hinton_mnist.best_bias(lowered, labels, (3,))
    assert best.tolist() == [1.6, 0.0]
    again = hinton_mnist.move(lowered, (3,), best)
    assert hinton_mnist.errors(again, labels).tolist() == [0, 0]


# The whole


@pytest.mark.slow
def test_students_that_saw_no_3s_miss_them_and_a_bias_brings_them_back(tmp_path):
    results = hinton_mnist.main(dataclasses.replace(TINY, out=str(tmp_path)))
    assert results["teacher"] < 0.2 * 500
    assert results["student distilled"] < 0.2 * 500
    (directory,) = (tmp_path / "hinton_mnist").iterdir()
    rows = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    found = {row["network"]: row for row in rows if row["run"] == "result"}
    assert set(found) == set(results)
    assert len(found["student 4-4, T=8"]["errors"]) == TINY.small_seeds
    name = "distilled, no 3s"
    moved = f"{name}; bias for its share of the images"
    missed = [
        float(found[network]["on 3s"].split()[0])
        for network in ("student distilled", name, moved)
    ]
    assert missed[1] > 2 * missed[0] and missed[2] < 0.6 * missed[1]
    assert results[moved] < results[name]
    text = (directory / "report.md").read_text()
    assert "206, of which 133 on 3s" in text and "errors.png" in text
    # The teacher is kept for other runs.
    kept = {path.name for path in (tmp_path / "teachers").iterdir()}
    first = "digits-1297-mlp200-25-epochs"
    assert kept == {first, f"{first}-5-epochs"}


def test_the_transfer_set_holds_only_its_classes():
    labels = jnp.asarray([3, 7, 1, 8, 3, 7])
    found = hinton_mnist.choose({"label": labels, "image": jnp.arange(6)}, (7, 8))
    assert found["image"].tolist() == [1, 3, 5] and found["label"].tolist() == [7, 8, 7]


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"small_temperatures": (1.0, -2.0)}, "temperature must be finite and > 0"),
        ({"max_norm": 0.0}, "max_norm must be finite and > 0, got 0.0"),
        ({"batch_size": 600}, "batch_size must be at most n"),
        ({"teacher_batch_size": 5000}, "batch_size must be at most n = 1297"),
        ({"jitter": -1}, "must be >= 0, got -1"),
        ({"teacher_epochs": (1,)}, "must be as many, got"),
    ],
)
def test_what_cannot_work_is_refused_before_a_teacher_is_trained(
    tmp_path, wrong, message
):
    long = {"teacher_epochs": (10**9, 1), "out": str(tmp_path)}
    config = dataclasses.replace(TINY, **{**long, **wrong})
    with pytest.raises(SystemExit, match=message):
        hinton_mnist.main(config)
