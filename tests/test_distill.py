"""The contracts of a Distiller, on a toy pair of networks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkd import distill, losses
from tests import toys


@pytest.fixture
def batch():
    key = jax.random.key(0)
    return {
        "image": jax.random.normal(key, (16, 4, 4, 3)),
        "label": jax.random.randint(key, (16,), 0, 5),
    }


@functools.cache
def distiller():
    """One for all tests, so that one program makes its states and one its steps."""
    teacher = distill.frozen(toys.teacher)
    d = distill.distiller(toys.student, teacher, toys.spec, optax.sgd(0.1))
    return d, jax.jit(d.init), jax.jit(d.step), toys.teacher_variables()


@pytest.fixture
def world(batch):
    d, init, _, variables = distiller()
    return d, init(jax.random.key(0), variables, batch), variables, batch


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_every_named_part_moves_and_the_loss_falls(world):
    _, state, variables, batch = world
    step, first = distiller()[2], None
    for _ in range(100):
        new, metrics = step(state, variables, batch)
        first = first or metrics["loss/hint"]
        moved = jax.tree.map(
            lambda a, b: not np.array_equal(a, b), new.params, state.params
        )
        assert any(jax.tree.leaves(moved["student"]))
        assert all(jax.tree.leaves(moved["terms"]["hint"]))
        state = new
    assert metrics["loss/hint"] < 0.5 * first
    assert state.step == 100


def test_metrics_are_the_specs_names_and_their_weighted_sum(world):
    _, state, variables, batch = world
    state = state._replace(step=jnp.asarray(4))  # where kd's schedule is at 0.4
    _, metrics = distiller()[2](state, variables, batch)
    assert set(metrics) == {"loss", "loss/ce", "loss/kd", "loss/hint", "norm/grad"}
    total = 0.5 * metrics["loss/ce"] + 0.4 * metrics["loss/kd"] + metrics["loss/hint"]
    close(metrics["loss"], total)


def test_no_gradient_reaches_the_teacher(world, monkeypatch):
    d, state, variables, batch = world
    state = state._replace(step=jnp.asarray(5))
    gradient = lambda v: jax.grad(lambda v: d.step(state, v, batch)[1]["loss"])(v)
    assert all((g == 0).all() for g in jax.tree.leaves(jax.jit(gradient)(variables)))
    # The same assertion fails without the stop_gradient: it is what makes it true.
    monkeypatch.setattr(jax.lax, "stop_gradient", lambda x: x)
    found = jax.jit(lambda v: gradient(v))(variables)
    assert any((g != 0).any() for g in jax.tree.leaves(found))


def test_traces_once(world):
    d, state, variables, batch = world
    traces = []
    step = jax.jit(lambda *args: traces.append(1) or d.step(*args))
    for _ in range(3):
        state, _ = step(state, variables, batch)
    assert len(traces) == 1


def test_scan_is_the_loop_and_vmap_is_the_seeds(world):
    d, state, variables, batch = world
    batches = jax.tree.map(lambda x: jnp.stack([x] * 3), batch)
    one = lambda z, b: d.step(z, variables, b)
    scanned, _ = jax.jit(lambda z, b: jax.lax.scan(one, z, b))(state, batches)
    _, init, step, _ = distiller()
    looped = state
    for _ in range(3):
        looped, _ = step(looped, variables, batch)
    jax.tree.map(close, scanned.params, looped.params)

    keys = jax.random.split(jax.random.key(7), 4)
    of_seeds = lambda f: jax.jit(jax.vmap(f, in_axes=(0, None, None)))
    many = of_seeds(d.init)(keys, variables, batch)
    together, metrics = of_seeds(d.step)(many, variables, batch)
    alone, _ = step(init(keys[2], variables, batch), variables, batch)
    assert metrics["loss"].shape == (4,)
    jax.tree.map(lambda a, b: close(a[2], b), together.params, alone.params)


def test_state_is_arrays_only(world):
    _, state, *_ = world
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))


def test_students_start_equal_whatever_the_spec(world):
    d, state, variables, batch = world
    other = distill.distiller(
        toys.student, distill.no_teacher, toys.labels_only, optax.adam(0.1)
    )
    alone = jax.jit(other.init)(jax.random.key(0), None, batch)
    same = lambda a, b: np.testing.assert_array_equal(a, b)
    jax.tree.map(same, alone.params["student"], state.params["student"])


def test_a_teacher_is_any_function_of_variables_and_batch(world):
    _, _, variables, batch = world
    live = distill.frozen(toys.teacher)
    spec = {name: toys.spec[name] for name in ("ce", "kd")}
    batch["teacher"] = live(variables, batch).logits
    found = []
    for teacher, its in ((live, variables), (distill.cached, None)):
        d = distill.distiller(toys.student, teacher, spec, optax.sgd(0.1))
        state = jax.jit(d.init)(jax.random.key(0), its, batch)
        state = state._replace(step=jnp.asarray(5))
        found.append(jax.jit(d.step)(state, its, batch)[1]["loss"])
    np.testing.assert_allclose(*found, rtol=1e-6)


def test_batch_statistics_the_teachers_stay_the_students_move_once(world):
    _, state, variables, batch = world
    before = jax.tree.map(np.asarray, variables)
    new, _ = distiller()[2](state, variables, batch)
    jax.tree.map(np.testing.assert_array_equal, variables, before)
    old = state.state["student"]["batch_stats"]["BatchNorm_0"]["mean"]
    now = new.state["student"]["batch_stats"]["BatchNorm_0"]["mean"]
    x = batch["image"].reshape(16, -1)
    dense = state.params["student"]["Dense_0"]
    seen = (x @ dense["kernel"]).mean(0) + dense["bias"]
    close(now, 0.9 * old + 0.1 * seen)  # the momentum, applied once


def test_labels_of_a_mixed_batch(world):
    *_, batch = world
    logits = jax.random.normal(jax.random.key(4), (16, 5))
    outputs = distill.Outputs(logits, {})
    term = distill.on_labels(losses.cross_entropy)
    other = (batch["label"] + 1) % 5
    mixed = {**batch, "label_other": other, "label_weight": jnp.full(16, 0.25)}
    loss, _ = term.apply({}, {}, outputs, outputs, mixed)
    wanted = 0.25 * losses.cross_entropy(logits, batch["label"])
    wanted += 0.75 * losses.cross_entropy(logits, other)
    close(loss, wanted)


def test_a_lift_of_logits_and_labels(world):
    d, state, variables, batch = world
    pick = lambda s, t, labels, *, scale: scale * (s - t)[jnp.arange(16), labels]
    term = distill.on_logits_and_labels(pick, scale=3.0)
    s, t = (jax.random.normal(jax.random.key(k), (16, 5)) for k in (1, 2))
    outputs = distill.Outputs(s, {}), distill.Outputs(t, {})
    loss, _ = term.apply({}, {}, *outputs, batch)
    wanted = [3 * (s[i, y] - t[i, y]) for i, y in enumerate(batch["label"])]
    close(loss, jnp.stack(wanted))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_cross_entropy_is_minus_the_log_probability(dtype):
    logits = jnp.array([[1.0, 2.0, -1e4], [0.0, 0.0, 0.0]], dtype)
    loss = losses.cross_entropy(logits, jnp.array([0, 2]))
    assert loss.dtype == jnp.float32
    close(loss, [np.log(1 + np.e), np.log(3)])


@pytest.mark.bad_input
def test_errors_name_what_does_not_fit(batch):
    key, sgd = jax.random.key(0), optax.sgd(0.1)
    variables = toys.teacher_variables()
    frozen = distill.frozen(toys.teacher)
    with pytest.raises(ValueError, match="no term"):
        distill.distiller(toys.student, frozen, {}, sgd)
    kd = {"kd": (1.0, distill.on_logits(losses.kd))}
    with pytest.raises(ValueError, match="none teaches"):
        distill.distiller(toys.student, distill.no_teacher, kd, sgd).init(
            key, None, batch
        )
    seven = toys.from_linen(toys.Toy(6, classes=7))
    with pytest.raises(ValueError, match=r"5 \(teacher\) and 7 \(student\)"):
        distill.distiller(seven, frozen, kd, sgd).init(key, variables, batch)
    lost = {"hint": (1.0, distill.on_taps(toys.mean_square, "hiden", "hidden"))}
    with pytest.raises(KeyError, match=r"no tap 'hiden'; there are \['hidden'\]"):
        distill.distiller(toys.student, frozen, lost, sgd).init(key, variables, batch)
