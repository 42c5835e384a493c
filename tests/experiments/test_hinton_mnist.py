"""The parts of the experiment against their definitions, and a small run of it."""

import dataclasses
import json
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.hinton_mnist import _biases as biases, _training as training
from experiments.hinton_mnist.__main__ import main
from experiments.hinton_mnist._config import Config
from jaxkd import checkpoint, data, models

needs_archives = pytest.mark.skipif(
    not os.environ.get("JAXKD_ARCHIVES"),
    reason="JAXKD_ARCHIVES names no folder of the official archives",
)
TINY = Config(
    dataset="digits",
    teacher_units=200,
    units=64,
    small_units=4,
    jitter=1,
    teacher_epochs=(30,),
    teacher_batch_size=50,
    batch_size=50,
    epochs=10,
    small_epochs=1,
    seeds=2,
    small_seeds=3,
    small_temperatures=(),
    middle_temperatures=(),
    learning_rate=3e-3,
    teacher_learning_rates=(3e-3,),
)


def rows_of(directory):
    return [
        json.loads(r) for r in (directory / "metrics.jsonl").read_text().splitlines()
    ]


def trained_in(directory):
    """The names of the runs that took epochs."""
    return {row["run"] for row in rows_of(directory) if "epoch" in row}


# The constraint


def test_max_norm_is_the_projection_of_where_the_update_leads():
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(5, 4)).astype(np.float32)
    update = rng.normal(size=(5, 4)).astype(np.float32)
    lengths = np.linalg.norm(weights + update, axis=0)
    limit = float(np.median(lengths))  # two columns are too long, two are not
    wanted = (weights + update) * np.minimum(1, limit / lengths)
    tx = training.max_norm(limit)
    changed, _ = tx.update(jnp.asarray(update), tx.init(weights), jnp.asarray(weights))
    np.testing.assert_allclose(weights + changed, wanted, rtol=1e-5, atol=1e-6)


def test_max_norm_leaves_zero_weights_alone():
    tx, zero = training.max_norm(1.0), jnp.zeros((3, 2))
    changed, _ = tx.update(zero, tx.init(zero), zero)
    np.testing.assert_array_equal(changed, zero)


def test_the_constraint_holds_for_hidden_kernels_and_nothing_else():
    net = models.mlp([6, 5], classes=4)
    student, _ = net.init(jax.random.key(0), jnp.zeros((1, 3, 3, 1)))
    params = {"student": student, "terms": {"ce": {}}}
    bounded = optax.masked(training.max_norm(0.5), training.hidden_kernels)
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
        training.max_norm(limit)


# The biases


@pytest.fixture
def logits():
    return np.random.default_rng(1).normal(size=(3, 1000, 10)).astype(np.float32)


def won(logits, classes):
    return np.isin(logits.argmax(-1), classes).mean(-1)


@pytest.mark.parametrize("classes", [(3,), (7, 8)])
@pytest.mark.parametrize("share", [0.01, 0.1, 0.6])
def test_with_its_bias_the_classes_win_their_share(logits, classes, share):
    bias = biases.bias_for_share(logits, classes, share)
    assert bias.shape == (3,) and len(set(bias)) == 3  # each seed has its own
    found = won(biases.moved(logits, classes, bias), classes)
    np.testing.assert_allclose(found, share, atol=1.5 / 1000)


def test_moving_a_bias_back_restores_it_and_touches_no_other_class(logits):
    there = biases.moved(logits, (7, 8), [1.0, 2.0, 3.0])
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
    lowered = biases.moved(right, (3,), [-2.5, 0.0])
    assert biases.errors(lowered, labels).tolist() == [4, 0]
    best = biases.best_bias(lowered, labels, (3,))
    assert best.tolist() == [1.6, 0.0]
    again = biases.moved(lowered, (3,), best)
    assert biases.errors(again, labels).tolist() == [0, 0]


# The whole


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    base = tmp_path_factory.mktemp("runs")
    results = main(dataclasses.replace(TINY, out=str(base)))
    (directory,) = (base / "hinton_mnist").iterdir()
    return results, directory


@pytest.mark.slow
def test_a_run_leaves_its_table_picture_networks_and_logits(ran):
    results, directory = ran
    text = (directory / "report.md").read_text()
    for network, published in {
        "teacher": "67",
        "student alone": "146",
        "student distilled": "74",
        "distilled, no 3s": "206, of which 133 on 3s",
        "distilled, only 7s and 8s": "47.3 %",
    }.items():
        line = next(line for line in text.splitlines() if f"| {network} |" in line)
        assert line.endswith(f"| {published} |")
    assert (directory / "errors.png").read_bytes().startswith(b"\x89PNG")
    results = [row for row in rows_of(directory) if row["run"] == "result"]
    labels = data.load("digits", "test").labels
    by_name = {row["network"]: row["errors"] for row in results}
    for file, network in {
        "alone": "student alone",
        "no_3s": "distilled, no 3s",
    }.items():
        kept = np.load(directory / f"{file}_logits.npy")
        assert (kept.argmax(-1) != labels).sum(-1).tolist() == by_name[network]
        assert checkpoint.load(directory / file)["params"]["head"]["bias"].shape == (
            2,
            10,
        )


@pytest.mark.slow
def test_students_differ_by_seed_and_by_objective(ran):
    _, directory = ran
    logits = {f: np.load(directory / f"{f}_logits.npy") for f in ("alone", "distilled")}
    for found in logits.values():
        assert np.abs(found[0] - found[1]).max() > 0.1
    assert np.abs(logits["alone"] - logits["distilled"]).max() > 0.1


@pytest.mark.slow
def test_the_teacher_learns_and_keeps_to_its_limit(ran):
    results, directory = ran
    params = checkpoint.load(directory / "teacher_1")["params"]
    for name in ("hidden1", "hidden2"):
        norms = np.linalg.norm(np.asarray(params[name]["kernel"][0]), axis=0)
        assert norms.max() <= TINY.max_norm * (1 + 1e-5)
    assert results["teacher"] < 0.2 * 500
    (logged,) = [r for r in rows_of(directory) if r.get("network") == "teacher"]
    assert logged["errors"] == [results["teacher"]]


@pytest.mark.slow
def test_without_3s_they_are_missed_and_a_bias_brings_them_back(ran):
    _, directory = ran
    found = {r["network"]: r for r in rows_of(directory) if r["run"] == "result"}
    seen, before = found["student distilled"], found["distilled, no 3s"]
    name = "distilled, no 3s; bias of 3 for their share of the training images"
    missed = [np.mean(r["errors on 3s"]) for r in (seen, before, found[name])]
    assert missed[1] > 2 * missed[0]
    assert missed[2] < 0.6 * missed[1]
    assert np.mean(found[name]["errors"]) < np.mean(before["errors"])


def test_the_transfer_set_holds_only_its_classes():
    labels = jnp.asarray([3, 7, 1, 8, 3, 7])
    resident = {"label": labels, "image": jnp.arange(6)}
    found = training.without(resident, (7, 8))
    assert found["image"].tolist() == [1, 3, 5] and found["label"].tolist() == [7, 8, 7]
    assert training.without(resident, None) is resident


@pytest.mark.slow
def test_what_is_reused_is_not_trained_again(ran, tmp_path):
    results, directory = ran
    assert trained_in(directory) == {
        "teacher 1",
        "alone",
        "distilled",
        "no 3s",
        "only 7s and 8s",
    }
    more = dataclasses.replace(
        TINY, reuse=str(directory), small_temperatures=(8.0,), out=str(tmp_path)
    )
    again = main(more)
    (new,) = (tmp_path / "hinton_mnist").iterdir()
    assert trained_in(new) == {"4 units alone", "4 units t=8"}
    assert {network: again[network] for network in results} == results
    assert (new / "teacher_1").is_dir()  # the new directory is whole by itself
    assert len(np.load(new / "4_units_t_8_logits.npy")) == TINY.small_seeds
    wide = lambda path: int.from_bytes((path / "errors.png").read_bytes()[16:20])
    assert wide(new) == 2 * wide(directory)  # a panel for the small students


def test_a_network_is_kept_under_its_recipe_and_no_other(tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "new").mkdir()
    rows, made = [], []
    lab = training.Lab(TINY, None, rows.append, tmp_path / "old")

    def make():
        made.append(1)
        return {"params": {"w": jnp.full(2, float(len(made)))}}

    value = lambda lab, recipe: float(
        training.kept(lab, "a net", recipe, make)["params"]["w"][0]
    )
    assert value(lab, {"temperature": 20.0, "transfer": (7, 8)}) == 1
    config = dataclasses.replace(TINY, reuse=str(tmp_path / "old"))
    lab = lab._replace(config=config, directory=tmp_path / "new")
    assert value(lab, {"temperature": 20.0, "transfer": (7, 8)}) == 1 and len(made) == 1
    assert rows == [{"run": "a net", "reused": str(tmp_path / "old" / "a_net")}]
    assert value(lab, {"temperature": 20.0, "transfer": (7,)}) == 2
    # What was trained and never noted, for it was interrupted, is trained again.
    (tmp_path / "old" / "a_net.json").unlink()
    assert value(lab, {"temperature": 20.0, "transfer": (7, 8)}) == 3


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"small_temperatures": (1.0, -2.0)}, "temperature must be finite and > 0"),
        ({"max_norm": 0.0}, "max_norm must be finite and > 0, got 0.0"),
        ({"batch_size": 600}, "batch_size must be at most n"),
        ({"teacher_batch_size": 5000}, "batch_size must be at most n = 1297"),
        ({"jitter": -1}, "must be >= 0, got -1"),
        ({"teacher_epochs": (1, 1)}, "must be as many, got"),
        ({"reuse": "/nowhere"}, "reuse must be the directory of a run, got /nowhere"),
    ],
)
def test_what_cannot_work_is_refused_before_a_teacher_is_trained(
    tmp_path, wrong, message
):
    config = dataclasses.replace(
        TINY, **{"teacher_epochs": (10**9,), "out": str(tmp_path), **wrong}
    )
    with pytest.raises(SystemExit, match=message):
        main(config)
    (directory,) = (tmp_path / "hinton_mnist").iterdir()
    assert not trained_in(directory)


@needs_archives
@pytest.mark.slow
def test_on_mnist_students_name_digits_that_they_never_saw(tmp_path):
    config = Config(
        train_images=5000,
        jitter=1,
        teacher_batch_size=64,
        batch_size=32,
        teacher_units=300,
        units=128,
        small_temperatures=(),
        middle_temperatures=(),
        teacher_epochs=(14, 4),
        teacher_learning_rates=(1e-3, 3e-4),
        epochs=10,
        seeds=2,
        jittered_students=True,
        evaluate_on="validation",
        out=str(tmp_path),
    )
    results = main(config)
    (directory,) = (pathlib.Path(tmp_path) / "hinton_mnist").iterdir()
    # The second cycle goes on from the weights of the first.
    last, first = (
        [r["accuracy"][0] for r in rows_of(directory) if r["run"] == f"teacher {cycle}"]
        for cycle in (1, 2)
    )
    assert first[0] > last[-1] - 0.02 > 0.8
    # So small a teacher is hardly better than the student: there is no gain to assert.
    for how in ("distilled", "distilled on jittered images"):
        assert results[f"student {how}"] < 1.2 * results["student alone"]
    result = {r["network"]: r for r in rows_of(directory) if r["run"] == "result"}
    threes = int((data.load("mnist", "validation").labels == 3).sum())
    before = np.array(result["distilled, no 3s"]["errors on 3s"])
    name = "distilled, no 3s; bias of 3 for their share of the training images"
    after = np.array(result[name]["errors on 3s"])
    assert (after < before).all() and (after < 0.15 * threes).all()
