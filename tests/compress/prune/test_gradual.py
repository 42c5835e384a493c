"""Gradual pruning: the schedule, and what an optimiser does under it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkd import distill, losses
from jaxkd.compress import prune
from tests.compress.prune import small

DROPPED = np.array([3, 7, 16, 20, 21, 40, 70])


def test_cubic_is_the_published_polynomial():
    share = prune.cubic(4, 14)
    for step in range(20):
        passed = min(max((step - 4) / 10, 0), 1)
        assert float(share(step)) == pytest.approx(1 - (1 - passed) ** 3, abs=1e-6)


def test_cubic_holds_between_changes_and_is_whole_at_the_end():
    share = prune.cubic(0, 10, every=4)
    found = [float(share(step)) for step in range(12)]
    assert found[0] == found[3] == 0 and found[4] == found[7] < found[8] == found[9]
    assert found[10] == found[11] == 1.0
    assert float(jax.jit(share)(jnp.int32(10))) == 1.0


def run(tx, steps):
    """The parameters after each update, in one compiled scan, on fixed gradients."""
    params, _ = small.variables()
    grads = jax.tree.map(jnp.cos, params)

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    start = (params, tx.init(params))
    return jax.jit(lambda start: jax.lax.scan(step, start, None, steps))(start)


def test_channels_go_in_order_and_stay_away():
    plan = small.plan()
    tx = prune.gradual(optax.adam(1e-2), plan, DROPPED, prune.cubic(1, 6))
    (last, state), after = run(tx, 8)
    scores = jax.vmap(lambda p: prune.criteria.l1(plan, p))(after)
    gone = np.asarray(scores == 0)
    for t in range(8):
        passed = min(max(t + 1 - 1, 0) / 5, 1)
        number = round((1 - (1 - passed) ** 3) * len(DROPPED))
        assert set(np.flatnonzero(gone[t])) == set(DROPPED[:number].tolist())
    assert gone[7].sum() == len(DROPPED) and int(state.step) == 8
    masked = plan.mask(last, DROPPED)
    jax.tree.map(np.testing.assert_array_equal, masked, last)


def test_what_stays_moves_as_the_optimiser_says_bit_for_bit():
    plan = small.plan()
    for tx in (optax.sgd(0.1, momentum=0.9), optax.adamw(1e-2)):
        (wrapped, _), _ = run(prune.gradual(tx, plan, DROPPED, prune.cubic(0, 3)), 5)
        (plain, _), _ = run(tx, 5)
        jax.tree.map(np.testing.assert_array_equal, wrapped, plan.mask(plain, DROPPED))


def test_removal_after_training_is_the_masked_network():
    plan, resident = small.plan(), small.resident()
    tx = prune.gradual(optax.adam(1e-2), plan, DROPPED, prune.cubic(0, 4))
    ce = {"ce": (1.0, distill.on_labels(losses.cross_entropy))}
    d = distill.distiller(
        prune.from_variables(small.net, small.variables()), distill.no_teacher, ce, tx
    )
    batch = small.VIEW(jax.random.key(0), resident)
    state = d.init(jax.random.key(0), None, batch)
    step = jax.jit(d.step)
    for _ in range(5):
        state, metrics = step(state, None, batch)
    assert np.isfinite(metrics["loss"])
    trained = (state.params["student"], state.state["student"])
    x = batch["image"][:8]
    whole, _ = small.net.apply(*trained, x, train=False)
    removed = plan.apply(trained, DROPPED)
    pruned, _ = prune.resized(small.net).apply(*removed, x, train=False)
    np.testing.assert_allclose(pruned.logits, whole.logits, rtol=1e-5, atol=1e-5)
    smaller = plan.apply(state, DROPPED)  # moments and all
    assert smaller.params["student"]["Conv_0"]["kernel"].shape[-1] == 14
    moments = smaller.opt_state.inner[0].mu["student"]["Conv_0"]["kernel"]
    assert moments.shape[-1] == 14


def test_extra_arguments_reach_the_optimiser():
    seen = []

    def update(updates, state, params=None, *, value=None, **extra):
        seen.append(value)
        return updates, state

    inner = optax.GradientTransformationExtraArgs(lambda params: (), update)
    tx = prune.gradual(inner, small.plan(), DROPPED, prune.cubic(0, 1))
    params, _ = small.variables()
    tx.update(params, tx.init(params), params, value=3)
    assert seen == [3]


@pytest.mark.bad_input
def test_wrong_arguments_are_refused():
    plan, tx = small.plan(), optax.sgd(0.1)
    with pytest.raises(ValueError, match="dropped must be units from 0 to 71"):
        prune.gradual(tx, plan, [72], prune.cubic(0, 1))
    with pytest.raises(ValueError, match="would lose all its units"):
        prune.gradual(tx, plan, range(16), prune.cubic(0, 1))
    for begin, end, every in ((5, 5, 1), (-1, 5, 1), (0, 5, 0)):
        with pytest.raises(ValueError, match="must be >="):
            prune.cubic(begin, end, every=every)
    wrapped = prune.gradual(tx, plan, DROPPED, prune.cubic(0, 1))
    with pytest.raises(ValueError, match="nothing with the structure"):
        wrapped.init({"other": jnp.ones(3)})
    params, _ = small.variables()
    with pytest.raises(ValueError, match="pass params to update"):
        wrapped.update(params, wrapped.init(params))
