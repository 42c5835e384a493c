"""The moving average of the student as its teacher."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkd import data, distill, evaluate, losses, train
from jaxkd.data import augment
from jaxkd.schemes import self_teacher
from tests import toys
from tests.schemes import digits


@pytest.fixture
def batch():
    key = jax.random.key(0)
    return {
        "image": jax.random.normal(key, (8, 4, 4, 3)),
        "label": jax.random.randint(key, (8,), 0, 5),
    }


def close(a, b, rtol=1e-4, atol=1e-6):
    np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


def students(state):
    return state.params["student"], state.state["student"]


def steps(d, batch, n):
    state = jax.jit(d.init)(jax.random.key(0), None, batch)
    states, step = [state], jax.jit(d.step)
    for _ in range(n):
        states.append(step(states[-1], None, batch)[0])
    return states


def test_warm_up_is_the_written_recursion_of_params_and_statistics(batch):
    d = self_teacher.distiller(toys.student, toys.spec, optax.sgd(0.1), decay=0.3)
    states = steps(d, batch, 5)
    jax.tree.map(close, self_teacher.variables(states[0]), students(states[0]))
    y = jax.tree.map(lambda a: np.asarray(a, np.float64), students(states[0]))
    for t, state in enumerate(states[1:]):
        rate = min(0.3, (1 + t) / (10 + t))  # 0.1, 2/11, 1/4, then 0.3
        y = jax.tree.map(
            lambda y, x, r=rate: r * y + (1 - r) * np.asarray(x), y, students(state)
        )
        jax.tree.map(close, self_teacher.variables(state), y)
    assert "batch_stats" in y[1]


def test_corrected_is_the_weighted_mean_of_all_students_but_the_first(batch):
    kd = {**toys.labels_only, "kd": (1.0, distill.on_logits(losses.kd))}
    d = self_teacher.distiller(
        toys.student, kd, optax.sgd(0.1), decay=0.8, mode="corrected"
    )
    states = steps(d, batch, 4)
    weights = np.array([0.8**3, 0.8**2, 0.8, 1.0])
    wanted = jax.tree.map(
        lambda *x: np.tensordot(weights / weights.sum(), np.stack(x), 1),
        *(students(state) for state in states[1:]),
    )
    jax.tree.map(close, self_teacher.variables(states[-1]), wanted)


@pytest.mark.parametrize("decay", [0.5, 0.999, 0.999999])
def test_corrected_decay_keeps_its_digits(decay):
    t = np.array([0, 1, 2, 10, 1000, 10**6])
    found = jax.vmap(lambda t: self_teacher.decay_at(t, decay, "corrected"))(t)
    exact = np.float64(np.float32(decay))
    wanted = exact * (1 - exact**t) / (1 - exact ** (t + 1.0))
    close(found, wanted, rtol=1e-5)
    assert (found <= np.float32(decay)).all()


def test_the_teacher_of_a_step_is_the_average_before_it_without_noise(batch):
    """And what it says is what `frozen` says: no dropout, stored statistics."""
    spec = {"kd": (1.0, distill.on_logits(losses.kd, temperature=1.0))}
    d = self_teacher.distiller(toys.student, spec, optax.sgd(0.5), decay=0.9)
    state = steps(d, batch, 3)[-1]
    _, metrics = jax.jit(d.step)(state, None, batch)
    live = distill.frozen(toys.student)
    by_hand = distill.distiller(toys.student, live, spec, optax.sgd(0.5))
    average = self_teacher.variables(state)
    _, wanted = jax.jit(by_hand.step)(state, average, batch)
    close(metrics["loss/kd"], wanted["loss/kd"])
    assert metrics["loss/kd"] > 1e-4  # the student has dropout and has moved


def test_no_gradient_reaches_the_average(batch, monkeypatch):
    spec = {"kd": (1.0, distill.on_logits(losses.kd))}
    d = self_teacher.distiller(toys.student, spec, optax.sgd(0.1), decay=0.9)
    state = steps(d, batch, 2)[-1]

    def loss(average):
        at = state._replace(state={**state.state, "teacher": average})
        return d.step(at, None, batch)[1]["loss"]

    average = state.state["teacher"]
    found = jax.jit(jax.grad(loss))(average)
    assert all((g == 0).all() for g in jax.tree.leaves(found))
    monkeypatch.setattr(jax.lax, "stop_gradient", lambda x: x)
    found = jax.jit(jax.grad(lambda a: loss(a)))(average)
    assert any((g != 0).any() for g in jax.tree.leaves(found))


def test_half_precision_is_averaged_in_float32_and_counters_are_copied(batch):
    def init(key, x):
        w = jax.random.normal(key, (48, 5), jnp.bfloat16)
        return {"w": w}, {"seen": jnp.zeros((), jnp.int32)}

    def apply(params, state, x, *, train, key=None):
        z = x.reshape(len(x), -1) @ params["w"].astype(jnp.float32)
        return distill.Outputs(z, {}), {"seen": state["seen"] + train}

    net = toys.from_linen(toys.Toy(3))._replace(init=init, apply=apply)
    d = self_teacher.distiller(net, toys.labels_only, optax.sgd(0.1), decay=0.999)
    *_, before, state = steps(d, batch, 30)
    params, statistics = self_teacher.variables(state)
    assert params["w"].dtype == jnp.float32
    assert state.params["student"]["w"].dtype == jnp.bfloat16
    assert statistics["seen"] == state.state["student"]["seen"] == 30
    assert (params["w"] != self_teacher.variables(before)[0]["w"]).mean() > 0.9


def test_another_way_to_teach_sees_its_own_view(batch):
    def as_teacher(net):
        live = distill.frozen(net)
        return lambda v, b: live(v, {**b, "image": b["weak"]})

    spec = {"kd": (1.0, distill.on_logits(losses.kd))}
    d = self_teacher.distiller(
        toys.student, spec, optax.sgd(0.1), as_teacher=as_teacher
    )
    seen = {**batch, "weak": batch["image"] + 1}
    state = jax.jit(d.init)(jax.random.key(0), None, seen)
    _, metrics = jax.jit(d.step)(state, None, seen)
    weak = {
        "teacher": distill.frozen(toys.student)(
            students(state), seen | {"image": seen["weak"]}
        ).logits
    }
    d = distill.distiller(toys.student, distill.cached, spec, optax.sgd(0.1))
    close(metrics["loss/kd"], jax.jit(d.step)(state, None, seen | weak)[1]["loss/kd"])


def semi_supervised(weight):
    """Student and teacher accuracy with 100 labels and 1,297 images, 4 seeds."""
    few = data.subset(data.load("digits", "train"), 100, seed=0)
    resident = digits.images("train")
    known = jnp.isin(resident["index"], jnp.asarray(few.index))
    resident = {**resident, "label": jnp.where(known, resident["label"], -1)}
    view = augment.chain(augment.jitter(1), digits.view())
    spec = {
        "ce": (13.0, distill.on_labels(losses.cross_entropy)),
        "consistency": (
            optax.linear_schedule(0.0, weight, 200),
            distill.on_logits(losses.probability_mse),
        ),
    }
    d = self_teacher.distiller(digits.large, spec, digits.tx, decay=0.99)
    keys = jax.random.split(jax.random.key(0), 4)
    example = train.example(resident, view)
    run = train.fit(
        train.over_seeds(train.make_epoch(d, view=view, batch_size=100)),
        jax.jit(jax.vmap(d.init, in_axes=(0, None, None)))(keys, None, example),
        None,
        resident,
        key=keys,
        epochs=40,
        progress=False,
    )
    score = evaluate.scorer(digits.large, digits.images("test"), view=digits.view())
    states = (run.state, self_teacher.promoted(run.state))
    return [np.asarray(score(state)["accuracy"]) for state in states]


@pytest.mark.slow
def test_the_average_is_the_better_network_and_consistency_pulls_the_student_to_it():
    student, teacher = semi_supervised(0.0)
    assert (teacher > 0.75).all()
    assert teacher.mean() > student.mean() + 0.01
    consistent, taught = semi_supervised(3.0)
    print(f"labels only {student} {teacher}; consistent {consistent} {taught}")
    # That it also helps is printed, not asserted: four seeds do not show it safely.
    assert (taught - consistent).mean() < 0.6 * (teacher - student).mean()
    assert (taught > 0.75).all()


@pytest.mark.bad_input
def test_bad_knobs_are_refused_before_work():
    for decay in (0.0, 1.0, -0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match="decay must be in the open interval"):
            self_teacher.distiller(toys.student, toys.spec, optax.sgd(0.1), decay=decay)
    with pytest.raises(ValueError, match="mode must be one of .*'warm_up'"):
        self_teacher.distiller(toys.student, toys.spec, optax.sgd(0.1), mode="cosine")
    with pytest.raises(ValueError, match="no term"):
        self_teacher.distiller(toys.student, {}, optax.sgd(0.1))
    with pytest.raises(ValueError, match="mode must be one of"):
        self_teacher.decay_at(0, 0.5, "none")
