"""The temperature: where it starts, which way it goes, how fast."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses
from jaxkd.terms.ctkd import ctkd, reverse
from tests.terms import small

S, T, B = small.outputs(0, 3), small.outputs(1, 5), small.batch(range(6))


def temperature(theta):
    return 1 + 20 / (1 + np.exp(-np.float64(theta)))


def test_starts_where_the_authors_start():
    term = ctkd(ramp=10)
    params, state = term.init(jax.random.key(0), S, T, B)
    loss, _ = term.apply(params, state, S, T, B)
    wanted = losses.kd(S.logits, T.logits, temperature=temperature(1.0))
    np.testing.assert_allclose(loss, wanted, rtol=1e-4)
    np.testing.assert_allclose(temperature(1.0), 15.62, atol=0.01)


def test_gradient_is_reversed_as_far_as_the_ramp_has_come():
    term = ctkd(ramp=8, strength=0.6)
    found = lambda theta, step: jax.grad(
        lambda p: term.apply(p, {"step": step}, S, T, B)[0].sum()
    )({"theta": theta})["theta"]
    found = jax.jit(found)
    # The true derivative, by central differences in double precision.
    value = lambda theta: np.float64(_kd(temperature(theta)))
    true = (value(-1.0 + 1e-4) - value(-1.0 - 1e-4)) / 2e-4
    for step, share in ((0, 0.0), (2, (1 - np.sqrt(0.5)) / 2), (4, 0.5), (8, 1.0)):
        got = found(jnp.asarray(-1.0), jnp.asarray(step))
        np.testing.assert_allclose(got, -0.6 * share * true, rtol=1e-3, atol=1e-7)


def _kd(temperature):
    s, t = (np.asarray(o.logits, np.float64) / temperature for o in (S, T))
    log = lambda z: z - np.log(np.exp(z).sum(-1, keepdims=True))
    return temperature**2 * (np.exp(log(t)) * (log(t) - log(s))).sum()


def test_reversed_it_climbs_and_otherwise_descends():
    value = lambda found: float(_kd(temperature(found[0]["theta"])))
    term = ctkd(ramp=1)
    first, last, _ = small.descend(term, S, T, B, steps=20, rate=0.05)
    assert value(last) > value(first)
    assert last[0]["theta"] != first[0]["theta"]
    # The same term with the sign of the reversal turned.
    plain = term._replace(apply=lambda p, z, *rest: _turned(term, p, z, *rest))
    first, last, _ = small.descend(plain, S, T, B, steps=20, rate=0.05)
    assert value(last) < value(first)


def _turned(term, params, state, *rest):
    params = {"theta": reverse(params["theta"], jnp.ones(()))}
    return term.apply(params, state, *rest)


def test_no_reversal_no_movement_and_the_student_is_not_reversed():
    still = ctkd(ramp=1, strength=0.0)
    first, last, _ = small.descend(still, S, T, B, steps=3)
    assert last[0]["theta"] == first[0]["theta"]
    term, params = ctkd(ramp=1), {"theta": jnp.ones(())}
    total = lambda s: term.apply(params, {"step": jnp.asarray(1)}, s, T, B)[0].sum()
    plain = lambda z: losses.kd(z, T.logits, temperature=temperature(1.0)).sum()
    found, wanted = jax.grad(total)(S).logits, jax.grad(plain)(S.logits)
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-6)


def test_counts_its_steps_to_the_end_of_the_ramp_for_every_seed():
    term = ctkd(ramp=4)
    _, (_, state), _ = small.descend(term, S, T, B, steps=3)
    assert state["step"] == 3
    _, (_, state), _ = small.descend(term, S, T, B, steps=9)
    assert state["step"] == 4
    small.two_seeds_are_two_runs(term, S, T, B)


@pytest.mark.bad_input
def test_errors_name_the_knob():
    with pytest.raises(ValueError, match="ramp must be >= 1"):
        ctkd(ramp=0)
    with pytest.raises(ValueError, match="start must be"):
        ctkd(ramp=1, start=0.0)
    with pytest.raises(ValueError, match="same classes"):
        other = small.outputs(1, 5, classes=4)
        ctkd(ramp=1).init(jax.random.key(0), S, other, B)
