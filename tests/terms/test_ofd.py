"""Margins against numeric integration, and the sum over the layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.terms.ofd import margins, measured_margins, negative_mean, ofd
from tests.terms import small

MARGINS = {
    "stage1": jnp.linspace(-1.0, -0.1, 5),
    "stage2": jnp.linspace(-0.5, -0.2, 6),
}


def integrated(shift, scale):
    """E[x | x < 0] of a normal x, by the trapezium rule over u = -x / abs(scale)."""
    spread = abs(scale)
    z = shift / spread
    u = np.linspace(0, max(-z, 0) + 12, 400_001)
    exponent = -u * u / 2 - z * u
    weight = np.exp(exponent - exponent.max())
    return -spread * np.trapezoid(u * weight, u) / np.trapezoid(weight, u)


def test_margin_is_the_mean_below_zero():
    z = np.array([-40, -8, -3, -1, 0, 0.5, 1.9, 2.0, 2.1, 3.5, 8, 30, 100.0])
    scale = np.tile([0.3, -2.0], 7)[: len(z)]
    shift = z * np.abs(scale)
    found = negative_mean(
        jnp.asarray(shift, jnp.float32), jnp.asarray(scale, jnp.float32)
    )
    wanted = [integrated(a, b) for a, b in zip(shift, scale, strict=True)]
    np.testing.assert_allclose(found, wanted, rtol=5e-6)
    assert (found < 0).all()


def test_margin_at_the_ends():
    # Without spread the number is the shift, or, above zero, nothing; at 1,000 scales
    # it is -scale**2 / shift.
    found = negative_mean(jnp.array([-2.0, 3.0, 1.0]), jnp.array([0.0, 0.0, 1e-3]))
    np.testing.assert_allclose(found, [-2.0, 0.0, -1e-6], rtol=1e-4)


def test_margins_are_found_by_path_with_or_without_values():
    params = {"norm": {"scale": jnp.full(3, -2.0), "bias": jnp.arange(3.0)}}
    found = margins(params, {"stage1": "norm"})["stage1"]
    wanted = [integrated(b, 2.0) for b in (0.0, 1.0, 2.0)]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    shapes = jax.eval_shape(lambda: params)
    assert margins(shapes, {"stage1": "norm"})["stage1"].shape == (3,)
    with pytest.raises(KeyError, match="nothing at 'norn'"):
        margins(params, {"stage1": "norn"})
    with pytest.raises(ValueError, match="scale and bias"):
        margins({"conv": {"kernel": jnp.ones(3)}}, {"stage1": "conv"})


def test_measured_margins_are_means_of_what_is_negative():
    t = small.outputs(1, 5)
    t.taps["stage1"] = t.taps["stage1"].at[..., 0].set(1.0)
    units = np.asarray(t.taps["stage1"]).reshape(-1, 5)
    wanted = [0] + [units[units[:, c] < 0, c].mean() for c in range(1, 5)]
    np.testing.assert_allclose(measured_margins(t, "stage1")["stage1"], wanted, 1e-5)


def test_is_the_partial_distance_earlier_layers_halved():
    s, t, b = small.outputs(0, 3), small.outputs(1, 5), small.batch(range(6))
    term = ofd(["stage1", "stage2"], margins=MARGINS)
    params, state = term.init(jax.random.key(0), s, t, b)
    loss, new = term.apply(params, state, s, t, b)
    wanted = np.zeros(6)
    for name, share in (("stage1", 0.5), ("stage2", 1.0)):
        x = np.asarray(s.taps[name]) @ np.asarray(params[name]["conv"]["kernel"])[0, 0]
        x = small.normalised(x, params[name]["norm"])
        target = np.maximum(np.asarray(t.taps[name]), np.asarray(MARGINS[name]))
        error = np.where((x <= target) & (target <= 0), 0, (x - target) ** 2)
        wanted += share * error.reshape(6, -1).sum(1)
        np.testing.assert_array_equal(new[name]["margin"], MARGINS[name])
    np.testing.assert_allclose(loss, wanted, rtol=1e-4)


def test_seeds_rehearsal_and_a_donated_state():
    s, t, b = small.outputs(0, 3), small.outputs(1, 5), small.batch(range(6))
    own = jnp.linspace(-0.5, -0.2, 6)
    term = ofd("stage2", margins={"stage2": own})
    small.two_seeds_are_two_runs(term, s, t, b)
    _, state = term.init(jax.random.key(0), s, t, b)
    jax.jit(lambda z: jax.tree.map(lambda a: a + 1, z), donate_argnums=0)(state)
    assert not own.is_deleted()  # the state's was a copy
    shape = ofd("stage2", margins=jax.eval_shape(lambda: {"stage2": own}))
    _, abstract = jax.eval_shape(shape.init, jax.random.key(0), s, t, b)
    assert abstract["stage2"]["margin"].shape == (6,)


@pytest.mark.bad_input
def test_refuses_missing_and_wrong_margins():
    s, t, b = small.outputs(0, 3), small.outputs(1, 5), small.batch(range(6))
    with pytest.raises(ValueError, match=r"every tap of the teacher, not \['stage1'\]"):
        ofd("stage1", margins={"stage2": jnp.zeros(5)})
    with pytest.raises(ValueError, match="channels must be equal"):
        ofd("stage1", margins={"stage1": jnp.zeros(4)}).init(jax.random.key(0), s, t, b)
