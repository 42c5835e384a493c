"""Both halves of the loss by hand; the head stays as it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.terms.srrl import srrl
from tests.terms import small

S, T, B = small.outputs(0, 3), small.outputs(1, 5), small.batch(range(6))
HEAD = {
    "kernel": jax.random.normal(jax.random.key(4), (6, 5)),
    "bias": jnp.arange(5.0),
}


@pytest.mark.parametrize("tap", ["pooled", "stage2"])
def test_is_the_distance_of_features_and_of_logits(tap):
    term = srrl(tap, head=HEAD)
    params, state = jax.jit(term.init)(jax.random.key(0), S, T, B)
    loss, new = jax.jit(term.apply)(params, state, S, T, B)
    s, t = np.asarray(S.taps[tap]), np.asarray(T.taps[tap], np.float64)
    layer = params["dense" if tap == "pooled" else "conv"]["kernel"]
    x = s @ np.asarray(layer).reshape(4, 6)
    x = np.maximum(small.normalised(x, params["norm"]), 0)
    x, t = (a.reshape(6, -1, 6).mean(1) for a in (x, t))
    logits = x @ np.asarray(HEAD["kernel"]) + np.asarray(HEAD["bias"])
    wanted = ((x - t) ** 2).mean(1) + ((logits - np.asarray(T.logits)) ** 2).mean(1)
    np.testing.assert_allclose(loss, wanted, rtol=1e-3)
    assert not any(small.unequal(HEAD, new["head"]))
    assert all(small.unequal(state["connector"], new["connector"]))


def test_trains_around_the_head_for_every_seed():
    term = srrl(head=HEAD)
    (before, _), (after, state), loss = small.descend(term, S, T, B, rate=0.05)
    assert all(small.unequal(before, after))
    assert not any(small.unequal(HEAD, state["head"]))
    assert loss[-1] < 0.7 * loss[0]
    small.two_seeds_are_two_runs(term, S, T, B)


def test_rehearsal_and_a_donated_state():
    term = srrl(head=jax.eval_shape(lambda: HEAD))
    _, state = jax.eval_shape(term.init, jax.random.key(0), S, T, B)
    assert state["head"]["kernel"].shape == (6, 5)
    _, state = srrl(head=HEAD).init(jax.random.key(0), S, T, B)
    jax.jit(lambda z: jax.tree.map(lambda a: a + 1, z), donate_argnums=0)(state)
    assert not HEAD["kernel"].is_deleted()


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "head",
    [{"kernel": jnp.ones((5, 5))}, {"kernel": jnp.ones((6, 4))}, {"conv": HEAD}],
)
def test_refuses_a_head_of_another_network(head):
    with pytest.raises(ValueError, match=r"with a kernel \(6, 5\), got"):
        srrl(head=head).init(jax.random.key(0), S, T, B)
