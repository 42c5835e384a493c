"""Masked generation: what is masked, what is regenerated, and a new mask each step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.terms.mgd import mgd
from jaxkd.types import Outputs
from tests.terms import small

S, T, B = small.outputs(0, 3), small.outputs(1, 5), small.batch(range(6))


def conv(x, layer):
    out = jax.lax.conv_general_dilated(
        x, layer["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return out + layer["bias"].reshape(1, 1, 1, -1)


def made(term, s=S, t=T):
    return term.init(jax.random.key(0), s, t, B)


def test_without_a_mask_is_the_sum_of_squares_behind_two_convolutions():
    term = mgd("stage1", masked=0.0)
    params, state = made(term)
    its = params["stage1"]
    x = S.taps["stage1"] @ its["align"]["adapter"]["conv"]["kernel"][0, 0]
    x = conv(jnp.maximum(conv(x, its["first"]), 0), its["second"])
    wanted = np.square(np.asarray(x - T.taps["stage1"], np.float64)).sum((1, 2, 3))
    np.testing.assert_allclose(term.apply(params, state, S, T, B)[0], wanted, rtol=1e-4)


def test_with_everything_masked_the_student_is_not_seen():
    term = mgd("stage1", masked=1.0)
    params, state = made(term)
    mean = lambda s: term.apply(params, state, s, T, B)[0].mean()
    gradient = jax.grad(mean)(S).taps["stage1"]
    np.testing.assert_array_equal(gradient, 0)


def read(term, params, state, s):
    """Which units of the student's map the loss depends on."""
    total = lambda x: term.apply(params, state, x, s, B)[0].sum()
    return np.asarray(jax.grad(total)(s).taps["stage1"] != 0)


@pytest.mark.parametrize(("of", "axes"), [("channels", (1, 2)), ("positions", (3,))])
def test_whole_channels_or_whole_positions_are_masked(of, axes):
    s = small.outputs(0, 40, batch=6)
    term = mgd("stage1", masked=0.3, of=of)
    params, state = made(term, s, s)
    seen = read(term, params, state, s)
    assert (seen.any(axes) == seen.all(axes)).all()
    share = 1 - seen.any(axes).mean()
    count = seen.any(axes).size
    assert abs(share - 0.3) < 4 * (0.3 * 0.7 / count) ** 0.5  # four deviations
    assert len(np.unique(seen.any(axes), axis=0)) == 6  # each example has its own


def test_every_step_has_a_mask_of_its_own():
    s = small.outputs(0, 40, batch=6)
    term = mgd("stage1", masked=0.3)
    params, state = made(term, s, s)
    _, after = term.apply(params, state, s, s, B)
    first, again, second = (read(term, params, z, s) for z in (state, state, after))
    np.testing.assert_array_equal(first, again)
    assert (first != second).any()


def test_trains_and_two_seeds_are_two_runs():
    term = mgd({"stage2": "stage1"})
    (before, _), (after, _), loss = small.descend(term, S, T, B)
    assert all(small.unequal(before, after))
    assert loss[-1] < loss[0]
    small.two_seeds_are_two_runs(term, S, T, B)


@pytest.mark.bad_input
def test_refuses():
    for masked in (-0.1, 1.1):
        with pytest.raises(ValueError, match=r"masked must be in \[0, 1\]"):
            mgd("stage1", masked=masked)
    with pytest.raises(ValueError, match="of must be one of"):
        mgd("stage1", of="examples")
    tokens = Outputs(S.logits, {"stage1": jnp.zeros((6, 5, 3))})
    with pytest.raises(ValueError, match=r"stage1 must be a map.*\(6, 5, 3\)"):
        made(mgd("stage1"), tokens, tokens)
