"""Fine-tuning by distillation from the unpruned network, at once and in steps."""

import functools

import jax
import numpy as np
import optax
import pytest

from jaxkd import cost, distill, losses, terms
from jaxkd.compress import prune
from tests.compress.prune import small

FLOW = [("one", "three")]


@functools.cache
def pruned():
    plan = small.plan()
    target = prune.target(plan, "macs", fraction=0.5)
    return plan.apply(small.variables(), prune.uniform(plan, small.scores(), target))


def batch():
    rows = jax.tree.map(lambda a: a[:8], small.resident())
    return small.VIEW(jax.random.key(0), rows)


def test_it_starts_from_what_is_left_and_learns_from_what_was():
    d = prune.fine_tuner(small.net, pruned(), optax.adam(1e-3))
    state = jax.jit(d.init)(jax.random.key(5), small.variables(), batch())
    start = (state.params["student"], state.state["student"])
    jax.tree.map(np.testing.assert_array_equal, start, pruned())
    step, found = jax.jit(d.step), []
    for _ in range(15):
        state, metrics = step(state, small.variables(), batch())
        found.append(metrics)
    # The first step's loss, from its definition.
    small_net = prune.resized(small.net)
    x = batch()["image"]
    s, _ = jax.jit(lambda x: small_net.apply(*pruned(), x, train=True))(x)
    t, _ = jax.jit(lambda x: small.net.apply(*small.variables(), x, train=False))(x)
    kd = losses.kd(s.logits, t.logits, temperature=4.0).mean()
    np.testing.assert_allclose(found[0]["loss/kd"], kd, rtol=1e-4)
    assert found[-1]["loss"] < found[0]["loss"]
    shapes = lambda tree: jax.tree.map(np.shape, tree)
    assert shapes(state.params["student"]) == shapes(pruned()[0])


def test_the_teacher_is_not_changed_and_not_kept_in_the_state():
    before = jax.tree.map(np.array, small.variables())
    d = prune.fine_tuner(small.net, pruned(), optax.sgd(0.1))
    state = jax.jit(d.init)(jax.random.key(0), small.variables(), batch())
    jax.jit(d.step)(state, small.variables(), batch())
    jax.tree.map(np.testing.assert_array_equal, small.variables(), before)
    assert cost.parameters(state.params) == cost.parameters(pruned()[0])


def tuner(term):
    d = prune.fine_tuner(small.net, pruned(), optax.sgd(0.1), {"flow": (1.0, term)})
    return functools.partial(
        jax.eval_shape, d.init, jax.random.key(0), small.variables(), batch()
    ), d


@pytest.mark.bad_input
def test_fsp_without_adapters_is_refused_when_the_distiller_is_made():
    init, _ = tuner(terms.fsp(FLOW, adapt=False))
    with pytest.raises(ValueError, match=r"the student's taps are one \(8, 6, 6, 8\)"):
        init()


@pytest.mark.bad_input
def test_a_plain_loss_of_taps_of_other_widths_is_refused_too():
    init, _ = tuner(distill.on_taps(losses.hint, "one", "one"))
    with pytest.raises(ValueError, match="the teacher's one"):
        init()


def test_fsp_with_adapters_learns():
    d = prune.fine_tuner(
        small.net, pruned(), optax.adam(1e-2), {"flow": (1.0, terms.fsp(FLOW))}
    )
    state = jax.jit(d.init)(jax.random.key(0), small.variables(), batch())
    widths = jax.tree.map(np.shape, state.params["terms"]["flow"])
    assert "one_to_three" in widths and jax.tree.leaves(state.params["terms"])
    step, found = jax.jit(d.step), []
    for _ in range(10):
        state, metrics = step(state, small.variables(), batch())
        found.append(float(metrics["loss"]))
    assert found[-1] < found[0]


def test_an_adapter_of_ones_own_fits_taps_of_other_widths():
    term = distill.on_taps(losses.hint, "one", "one", adapter=terms.adapters.Adapter)
    init, _ = tuner(term)
    made = init().params["terms"]["flow"]
    assert made["conv"]["kernel"].shape == (1, 1, 8, 16)


def choose(plan, variables, target):
    return prune.uniform(plan, prune.criteria.l1(plan, variables[0]), target)


def steps(fine_tune=lambda variables: variables, **how):
    how = {"kind": "macs", "fraction": 0.4, "steps": 3, **how}
    return prune.iterative(
        small.net, small.variables(), small.SHAPE, choose, fine_tune, **how
    )


def test_each_step_goes_the_same_part_of_the_way():
    tuned = []

    def fine_tune(variables):
        tuned.append(cost.parameters(variables[0]))
        return jax.tree.map(lambda a: a * 1.01, variables)

    done = steps(fine_tune)
    whole = cost.of(small.net, small.SHAPE).macs
    assert done.costs[0] == whole and len(tuned) == 3
    for k, spent in enumerate(done.costs):
        assert spent <= whole * 0.4 ** (k / 3) + 1e-6
        assert k == 3 or spent > whole * 0.4 ** ((k + 1) / 3)  # not all at once
    assert tuned == sorted(tuned, reverse=True)
    left = prune.analyse_net(prune.resized(small.net), *done.variables, small.SHAPE)
    assert left.macs() == done.costs[-1]


def test_steps_that_were_cut_short_go_on(tmp_path):
    calls = []

    def fine_tune(variables, most=None):
        if len(calls) == most:
            raise KeyboardInterrupt
        calls.append(variables)
        return jax.tree.map(lambda a: a * 1.01, variables)

    expected = steps(fine_tune)
    calls.clear()
    with pytest.raises(KeyboardInterrupt):
        steps(functools.partial(fine_tune, most=1), directory=tmp_path)
    found = steps(fine_tune, directory=tmp_path)
    assert len(calls) == 3 and found.costs == expected.costs
    jax.tree.map(np.testing.assert_array_equal, found.variables, expected.variables)
    with pytest.raises(ValueError, match="belongs to another run: target was"):
        steps(fine_tune, directory=tmp_path, fraction=0.5)


@pytest.mark.bad_input
def test_steps_that_cannot_be_are_refused():
    def never(variables):
        raise AssertionError("nothing should be trained")

    with pytest.raises(ValueError, match="cannot be met: in steps of 8 channels"):
        steps(never, fraction=0.01)
    with pytest.raises(ValueError, match="steps must be >= 1"):
        steps(never, steps=0)
    with pytest.raises(ValueError, match="fraction must be in the open interval"):
        steps(never, fraction=1.0)
    with pytest.raises(ValueError, match="of the same shapes"):
        steps(lambda variables: small.variables())
