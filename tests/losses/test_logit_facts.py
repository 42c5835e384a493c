"""What the papers and the definitions say of each logit loss, and of no other."""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import entr, log_softmax, logsumexp, softmax

from jaxkd import losses
from tests.losses.derivatives import assert_two_derivatives

pytestmark = pytest.mark.usefixtures("x64")

logits = hnp.arrays(np.float64, (3, 5), elements=st.floats(-20, 20))
temperatures = st.floats(0.5, 20)
some = settings(deadline=None, max_examples=30)


def drawn(seed=0, shape=(4, 7)):
    """Student's and teacher's logits, and labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(shape[-1], size=shape[:-1])
    return *rng.normal(scale=2, size=(2, *shape)), labels


@functools.cache
def differentiated(loss, **knobs):
    """The program of `gradient`, one for all values."""
    total = lambda s, *rest: loss(s, *rest, **knobs).sum()
    fast = {"xla_backend_optimization_level": 0}
    return jax.jit(jax.grad(total), compiler_options=fast)


def gradient(loss, student, *rest, **knobs):
    """The gradient of each example's loss for its student logits."""
    return np.asarray(differentiated(loss, **knobs)(student, *rest))


def of_label(values, labels):
    """The values `[examples, classes]` of the labels, `[examples, 1]`."""
    return np.take_along_axis(values, labels[:, None], axis=-1)


# kd and its relatives.


@given(logits, logits, temperatures)
@some
def test_kd_is_not_negative(s, t, temperature):
    assert np.all(losses.kd(s, t, temperature=temperature) >= -1e-9)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0, 20.0])
def test_kd_gradient_is_the_difference_of_probabilities(temperature):
    s, t, _ = drawn()
    q, p = softmax(s / temperature, -1), softmax(t / temperature, -1)
    got = gradient(losses.kd, s, t, temperature=temperature)
    np.testing.assert_allclose(got, temperature * (q - p), rtol=1e-10, atol=1e-14)


def test_kd_at_high_temperature_matches_centred_logits():
    s, t, _ = drawn()
    centre = lambda z: z - z.mean(-1, keepdims=True)
    want = np.sum((centre(s) - centre(t)) ** 2, axis=-1) / (2 * 7)
    np.testing.assert_allclose(losses.kd(s, t, temperature=1e4), want, rtol=1e-3)
    half = losses.logit_mse(centre(s), centre(t)) / 2
    np.testing.assert_allclose(want, half, rtol=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_soft_cross_entropy_is_kd_plus_entropy(temperature):
    s, t, _ = drawn()
    knobs = {"temperature": temperature}
    p = softmax(t / temperature, -1)
    want = losses.kd(s, t, **knobs) + temperature**2 * entr(p).sum(-1)
    np.testing.assert_allclose(losses.soft_cross_entropy(s, t, **knobs), want)
    np.testing.assert_allclose(
        gradient(losses.soft_cross_entropy, s, t, **knobs),
        gradient(losses.kd, s, t, **knobs),
        rtol=1e-10,
    )


def test_reverse_kd_is_kd_with_the_networks_exchanged():
    s, t, _ = drawn()
    got = losses.reverse_kd(s, t, temperature=3.0)
    np.testing.assert_allclose(got, losses.kd(t, s, temperature=3.0), rtol=1e-12)
    assert np.all(np.abs(got - losses.kd(s, t, temperature=3.0)) > 1e-3)


@pytest.mark.parametrize("name", ["kd", "soft_cross_entropy", "reverse_kd", "jsd"])
def test_two_derivatives_of_the_closed_forms(name):
    s, t, _ = drawn(shape=(2, 4))
    mask = jnp.array([True, True, False, True])
    loss = lambda s, t, temperature: jnp.sum(
        jnp.arange(1.0, 3)
        * getattr(losses, name)(s, t, temperature=temperature, class_mask=mask)
    )
    assert_two_derivatives(loss, s, t, 2.0)


def test_jsd_gradient_for_beta():
    s, t, _ = drawn()
    loss = lambda beta: losses.jsd(s, t, beta=beta, temperature=2.0).sum()
    jax.test_util.check_grads(loss, (0.3,), 1, ["fwd", "rev"])


@given(logits, logits, st.floats(0.05, 0.95))
@some
def test_jsd_is_symmetric_and_bounded(s, t, beta):
    got = losses.jsd(s, t, beta=beta)
    np.testing.assert_allclose(got, losses.jsd(t, s, beta=1 - beta), atol=1e-9)
    bound = -beta * np.log(beta) - (1 - beta) * np.log(1 - beta)
    assert np.all((got >= -1e-9) & (got <= bound + 1e-9))


def test_jsd_tends_to_kd_at_its_ends():
    s, t, _ = drawn()
    near = 1e-6
    kd = losses.kd(s, t, temperature=1.0)
    np.testing.assert_allclose(losses.jsd(s, t, beta=near) / near, kd, rtol=1e-3)
    reverse = losses.reverse_kd(s, t)
    np.testing.assert_allclose(
        losses.jsd(s, t, beta=1 - near) / near, reverse, rtol=1e-3
    )


def test_probability_mse_is_bounded_by_two():
    far = np.array([[1e3, 0.0]])
    np.testing.assert_allclose(losses.probability_mse(far, -far), 2.0)


# dkd, nkd, rld.


def test_dkd_recombines_to_kd():
    s, t, y = drawn()
    knobs: dict[str, Any] = {"temperature": 1.0}
    p_label = of_label(softmax(t, -1), y)[:, 0]
    target = losses.dkd(s, t, y, alpha=1.0, beta=0.0, **knobs)
    others = losses.dkd(s, t, y, alpha=0.0, beta=1.0, **knobs)
    want = losses.kd(s, t, **knobs)
    np.testing.assert_allclose(target + (1 - p_label) * others, want, rtol=1e-10)
    mixed = losses.dkd(s, t, y, alpha=2.0, beta=3.0, **knobs)
    np.testing.assert_allclose(mixed, 2 * target + 3 * others, rtol=1e-12)


def test_dkd_of_two_classes_has_no_others():
    s, t, y = drawn(shape=(4, 2))
    others = losses.dkd(s, t, y, alpha=0.0)
    np.testing.assert_array_equal(others, 0)
    target = losses.dkd(s, t, y)
    np.testing.assert_allclose(target, losses.kd(s, t), rtol=1e-10)


@pytest.mark.parametrize("loss", [losses.dkd, losses.nkd, losses.rld])
def test_a_margin_of_600_is_finite_in_float32(loss):
    s, y = np.array([[600.0, 0.0, 1.0]], np.float32), np.array([0])
    for student, teacher in [(s, -s), (-s, s), (s, s)]:
        assert np.all(np.isfinite(loss(student, teacher, y, temperature=4.0)))
        grad = gradient(loss, student, teacher, y, temperature=4.0)
        assert grad.dtype == np.float32 and np.all(np.isfinite(grad))


def test_rld_is_dkd_where_the_teacher_is_right():
    s, t, _ = drawn()
    right = np.argmax(t, axis=-1)
    np.testing.assert_allclose(losses.rld(s, t, right), losses.dkd(s, t, right))


def test_rld_does_not_teach_what_the_teacher_prefers_to_the_label():
    s = np.array([[0.3, 0.5, -0.2, 0.1]])
    t = np.array([[1.0, 4.0, 2.0, 0.0]])  # label 0: classes 1 and 2 are above it
    grad = lambda t: gradient(losses.rld, s, t, np.array([0]), alpha=0.0)
    np.testing.assert_array_equal(grad(t)[0, :3], 0)
    worst = losses.rld(s, t, np.array([3]), alpha=0.0)  # and all are above 3
    np.testing.assert_array_equal(worst, 0)


@pytest.mark.parametrize("classes", [2, 3])
def test_a_teacher_that_is_certain_teaches_no_relation_between_the_others(classes):
    s, y = np.array([[0.3, -1.0, 0.5]])[:, :classes], np.array([0])
    certain = np.where(np.arange(classes) == 0, 2.0, -np.inf)[None]
    probability = softmax(s / 4, -1)[:, 0]
    target = -16 * np.log(probability)  # KL((1, 0), (q, 1 - q)) at T = 4
    np.testing.assert_allclose(losses.dkd(s, certain, y), target)
    np.testing.assert_allclose(losses.rld(s, certain, y), target)
    of_label = losses.cross_entropy(s, y)
    np.testing.assert_allclose(losses.nkd(s, certain, y, temperature=4.0), of_label)
    for loss in (losses.dkd, losses.rld):
        got = gradient(loss, s, certain, y)
        np.testing.assert_allclose(
            got, 4 * (softmax(s / 4, -1) - [[1, 0, 0][:classes]])
        )


def test_a_relation_to_a_class_the_teacher_does_not_have_is_none():
    s, y = np.array([[0.3, -1.0, 0.5]]), np.array([2])
    t = np.array([[-np.inf, 2.0, -1.0]])  # below the label: only class 0
    np.testing.assert_array_equal(losses.rld(s, t, y, alpha=0.0), 0)
    np.testing.assert_array_equal(gradient(losses.rld, s, t, y, alpha=0.0), 0)


@pytest.mark.parametrize("name", ["kd", "reverse_kd", "soft_cross_entropy", "jsd"])
def test_a_mask_that_leaves_one_network_no_class_compares_nothing(name):
    s, t, _ = drawn(shape=(1, 3))
    t[0, 0] = -np.inf
    loss = getattr(losses, name)
    of_one = functools.partial(loss, class_mask=np.array([True, False, False]))
    for pair in ((s, t), (t, s)):
        np.testing.assert_array_equal(of_one(*pair), 0)
        np.testing.assert_array_equal(jax.grad(lambda *z: of_one(*z).sum())(*pair), 0)


def test_cross_entropy_gradient_is_the_difference_of_probabilities():
    s, _, y = drawn()
    got = gradient(losses.cross_entropy, s, y)
    np.testing.assert_allclose(got, softmax(s, -1) - np.eye(7)[y], rtol=1e-10)
    smooth = losses.label_smoothing(s, y, epsilon=0.0)
    np.testing.assert_allclose(losses.cross_entropy(s, y), smooth, rtol=1e-12)


def test_cross_entropy_of_a_probability_that_underflows():
    far = np.array([[0.0, 2e4]], np.float32)
    np.testing.assert_allclose(losses.cross_entropy(far, np.array([0])), 2e4)
    lost = losses.cross_entropy(np.array([[-np.inf, 0.0]], np.float32), np.array([0]))
    assert 1e28 < lost[0] < 1e30


def test_topk_kd_of_an_index_that_is_no_class_leaves_it_to_the_rest():
    s, t, _ = drawn()
    top, index, total = keep(t, 3, 1.0)
    want = losses.topk_kd(s, top[:, :2], index[:, :2], total, temperature=1.0)
    index[:, 2] = -1
    got = losses.topk_kd(s, top, index, total, temperature=1.0)
    np.testing.assert_allclose(got, want, rtol=1e-12)
    index[0, 2] = 7
    with pytest.raises(ValueError, match="teacher_top_indices must be classes.*got 7"):
        losses.topk_kd(s, top, index, total)


def test_nkd_label_term_stays_at_temperature_one():
    s, t, y = drawn()
    cold, warm = (losses.nkd(s, t, y, gamma=0.0, temperature=x) for x in (1.0, 5.0))
    np.testing.assert_array_equal(cold, warm)


# wsld, dist, lskd, mlkd.


def test_wsld_gradient_does_not_pass_through_the_weight():
    s, t, y = drawn()
    cross_entropy = lambda z: -of_label(log_softmax(z, -1), y)
    weight = 1 - np.exp(-cross_entropy(s) / (cross_entropy(t) + 1e-7))
    want = weight * gradient(losses.soft_cross_entropy, s, t, temperature=3.0)
    got = gradient(losses.wsld, s, t, y, temperature=3.0)
    np.testing.assert_allclose(got, want, rtol=1e-10)


def test_wsld_of_a_perfect_teacher_has_weight_one():
    s, _, _ = drawn(shape=(4, 3))
    y = np.array([0, 1, 2, 0])
    t = 1e4 * np.eye(3)[y]
    want = losses.soft_cross_entropy(s, t, temperature=4.0)
    np.testing.assert_allclose(losses.wsld(s, t, y), want, rtol=1e-12)


def test_dist_has_no_gradient_at_constant_logits_rather_than_a_huge_one():
    _, t, _ = drawn()
    for student in (np.zeros((4, 7)), np.full((4, 7), 0.7)):
        np.testing.assert_array_equal(gradient(losses.dist, student, t), 0)
    np.testing.assert_allclose(losses.dist(np.zeros((4, 7)), t), 2.0)


def test_dist_of_one_example_has_no_relation_between_examples():
    s, t, _ = drawn(shape=(1, 7))
    np.testing.assert_allclose(losses.dist(s, t, beta=0.0), 1.0)
    assert np.any(gradient(losses.dist, s, t) != 0)


@given(logits, logits, st.floats(0.5, 5), st.floats(-9, 9))
@some
def test_lskd_takes_out_mean_and_scale(s, t, scale, shift):
    s, t = s + np.arange(5), t + np.arange(5) ** 2  # constant rows have no scale
    if min(s.std(-1).min(), t.std(-1).min()) < 1e-2:
        return
    want = losses.lskd(s, t)
    np.testing.assert_allclose(losses.lskd(scale * s + shift, t), want, atol=1e-4)
    np.testing.assert_allclose(losses.lskd(s, scale * t + shift), want, atol=1e-4)


def test_lskd_of_constant_logits_is_that_of_zeros_in_float32():
    t = drawn()[1].astype(np.float32)
    constant = np.full((4, 7), 0.7, np.float32)
    want = losses.lskd(np.zeros_like(constant), t)
    np.testing.assert_array_equal(losses.lskd(constant, t), want)
    assert np.all(np.isfinite(gradient(losses.lskd, constant, t)))


def test_mlkd_instance_is_a_sum_of_kd():
    s, t, _ = drawn()
    want = sum(losses.kd(s, t, temperature=x) for x in (2, 3, 4, 5, 6))
    np.testing.assert_allclose(losses.mlkd_instance(s, t), want, rtol=1e-12)


def test_mlkd_divides_by_examples_and_by_classes():
    s, t, _ = drawn()
    p, q = softmax(t / 4.0, -1), softmax(s / 4.0, -1)
    batch = np.sum((p @ p.T - q @ q.T) ** 2) / 4
    classes = np.sum((p.T @ p - q.T @ q) ** 2) / 7
    np.testing.assert_allclose(losses.mlkd_batch(s, t).mean(), batch, rtol=1e-12)
    np.testing.assert_allclose(losses.mlkd_class(s, t).mean(), classes, rtol=1e-12)


# ttm, smoothing, teachers of several kinds.


def test_ttm_and_wttm_at_one_are_kd():
    s, t, _ = drawn()
    want = losses.kd(s, t, temperature=1.0)
    np.testing.assert_allclose(losses.ttm(s, t, gamma=1.0), want, rtol=1e-12)
    np.testing.assert_allclose(losses.wttm(s, t, gamma=1.0), want, rtol=1e-12)


def test_label_smoothing_mixes_the_label_and_the_uniform():
    s, _, y = drawn()
    none, all_of_it = (losses.label_smoothing(s, y, epsilon=e) for e in (0.0, 1.0))
    label = -of_label(log_softmax(s, -1), y)[:, 0]
    np.testing.assert_allclose(none, label, rtol=1e-12)
    uniform = losses.soft_cross_entropy(s, np.zeros_like(s))
    np.testing.assert_allclose(all_of_it, uniform, rtol=1e-12)
    some_of_it = losses.label_smoothing(s, y, epsilon=0.3)
    np.testing.assert_allclose(some_of_it, 0.7 * none + 0.3 * all_of_it, rtol=1e-12)


def test_teacher_free_is_kd_to_the_virtual_teacher():
    s, _, y = drawn()
    virtual = np.where(np.eye(7)[y] == 1, 0.99, 0.01 / 6)
    want = losses.kd(s, np.log(virtual), temperature=20.0) / 20.0**2
    np.testing.assert_allclose(losses.teacher_free(s, y), want, rtol=1e-9)


def test_hard_label_has_no_gradient_for_the_teacher():
    s, t, _ = drawn()
    grad = gradient(lambda t, s: losses.hard_label(s, t), t, s)
    np.testing.assert_array_equal(grad, 0)


def test_binary_kd_of_one_class_is_kd_of_two():
    s, t, _ = drawn(shape=(4, 1))
    pair = lambda z: np.concatenate([z, np.zeros_like(z)], axis=-1)
    got = losses.binary_kd(s, t, temperature=2.0)
    np.testing.assert_allclose(got, losses.kd(pair(s), pair(t), temperature=2.0))


def keep(t, k, temperature):
    """A teacher's k largest logits, their classes, and the sum that was stored."""
    index = np.argsort(-t, axis=-1)[..., :k]
    total = logsumexp(t / temperature, axis=-1)
    return np.take_along_axis(t, index, axis=-1), index, total


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_topk_kd_with_all_classes_is_kd(temperature):
    s, t, _ = drawn()
    kept, knobs = keep(t, 7, temperature), {"temperature": temperature}
    np.testing.assert_allclose(
        losses.topk_kd(s, *kept, **knobs), losses.kd(s, t, **knobs), rtol=1e-10
    )
    np.testing.assert_allclose(
        gradient(losses.topk_kd, s, *kept, **knobs),
        gradient(losses.kd, s, t, **knobs),
        rtol=1e-9,
        atol=1e-12,
    )


def test_topk_kd_grows_towards_kd():
    s, t, _ = drawn()
    by_k = [losses.topk_kd(s, *keep(t, k, 2.0), temperature=2.0) for k in range(1, 8)]
    assert all(np.all(a <= b + 1e-12) for a, b in itertools.pairwise(by_k))


def test_topk_kd_refuses_more_than_all_classes():
    s, t, _ = drawn()
    top, index, total = keep(t, 4, 1.0)
    with pytest.raises(ValueError, match="more classes than student_logits"):
        losses.topk_kd(s[:, :3], top, index % 3, total)


def test_mutual_is_a_mean_of_kd_over_peers():
    s, t, _ = drawn()
    peers = np.stack([t, 2 * t, s])
    want = sum(losses.kd(s, peer, temperature=1.0) for peer in peers) / 3
    np.testing.assert_allclose(losses.mutual(s, peers), want, rtol=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_ensemble_of_probabilities_has_the_gradient_of_the_mean_of_kd(temperature):
    s, a, _ = drawn()
    teachers, knobs = np.stack([a, -a, 2 * a]), {"temperature": temperature}
    want = sum(gradient(losses.kd, s, t, **knobs) for t in teachers) / 3
    one = losses.ensemble_logits(teachers, **knobs)
    got = gradient(losses.kd, s, one, **knobs)
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)
    other = losses.ensemble_logits(teachers, mode="logits")
    assert np.any(np.abs(gradient(losses.kd, s, other, **knobs) - want) > 1e-2)


def test_ensemble_weights_are_normalised_and_zero_is_absent():
    _, a, _ = drawn()
    teachers = np.stack([a, -a, 2 * a])
    for mode in ("probabilities", "logits"):
        got = losses.ensemble_logits(teachers, weights=np.array([0, 4, 0]), mode=mode)
        np.testing.assert_allclose(softmax(got, -1), softmax(-a, -1), rtol=1e-12)
    logits = losses.ensemble_logits(
        teachers, weights=np.array([1.0, 1, 2]), mode="logits"
    )
    np.testing.assert_allclose(logits, a, atol=1e-12)


def test_ensemble_refuses_what_it_cannot_average():
    teachers = np.zeros((2, 4, 3))
    with pytest.raises(ValueError, match="mode must be one of"):
        losses.ensemble_logits(teachers, mode="median")
    with pytest.raises(ValueError, match=r"weights must have shape \(2,\)"):
        losses.ensemble_logits(teachers, weights=np.ones(3))
    with pytest.raises(ValueError, match="empty"):
        losses.ensemble_logits(teachers[:0])


def test_a_broken_network_shows():
    s, t, _ = drawn()
    s[0, 0] = np.nan
    assert np.isnan(losses.kd(s, t)[0])
