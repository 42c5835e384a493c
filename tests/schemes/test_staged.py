"""Stages: what is carried over, what moves, and the published two-stage recipes."""

import jax
import numpy as np
import optax
import pytest

from jaxkd import data, distill, evaluate, losses, train
from jaxkd.schemes import staged
from tests import toys

KEY = jax.random.key(3)
SGD = optax.sgd(0.1, momentum=0.9)
HINT = {"hint": toys.spec["hint"]}
TEACHER, VARIABLES = distill.frozen(toys.teacher), toys.teacher_variables()


@pytest.fixture(scope="module")
def resident():
    return data.on_device(toys.dataset(64))


def fit(stages, resident, key=KEY, **more):
    return staged.fit(
        stages,
        toys.student,
        TEACHER,
        VARIABLES,
        resident,
        view=toys.view,
        key=key,
        batch_size=16,
        progress=False,
        **more,
    )


def same(a, b):
    return jax.tree.map(np.testing.assert_array_equal, a, b)


def moved(a, b):
    """The paths of the parameters that differ."""
    paths = jax.tree_util.tree_leaves_with_path(a)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for (path, x), y in zip(paths, jax.tree.leaves(b), strict=True)
        if (x != y).any()
    }


def start(stage, before=None):
    d = staged.stage_distiller(stage, toys.student, TEACHER, before)
    return d.init(KEY, VARIABLES, train.example(RESIDENT, toys.view))


RESIDENT = data.on_device(toys.dataset(64))


def test_one_stage_is_an_ordinary_run(resident):
    (run,) = fit([staged.Stage("all", toys.spec, 2, SGD)], resident)
    d = distill.distiller(toys.student, TEACHER, toys.spec, SGD)
    ordinary = train.fit(
        train.make_epoch(d, view=toys.view, batch_size=16),
        jax.jit(d.init)(KEY, VARIABLES, train.example(resident, toys.view)),
        VARIABLES,
        resident,
        key=KEY,
        epochs=2,
        progress=False,
    )
    same(run.state.params, ordinary.state.params)
    same(run.state.state, ordinary.state.state)


def test_a_stage_moves_what_it_is_told_and_the_next_goes_on_from_there(resident):
    guided = ("student/Dense_0/*", "student/BatchNorm_0/*", "terms/*")
    stages = [
        staged.Stage("hint", HINT, 2, optax.adamw(0.01), trains=guided),
        staged.Stage("task", toys.labels_only, 1, SGD),
    ]
    first, second = fit(stages, resident)
    begun = start(stages[0])
    assert moved(begun.params, first.state.params) == {
        "student/BatchNorm_0/bias",
        "student/BatchNorm_0/scale",
        "student/Dense_0/bias",
        "student/Dense_0/kernel",
        "terms/hint/bias",
        "terms/hint/kernel",
    }
    again = start(stages[1], first.state)
    same(again.params["student"], first.state.params["student"])
    same(again.state["student"], first.state.state["student"])
    assert again.step == 0 and again.params["terms"] == {"ce": {}}
    assert moved(again.params, second.state.params) >= {"student/Dense_1/kernel"}
    assert "terms/hint" not in str(moved(again.params, second.state.params))


def test_terms_of_the_same_name_keep_what_they_learnt(resident):
    stages = [
        staged.Stage("hint", HINT, 1, SGD),
        staged.Stage("both", {**toys.labels_only, **HINT}, 1, SGD),
    ]
    (first,) = fit(stages[:1], resident)
    begun = start(stages[1], first.state)
    same(begun.params["terms"]["hint"], first.state.params["terms"]["hint"])


def test_a_spec_may_come_from_the_state_before_for_every_seed_its_own(resident):
    def towards(value):
        """A term whose target is a value of its state, given where it is built."""

        def init(key, s, t, batch):
            return {}, {"target": value}

        def apply(params, state, s, t, batch):
            return (s.logits.mean(-1) - state["target"]) ** 2, state

        return distill.Term(init, apply)

    mean = lambda before: before.params["terms"]["hint"]["bias"].mean()
    stages = [
        staged.Stage("hint", HINT, 1, SGD),
        staged.Stage(
            "then", lambda before: {"to": (1.0, towards(mean(before)))}, 1, SGD
        ),
    ]
    keys = jax.random.split(KEY, 2)
    first, second = fit(stages, resident, key=keys)
    wanted = jax.vmap(lambda z: mean(z))(first.state)
    np.testing.assert_allclose(second.state.state["terms"]["to"]["target"], wanted)
    assert wanted[0] != wanted[1]


def test_soft_targets_then_hard_labels_learns_and_is_logged_by_stage(resident):
    kd = {"kd": (1.0, distill.on_logits(losses.kd, temperature=2.0))}
    rows, done = [], []
    runs = fit(
        [
            staged.Stage("soft", kd, 2, optax.adam(0.02)),
            staged.Stage("hard", toys.labels_only, 4, optax.adam(0.02)),
        ],
        resident,
        evaluate=evaluate.scorer(toys.student, resident, view=toys.view),
        log=rows.append,
        done=lambda stage, run: done.append((stage.name, len(run.history))),
    )
    assert done == [("soft", 2), ("hard", 4)]
    assert [row["run"] for row in rows] == 2 * ["train: soft"] + 4 * ["train: hard"]
    assert {"loss/kd"} < rows[0].keys() and "loss/kd" not in rows[-1]
    assert runs[1].history[-1]["accuracy"] > 0.5  # chance is 0.2


def test_schedules_count_the_stages_own_steps(resident):
    ramp = optax.linear_schedule(0.0, 1.0, 4)
    ce = toys.labels_only["ce"][1]
    stage = staged.Stage("ramp", {"ce": (ramp, ce)}, 1, optax.sgd(0.0))
    for run in fit([stage, stage], resident):
        weighted = run.history[0]["loss"] / run.history[0]["loss/ce"]
        assert 0.3 < weighted < 0.45  # the mean of 0, 1/4, 2/4, 3/4 is 0.375


@pytest.mark.bad_input
def test_bad_stages_are_refused(resident):
    with pytest.raises(ValueError, match="at least one stage"):
        fit([], resident)
    late = staged.Stage("late", lambda before: toys.labels_only, 1, SGD)
    with pytest.raises(ValueError, match=r"first stage \('late'\) must have a spec"):
        fit([late], resident)
    lost = staged.Stage("lost", toys.labels_only, 1, SGD, trains="student/dense*")
    with pytest.raises(ValueError, match=r"'student/dense\*' fits no parameter"):
        fit([lost], resident)
