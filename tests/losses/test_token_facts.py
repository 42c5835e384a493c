"""Facts of the divergences for language models."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from jaxkd import losses
from tests.losses.derivatives import assert_two_derivatives

pytestmark = pytest.mark.usefixtures("x64")
close = functools.partial(np.testing.assert_allclose, rtol=1e-10)


def drawn(seed=0, shape=(4, 7)):
    """Student's and teacher's logits."""
    return np.random.default_rng(seed).normal(scale=2, size=(2, *shape))


def gradient(loss, *logits, argument=0, **knobs):
    return jax.grad(lambda *z: loss(*z, **knobs).sum(), argument)(*logits)


# Skew divergences.


def test_the_skew_divergences_are_each_other_with_the_networks_exchanged():
    s, t = drawn()
    got = losses.skew_reverse_kl(s, t, skew=0.3)
    close(got, losses.skew_kl(t, s, skew=0.3))
    assert np.all(np.abs(got - losses.skew_kl(s, t, skew=0.3)) > 1e-4)


def test_jsd_is_the_mean_of_the_skew_divergences_at_one_half():
    s, t = drawn()
    both = losses.skew_kl(s, t, skew=0.5) + losses.skew_reverse_kl(s, t, skew=0.5)
    close(both / 2, losses.jsd(s, t))


def test_skew_kl_goes_to_kd_and_is_bounded():
    s, t = drawn()
    close(losses.skew_kl(s, t, skew=1e-9), losses.kd(s, t, temperature=1.0), rtol=1e-6)
    far = np.array([[1e3, 0.0]])
    close(losses.skew_kl(far, -far, skew=0.1), -np.log(0.1))
    close(losses.skew_kl(np.array([[0, -np.inf]]), -far, skew=0.1), -np.log(0.1))


@pytest.mark.parametrize("name", ["skew_kl", "skew_reverse_kl"])
def test_two_derivatives_of_the_closed_forms(name):
    s, t = drawn(shape=(2, 4))
    loss = lambda s, t, temperature, skew: jnp.sum(
        jnp.arange(1.0, 3)
        * getattr(losses, name)(s, t, temperature=temperature, skew=skew)
    )
    assert_two_derivatives(loss, s, t, 2.0, 0.3)


# The others.


def test_symmetric_kl_is_the_mean_of_both():
    s, t = drawn()
    knobs = {"temperature": 1.0}
    want = (losses.kd(s, t, **knobs) + losses.reverse_kd(s, t, **knobs)) / 2
    close(losses.symmetric_kl(s, t), want)
    close(losses.symmetric_kl(t, s), want)


def test_tvd_bounds_and_pinskers_inequality():
    s, t = drawn()
    got = losses.tvd(s, t)
    assert np.all(got <= np.sqrt(losses.kd(s, t, temperature=1.0) / 2))
    far = np.array([[1e3, 0.0]])
    close(losses.tvd(far, -far), 1.0)


@pytest.mark.parametrize("small", [0.0, 1e-12, 1e-8, 1e-4])
def test_alpha_beta_goes_to_its_limits_without_cancellation(small):
    s, t = drawn()
    tolerance = {"rtol": 1e-12 + 100 * small}
    at = lambda alpha, beta: losses.alpha_beta(s, t, alpha=alpha, beta=beta)
    close(at(1.0, small), losses.kd(s, t, temperature=1.0), **tolerance)
    close(at(small, 1.0), losses.reverse_kd(s, t), **tolerance)
    half = np.square(log_softmax(s, -1) - log_softmax(t, -1)).sum(-1) / 2
    close(at(small, small), half, **tolerance)
    close(at(small, 0.0), half, **tolerance)
    p, q = softmax(t, -1), softmax(s, -1)
    # At beta = 0: 1/a sum ((q**a - p**a) / a - p**a log(q / p)).
    want = ((q**0.5 - p**0.5) / 0.5 - p**0.5 * np.log(q / p)).sum(-1) / 0.5
    close(at(0.5, small), want, **tolerance)


def test_alpha_beta_of_small_exponents_is_one_function():
    """Where the series ends and the powers begin."""
    s, t = drawn()
    at = lambda alpha: losses.alpha_beta(s, t, alpha=alpha, beta=alpha / 2)
    close(at(0.1 - 1e-13), at(0.1 + 1e-13), rtol=1e-10)
    p, q, a, b = softmax(t, -1), softmax(s, -1), 0.06, 0.03
    each = p**a * q**b - a / (a + b) * p ** (a + b) - b / (a + b) * q ** (a + b)
    close(at(a), -each.sum(-1) / (a * b), rtol=1e-9)


def test_alpha_beta_gradients_go_to_their_limits():
    s, t = drawn()
    kd = gradient(losses.kd, s, t, temperature=1.0)
    for beta in (0.0, 1e-10):
        got = gradient(losses.alpha_beta, s, t, alpha=1.0, beta=beta)
        close(got, kd, rtol=1e-7, atol=1e-10)
    equal = gradient(losses.alpha_beta, t, t, alpha=0.3, beta=0.0)
    close(equal, 0, atol=1e-12)


def test_alpha_beta_at_one_half_is_the_hellinger_distance_and_at_one_the_square():
    s, t = drawn()
    p, q = softmax(t, -1), softmax(s, -1)
    hellinger = np.square(np.sqrt(p) - np.sqrt(q)).sum(-1) / 2
    close(losses.alpha_beta(s, t, alpha=0.5, beta=0.5), 4 * hellinger)
    square = np.square(p - q).sum(-1) / 2
    close(losses.alpha_beta(s, t, alpha=1, beta=1), square)
    close(losses.probability_mse(s, t) / 2, square)


def test_alpha_beta_exchanged_is_of_the_networks_exchanged():
    s, t = drawn()
    got = losses.alpha_beta(s, t, alpha=0.3, beta=0.9)
    close(got, losses.alpha_beta(t, s, alpha=0.9, beta=0.3))


@pytest.mark.bad_input
def test_alpha_beta_refuses_exponents():
    s, t = drawn()
    for wrong in (-0.1, True, np.ones(1), float("inf")):
        with pytest.raises(ValueError, match="beta must be"):
            losses.alpha_beta(s, t, beta=wrong)


def test_uld_does_not_see_which_class_is_which():
    s, t = drawn()
    want = losses.uld(s, t)
    order = np.random.default_rng(1).permutation(7)
    close(losses.uld(s[:, order], t), want)
    close(losses.uld(s, s[:, order]), 0, atol=1e-15)
    assert np.all(want <= 2 * losses.tvd(s, t) + 1e-12)
    more = np.concatenate([t, np.full((4, 3), -np.inf)], axis=1)
    close(losses.uld(s, more), want)
    close(losses.uld(t, s), want)


@pytest.mark.bad_input
def test_uld_refuses_other_batches():
    s, t = drawn()
    with pytest.raises(ValueError, match="shapes must be equal.*teacher_logits"):
        losses.uld(s, t[:1])


# Samples.


def expectation(function, s):
    """Of a function of the sampled class, exactly: over all classes."""
    q = softmax(s, -1)
    every = [function(np.full(len(s), k)) for k in range(s.shape[-1])]
    return np.einsum("bk,kb...->b...", q, np.array(every))


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_the_sampled_value_is_unbiased(estimator):
    s, t = drawn()
    value = lambda y: losses.sampled_reverse_kl(s, t, y, estimator=estimator)
    close(expectation(value, s), losses.reverse_kd(s, t))
    if estimator == "k3":
        assert all(np.all(value(np.full(4, k)) >= 0) for k in range(7))


@pytest.mark.parametrize("estimator", ["k1", "k3"])
@pytest.mark.parametrize("argument", [0, 1])
def test_the_sampled_gradient_is_unbiased(estimator, argument):
    s, t = drawn()
    knobs = {"estimator": estimator, "argument": argument}
    of = lambda y: gradient(
        lambda s, t, **k: losses.sampled_reverse_kl(s, t, y, **k), s, t, **knobs
    )
    want = gradient(losses.reverse_kd, s, t, argument=argument)
    close(expectation(of, s), want, rtol=1e-9, atol=1e-12)


@pytest.mark.bad_input
def test_samples_are_classes():
    s, t = drawn()
    with pytest.raises(ValueError, match="samples must be classes from 0 to 6.*got 7"):
        losses.sampled_reverse_kl(s, t, np.array([0, 1, 7, 2]))
    none = losses.sampled_reverse_kl(s, t, np.array([0, -1, 1, 2]))
    np.testing.assert_array_equal(none == 0, [False, True, False, False])
