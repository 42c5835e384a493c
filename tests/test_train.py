"""An epoch, several seeds, and the host's loop, on the toy pair."""

import json
import os
import signal
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkd import data, distill, evaluate, log, train
from jaxkd.data import augment
from tests import toys


@pytest.fixture(scope="module")
def world():
    """One for all tests, so that its epoch is compiled once; states are made anew."""
    resident = data.on_device(toys.dataset())
    variables = toys.teacher_variables()
    teacher = distill.frozen(toys.teacher)
    d = distill.distiller(toys.student, teacher, toys.spec, optax.sgd(0.05))
    epoch = train.make_epoch(d, view=toys.view, batch_size=8)
    batch = train.example(resident, toys.view)
    init = jax.jit(d.init)
    start = lambda seed=0: init(jax.random.key(seed), variables, batch)
    return d, epoch, start, variables, resident


def starts(d, keys, variables, resident):
    """A state of every key."""
    batch = train.example(resident, toys.view)
    return jax.jit(jax.vmap(d.init, in_axes=(0, None, None)))(keys, variables, batch)


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_an_epoch_is_the_loop_over_its_batches(world):
    d, epoch, start, variables, resident = world
    key = jax.random.key(5)
    scanned, metrics = jax.jit(epoch)(start(), variables, resident, key)
    order_key, view_key = jax.random.split(key)
    state, step = start(), jax.jit(d.step)
    order = data.epoch(order_key, 40, 8)
    for rows, k in zip(order, jax.random.split(view_key, 5), strict=True):
        batch = toys.view(k, data.gather(resident, rows))
        state, _ = step(state, variables, batch)
    jax.tree.map(close, scanned.params, state.params)
    assert metrics["loss/kd"].shape == (5,)


def test_fit_learns_and_keeps_its_history(world):
    *_, resident = world
    score = evaluate.scorer(toys.student, resident, view=toys.view)
    d = distill.distiller(
        toys.student, distill.no_teacher, toys.labels_only, optax.adam(0.01)
    )
    batch = train.example(resident, toys.view)
    run = train.fit(
        train.make_epoch(d, view=toys.view, batch_size=8),
        jax.jit(d.init)(jax.random.key(0), None, batch),
        None,
        resident,
        key=jax.random.key(0),
        epochs=30,
        evaluate=score,
    )
    assert not run.interrupted
    assert [row["epoch"] for row in run.history] == list(range(1, 31))
    assert run.history[-1]["loss/ce"] < 0.6 * run.history[0]["loss/ce"]
    assert run.history[-1]["accuracy"] > 0.6  # chance is 0.2
    assert run.state.step == 150


def test_fit_compiles_once_and_donates_the_state_but_not_the_teacher(world):
    d, _, start, variables, resident = world
    traces = []
    counted = d._replace(step=lambda *args: traces.append(1) or d.step(*args))
    epoch = train.make_epoch(counted, view=toys.view, batch_size=8)
    state = start()
    train.fit(epoch, state, variables, resident, key=jax.random.key(0), epochs=4)
    assert len(traces) == 1
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((variables, resident)))


def test_every_epoch_has_its_own_order_fixed_by_the_key(world):
    _, epoch, start, variables, resident = world
    run = lambda seed: train.fit(
        epoch, start(), variables, resident, key=jax.random.key(seed), epochs=3
    )
    same = lambda a, b: np.testing.assert_array_equal(a, b)
    one, again, other = run(0), run(0), run(1)
    jax.tree.map(same, one.state.params, again.state.params)
    differ = jax.tree.map(
        lambda a, b: (a != b).any(), one.state.params, other.state.params
    )
    assert any(jax.tree.leaves(differ))


@pytest.mark.parametrize("together", [True, False])
def test_seeds_at_once_are_the_seeds_one_by_one(world, together):
    d, epoch, start, variables, resident = world
    keys = jax.vmap(jax.random.key)(jnp.arange(3))
    states = starts(d, keys, variables, resident)
    many = train.fit(
        train.over_seeds(epoch, together=together),
        states,
        variables,
        resident,
        key=keys,
        epochs=2,
        evaluate=evaluate.scorer(toys.student, resident, view=toys.view),
    )
    one = train.fit(
        epoch,
        start(1),
        variables,
        resident,
        key=jax.random.key(1),
        epochs=2,
        evaluate=evaluate.scorer(toys.student, resident, view=toys.view),
    )
    jax.tree.map(lambda a, b: close(a[1], b), many.state.params, one.state.params)
    assert np.shape(many.history[-1]["accuracy"]) == (3,)
    close(many.history[-1]["nll"][1], one.history[-1]["nll"])
    close(many.history[-1]["loss/kd"][1], one.history[-1]["loss/kd"])


def test_not_a_number_stops_the_run_and_says_where(world, tmp_path):
    d, _, start, variables, resident = world

    def poisoned(state, teacher_variables, batch):
        new, metrics = d.step(state, teacher_variables, batch)
        bad = state.step == 7
        metrics["loss/kd"] = jnp.where(bad, jnp.nan, metrics["loss/kd"])
        metrics["loss"] = jnp.where(bad, jnp.nan, metrics["loss"])
        return new, metrics

    epoch = train.make_epoch(d._replace(step=poisoned), view=toys.view, batch_size=8)
    with pytest.raises(FloatingPointError, match=r"mine: loss/kd is nan at step 7;"):
        train.fit(
            epoch,
            start(),
            variables,
            resident,
            key=jax.random.key(0),
            epochs=3,
            log=log.start(tmp_path / "run"),
            name="mine",
        )
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["epoch"] for row in rows] == [1]  # steps 0 to 4


def test_not_a_number_names_the_seed(world):
    d, _, _, variables, resident = world
    keys = jax.vmap(jax.random.key)(jnp.arange(2))
    states = starts(d, keys, variables, resident)
    hurt = lambda a: a.at[1].set(jnp.nan) if a.dtype == jnp.float32 else a
    states = states._replace(params=jax.tree.map(hurt, states.params))
    epoch = train.over_seeds(train.make_epoch(d, view=toys.view, batch_size=8))
    with pytest.raises(FloatingPointError, match="at step 0 of seed 1"):
        train.fit(epoch, states, variables, resident, key=keys, epochs=1)


def test_ctrl_c_ends_the_run_after_the_epoch_under_way(world, tmp_path):
    _, epoch, start, variables, resident = world
    before = signal.getsignal(signal.SIGINT)
    rows = []

    def interrupt_in_the_third(row):
        rows.append(row)
        if len(rows) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    run = train.fit(
        epoch,
        start(),
        variables,
        resident,
        key=jax.random.key(0),
        epochs=50,
        log=interrupt_in_the_third,
    )
    assert run.interrupted and len(run.history) == len(rows) == 3
    assert run.state.step == 15
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(run.state.params))
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_ctrl_c_interrupts_at_once(world):
    _, epoch, start, variables, resident = world
    # A shell starts what runs in the background with SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def twice(row):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.05)

    with pytest.raises(KeyboardInterrupt):
        train.fit(
            epoch,
            start(),
            variables,
            resident,
            key=jax.random.key(0),
            epochs=50,
            log=twice,
        )
    signal.signal(signal.SIGINT, before)


def test_fit_runs_in_a_thread_too(world):
    """Only the main thread may handle signals; a notebook's or server's may train."""
    _, epoch, start, variables, resident = world
    found = []
    run = lambda: found.append(
        train.fit(epoch, start(), variables, resident, key=jax.random.key(0), epochs=1)
    )
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert len(found[0].history) == 1


@pytest.mark.bad_input
def test_errors_name_what_does_not_fit(world):
    d, epoch, start, variables, resident = world
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="epochs must be >= 0, got -1"):
        train.fit(epoch, start(), variables, resident, key=key, epochs=-1)
    large = train.make_epoch(d, view=toys.view, batch_size=41)
    with pytest.raises(ValueError, match="at most the 40 examples, got 41"):
        train.fit(large, start(), variables, resident, key=key, epochs=1)
    with_logits = {**resident, "teacher": jnp.zeros((40, 5))}
    flipped = train.make_epoch(
        d, view=augment.chain(toys.view, augment.flip()), batch_size=8
    )
    with pytest.raises(ValueError, match="the view is random"):
        train.fit(flipped, start(), variables, with_logits, key=key, epochs=1)


@pytest.mark.bad_input
def test_labels_without_an_output_are_refused_before_training(world):
    d, epoch, start, variables, resident = world
    keys = jax.random.split(jax.random.key(0), 2)
    match = r"labels must be in \[0, 5\), the student's outputs"
    for wrong in (5, -100):
        columns = {**resident, "label": resident["label"].at[3].set(wrong)}
        with pytest.raises(ValueError, match=match):
            train.fit(epoch, start(), variables, columns, key=keys[0], epochs=1)
        with pytest.raises(ValueError, match=match):
            states = starts(d, keys, variables, resident)
            several = train.over_seeds(epoch)
            train.fit(several, states, variables, columns, key=keys, epochs=1)
