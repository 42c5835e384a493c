"""Activation boundaries: the hinge behind the connector, over the pairs."""

import jax
import numpy as np
import pytest

from jaxkd.terms.ab import ab
from tests.terms import small


@pytest.mark.parametrize("margin", [1.0, 0.25])
def test_is_the_hinge_on_the_teachers_sign_summed_over_pairs(margin):
    s, t = small.outputs(0, 3), small.outputs(1, 5)
    term = ab(["stage1", "stage2"], margin=margin)
    params, state = term.init(jax.random.key(0), s, t, small.batch(range(6)))
    loss, _ = term.apply(params, state, s, t, small.batch(range(6)))
    wanted = np.zeros(6)
    for name in ("stage1", "stage2"):
        its = params[name]
        x = np.asarray(s.taps[name]) @ np.asarray(its["conv"]["kernel"])[0, 0]
        x = small.normalised(x, its["norm"])
        sign = np.where(np.asarray(t.taps[name]) > 0, 1, -1)
        hinge = np.maximum(margin - sign * x, 0) ** 2
        wanted += hinge.reshape(6, -1).mean(1)
    np.testing.assert_allclose(loss, wanted, rtol=1e-4)


@pytest.mark.bad_input
def test_refuses_a_negative_margin():
    s, t = small.outputs(0, 3), small.outputs(1, 5)
    with pytest.raises(ValueError, match="margin must be"):
        ab("stage2", margin=-1.0).init(jax.random.key(0), s, t, small.batch(range(6)))
