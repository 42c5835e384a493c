"""Facts of the logit losses of 2023 and 2024: ofa, wkd_logits, sdd."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

from jaxkd import losses

close = functools.partial(np.testing.assert_allclose, atol=1e-12)
pytestmark = pytest.mark.usefixtures("x64")


def drawn(seed=0, shape=(4, 7)):
    """Student's and teacher's logits, and labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(shape[-1], size=shape[:1])
    return *rng.normal(scale=2, size=(2, *shape)), labels


# ofa.


def test_ofa_at_one_is_soft_cross_entropy():
    s, t, y = drawn()
    want = losses.soft_cross_entropy(s, t)
    np.testing.assert_allclose(losses.ofa(s, t, y, gamma=1.0), want, rtol=1e-12)


def test_ofa_gradient_pulls_to_the_raised_target():
    s, t, y = drawn()
    one = np.eye(7)[y]
    weight = (softmax(t, -1) + one) ** 1.4 - one
    want = weight.sum(-1, keepdims=True) * softmax(s, -1) - weight
    got = jax.grad(lambda s: losses.ofa(s, t, y, gamma=1.4).sum())(s)
    np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-14)


# wkd_logits.


def others(s, t, y, temperature):
    """The two distributions over the other classes, 0 at the label."""
    mask = np.where(np.eye(s.shape[-1])[y], -np.inf, 0)
    return softmax((s + mask) / temperature, -1), softmax((t + mask) / temperature, -1)


def transport(s, t, y, cost, **knobs):
    """The transport alone."""
    whole = losses.wkd_logits(s, t, y, cost, gamma=1.0, **knobs)
    return whole - losses.wkd_logits(s, t, y, cost, gamma=0.0)


def test_wkd_of_a_large_epsilon_moves_independently_of_where():
    """As epsilon grows the plan becomes the product of its marginals."""
    s, t, y = drawn()
    cost = np.random.default_rng(1).uniform(size=(7, 7))
    q, p = others(s, t, y, 2.0)
    got = transport(s, t, y, cost, epsilon=1e7)
    np.testing.assert_allclose(got, np.einsum("bi,ij,bj->b", q, cost, p), rtol=1e-6)


def test_wkd_of_a_small_epsilon_at_equal_costs_is_the_total_variation():
    s, t, y = drawn()
    q, p = others(s, t, y, 2.0)
    got = transport(s, t, y, 1 - np.eye(7), epsilon=0.05, iterations=2000)
    np.testing.assert_allclose(got, np.abs(q - p).sum(-1) / 2, rtol=1e-4)


def test_wkd_on_a_line_is_the_area_between_the_distribution_functions():
    s, t, _ = drawn()
    y = np.zeros(4, int)  # the classes left are 1 to 6
    cost = np.abs(np.subtract.outer(np.arange(7.0), np.arange(7.0))) / 6
    q, p = others(s, t, y, 2.0)
    want = np.abs(np.cumsum(q - p, -1)).sum(-1) / 6
    got = transport(s, t, y, cost, epsilon=0.003, iterations=2000)
    np.testing.assert_allclose(got, want, rtol=2e-3)


def test_wkd_label_term_stays_at_temperature_one():
    s, t, y = drawn()
    p_label = np.take_along_axis(softmax(t, -1), y[:, None], -1)[:, 0]
    want = p_label * losses.cross_entropy(s, y)
    got = losses.wkd_logits(s, t, y, np.ones((7, 7)), gamma=0.0, temperature=5.0)
    np.testing.assert_allclose(got, want, rtol=1e-12)


def test_wkd_does_not_read_costs_of_the_label():
    s, t, _ = drawn()
    y, cost = np.full(4, 3), np.random.default_rng(1).uniform(size=(7, 7))
    other = cost.copy()
    other[3], other[:, 3] = 9.0, 7.0
    want = losses.wkd_logits(s, t, y, cost)
    got = losses.wkd_logits(s, t, y, other)
    np.testing.assert_allclose(got, want, rtol=1e-12)


def test_wkd_kernel_may_underflow():
    """In probability space exp(-1 / 1e-3) is 0 in float32, and the plan NaN."""
    s, t, y = (x.astype(np.float32) if x.dtype == float else x for x in drawn())
    cost = jnp.asarray(1 - np.eye(7), jnp.float32)
    loss = lambda s: losses.wkd_logits(s, t, y, cost, epsilon=1e-3).sum()
    value, gradient = jax.value_and_grad(loss)(s)
    assert np.isfinite(value) and np.all(np.isfinite(gradient))


@pytest.mark.bad_input
def test_wkd_refuses_costs_of_other_classes():
    s, t, y = drawn()
    with pytest.raises(
        ValueError, match=r"cost must have shape \(7, 7\), got \(6, 6\)"
    ):
        losses.wkd_logits(s, t, y, np.ones((6, 6)))


def test_class_costs_are_of_the_linear_kernel_alignment():
    x = np.random.default_rng(0).normal(size=(4, 6, 3))
    got = losses.class_costs(x, kappa=2.0)
    for i in range(4):
        for j in range(4):
            a, b = x[i] - x[i].mean(0), x[j] - x[j].mean(0)
            norm = lambda m: np.linalg.norm(m, "fro")
            cka = norm(a.T @ b) ** 2 / (norm(a.T @ a) * norm(b.T @ b))
            np.testing.assert_allclose(
                got[i, j], 1 - np.exp(-2 * (1 - cka)), atol=1e-12
            )
    np.testing.assert_allclose(
        losses.class_costs(3 * x - 1, kappa=2.0), got, atol=1e-12
    )
    turned = x @ np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    np.testing.assert_allclose(losses.class_costs(turned, kappa=2.0), got, atol=1e-12)


@pytest.mark.parametrize("factor", [0.0, 1e-18, 1e18])
def test_class_costs_of_features_of_any_size_are_finite(factor):
    x = np.random.default_rng(0).normal(size=(3, 4, 2)).astype(np.float32)
    x[0] *= factor
    costs = losses.class_costs(x)
    assert np.all(np.isfinite(costs)) and np.all((costs > -1e-6) & (costs < 0.633))


# sdd.


def test_sdd_of_one_region_is_the_loss_of_the_average():
    s, t, y = drawn(shape=(4, 2, 3, 5))
    for loss in (losses.kd, losses.dkd):
        labels = [y] if loss is losses.dkd else []
        want = loss(s.mean((1, 2)), t.mean((1, 2)), *labels)
        got = losses.sdd(s, t, y, loss=loss, scales=(1,))
        np.testing.assert_allclose(got, want, rtol=1e-12)


def test_sdd_is_linear_in_the_weight_of_complementary_regions():
    s, t, y = drawn(shape=(16, 4, 4, 3))
    at = lambda weight: losses.sdd(s, t, y, complementary=weight)
    np.testing.assert_allclose(at(3.0) + at(1.0), 2 * at(2.0), rtol=1e-12)
    right = lambda z: z.argmax(-1) == y[:, *(None,) * (z.ndim - 2)]
    whole = right(t.mean((1, 2)))
    cells = t.reshape(16, 2, 2, 2, 2, 3).mean((2, 4))
    differ = (right(cells) != whole[:, None, None]).any((1, 2))
    differ |= (right(t) != whole[:, None, None]).any((1, 2))
    np.testing.assert_array_equal(at(3.0) != at(1.0), differ)
    assert differ.any()


def test_sdd_of_constant_maps_does_not_depend_on_the_scales():
    s, t, y = drawn(shape=(4, 1, 1, 5))
    s, t = (np.broadcast_to(x, (4, 4, 4, 5)) for x in (s, t))
    want = losses.kd(s[:, 0, 0], t[:, 0, 0])
    np.testing.assert_allclose(losses.sdd(s, t, y), want, rtol=1e-12)


@pytest.mark.bad_input
def test_sdd_refuses_scales():
    s, t, y = drawn(shape=(4, 2, 3, 5))
    with pytest.raises(ValueError, match=r"at most the map's size \[2, 3\]"):
        losses.sdd(s, t, y, scales=(1, 3))
    for scales in ((), [1, 2], (0,), (1, 2.0)):
        with pytest.raises(ValueError, match="scales must be"):
            losses.sdd(s, t, y, scales=scales)
    with pytest.raises(ValueError, match="must have 4 axes"):
        losses.sdd(s[:, 0], t[:, 0], y, loss=functools.partial(losses.kd))
