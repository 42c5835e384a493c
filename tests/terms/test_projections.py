"""Terms behind a projection of the student: srd and vkd."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.terms.srd import srd
from jaxkd.terms.vkd import layer_norm, orthogonal, vkd
from jaxkd.types import Outputs
from tests.terms import small

S, T, B = small.outputs(0, 3), small.outputs(1, 5), small.batch(range(6))


def value(term, s, t, params=None):
    its, state = term.init(jax.random.key(0), s, t, B)
    return term.apply(its if params is None else params, state, s, t, B)[0]


def mean(features):
    """Over the positions, in float64."""
    x = np.asarray(features, np.float64)
    return x.reshape(len(x), -1, x.shape[-1]).mean(1)


def unscaled(x):
    return (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-4)


# srd.


@pytest.mark.parametrize("tap", ["pooled", "stage2"])
def test_srd_is_the_logarithm_of_the_summed_fourth_powers(tap):
    params, _ = srd(tap).init(jax.random.key(0), S, T, B)
    projected = mean(S.taps[tap]) @ np.asarray(params["kernel"], np.float64)
    difference = unscaled(projected) - unscaled(mean(T.taps[tap]))
    wanted = np.log((np.abs(difference) ** 4).sum())
    np.testing.assert_allclose(value(srd(tap), S, T), np.full(6, wanted), rtol=1e-4)


def test_srd_does_not_see_shift_and_scale_of_the_teachers_units():
    scale, shift = jnp.array([3.0, 0.5, 7, 1, 2, 4])[None], jnp.arange(6.0)[None]
    moved = T._replace(
        taps={**T.taps, "pooled": 1e3 * scale * T.taps["pooled"] + shift}
    )
    large = T._replace(taps={**T.taps, "pooled": 1e3 * T.taps["pooled"]})
    np.testing.assert_allclose(
        value(srd(), S, moved), value(srd(), S, large), rtol=1e-3
    )


def test_srd_at_a_perfect_projector_is_least_and_has_no_gradient():
    params = {"kernel": jnp.eye(4), "bias": jnp.zeros(4)}
    s = S.taps["pooled"]
    same = Outputs(S.logits, {"pooled": s})

    def loss(x):
        student = Outputs(S.logits, {"pooled": x})
        return srd().apply(params, {}, student, same, B)[0].mean()

    value, gradient = jax.value_and_grad(loss)(s)
    np.testing.assert_allclose(value, np.log(np.finfo(np.float32).tiny), rtol=1e-6)
    np.testing.assert_array_equal(gradient, 0)


# vkd.


@pytest.mark.parametrize("tap", ["pooled", "stage2"])
def test_vkd_is_smooth_l1_to_the_normalised_teacher(tap):
    params, _ = vkd(tap).init(jax.random.key(0), S, T, B)
    a = np.triu(np.asarray(params["skew"], np.float64), 1)
    a = a - a.T
    q = np.linalg.inv(np.eye(6) + a) @ (np.eye(6) - a)
    t = mean(T.taps[tap])
    t = (t - t.mean(1, keepdims=True)) / np.sqrt(t.var(1, keepdims=True) + 1e-5)
    error = np.abs(mean(S.taps[tap]) @ q[:4] - t)
    wanted = np.where(error < 1, error**2 / 2, error - 0.5).mean(1)
    np.testing.assert_allclose(value(vkd(tap), S, T), wanted, rtol=1e-4)


@pytest.mark.parametrize("size", [0.0, 1.0, 30.0])
def test_the_projection_is_orthogonal_at_any_parameters(size):
    skew = size * jax.random.normal(jax.random.key(0), (7, 7))
    q = np.asarray(orthogonal(skew), np.float64)
    np.testing.assert_allclose(q @ q.T, np.eye(7), atol=2e-5)
    assert np.linalg.det(q) > 0
    if size == 0:
        np.testing.assert_array_equal(q, np.eye(7))


@pytest.mark.parametrize(("of_student", "of_teacher"), [(3, 6), (6, 3)])
def test_rows_or_columns_are_orthonormal(of_student, of_teacher):
    s, t = small.outputs(0, of_student - 1), small.outputs(1, of_teacher - 1)
    params, _ = vkd().init(jax.random.key(0), s, t, B)
    assert params["skew"].shape == (6, 6)
    q = np.asarray(orthogonal(params["skew"]))[:of_student, :of_teacher]
    gram = q @ q.T if of_student < of_teacher else q.T @ q
    np.testing.assert_allclose(gram, np.eye(3), atol=1e-5)


def test_vkd_is_zero_at_a_rotation_of_the_normalised_teacher():
    params, _ = vkd().init(jax.random.key(0), T, T, B)
    normalised = layer_norm(T.taps["pooled"])
    back = normalised @ orthogonal(params["skew"]).T
    student = Outputs(T.logits, {"pooled": back})
    np.testing.assert_allclose(value(vkd(), student, T, params), 0, atol=1e-9)
    far = value(vkd(), Outputs(T.logits, {"pooled": 2 * back}), T, params)
    assert (far > 0.05).all()


@pytest.mark.parametrize("make", [srd, vkd])
def test_trains_and_two_seeds_are_two_runs(make):
    term = make({"stage1": "pooled"})
    (before, _), (after, _), loss = small.descend(term, S, T, B, rate=0.05)
    assert any(small.unequal(before, after))
    assert loss[-1] < loss[0] - 0.01
    small.two_seeds_are_two_runs(term, S, T, B)


@pytest.mark.bad_input
@pytest.mark.parametrize("make", [srd, vkd])
def test_sequences_of_different_lengths_are_refused(make):
    tokens = lambda n: Outputs(S.logits, {"pooled": jnp.ones((6, n, 3))})
    assert value(make(), tokens(5), tokens(5)).shape == (6,)
    with pytest.raises(ValueError, match=r"\(6, 5, 3\) and \(6, 7, 3\)"):
        value(make(), tokens(5), tokens(7))
