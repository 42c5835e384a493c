"""What the papers and the definitions say of the relational losses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses
from jaxkd.losses import _rkd_distance
from tests.losses.derivatives import assert_two_derivatives

RNG = np.random.default_rng(0)
S, T = RNG.normal(size=(6, 4)), RNG.normal(size=(6, 7))
RELATIONS = ["sp", "rkd_distance", "rkd_angle", "pkt", "cc"]

every_relation = pytest.mark.parametrize("name", RELATIONS)


@functools.cache
def graded(name, **knobs):
    """The program of the mean over the batch and its gradient for the student."""
    mean = lambda s, t: getattr(losses, name)(s, t, **knobs).mean()
    fast = {"xla_backend_optimization_level": 0}
    return jax.jit(jax.value_and_grad(mean), compiler_options=fast)


def mean_and_gradient(name, s, t, **knobs):
    """The mean over the batch and its gradient for the student."""
    return graded(name, **knobs)(s, t)


@every_relation
@pytest.mark.parametrize(
    "kind", ["zero example", "equal examples", "all equal", "tiny"]
)
def test_nothing_degenerate_makes_a_nan(name, kind):
    s = np.array(S, np.float32)
    if kind == "zero example":
        s[2] = 0
    elif kind == "equal examples":
        s[2] = s[4]
    elif kind == "all equal":
        s[:] = s[0]
    else:
        s *= 1e-20
    for pair in ((s, np.float32(T)), (np.float32(T), s), (s, s)):
        value, gradient = mean_and_gradient(name, *pair)
        assert np.isfinite(value) and np.all(np.isfinite(gradient))


@every_relation
@pytest.mark.usefixtures("x64")
def test_rows_average_to_a_loss_without_an_order(name):
    loss = getattr(losses, name)
    order = RNG.permutation(6)
    np.testing.assert_allclose(loss(S[order], T[order]), loss(S, T)[order], rtol=1e-9)


@every_relation
@pytest.mark.usefixtures("x64")
def test_second_derivatives(name):
    f = lambda s: getattr(losses, name)(s, jnp.asarray(T)).mean()
    assert_two_derivatives(f, jnp.asarray(S), modes=("rev rev",))


@every_relation
@pytest.mark.usefixtures("x64")
def test_pkt_and_cc_ignore_lengths_and_the_others_the_common_scale(name):
    loss = getattr(losses, name)
    lengths = np.arange(1.0, 7.0).reshape(6, 1)
    np.testing.assert_allclose(loss(2 * S, T), loss(S, T), rtol=1e-5)
    same = np.allclose(loss(lengths * S, T), loss(S, T), rtol=1e-5)
    assert same == (name in ("pkt", "cc"))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["rkd_distance", "rkd_angle"])
def test_rkd_ignores_similarities_of_space(name):
    rotation = np.linalg.qr(RNG.normal(size=(4, 4)))[0]
    loss = getattr(losses, name)
    moved = 5 * S @ rotation + np.array([1.0, -2.0, 3.0, 0.0])
    np.testing.assert_allclose(loss(moved, T), loss(S, T), rtol=1e-9)


@every_relation
@pytest.mark.usefixtures("x64")
def test_a_rotated_teacher_is_matched_perfectly(name):
    rotation = np.linalg.qr(RNG.normal(size=(4, 4)))[0]
    value, gradient = mean_and_gradient(name, S, S @ rotation)
    np.testing.assert_allclose(value, 0, atol=1e-13)
    epsilon = 1e-7 if name == "pkt" else 0  # moves pkt's minimum by as much
    np.testing.assert_allclose(gradient, 0, atol=1e-12 + epsilon)


@pytest.mark.usefixtures("x64")
def test_sp_of_the_identity_and_of_one_cluster():
    """Rows e_i and 1/sqrt(B): a squared distance of 2 - 2/sqrt(B)."""
    for batch in (2, 5):
        got = losses.sp(np.eye(batch), np.ones((batch, 1)))
        np.testing.assert_allclose(got, (2 - 2 / np.sqrt(batch)) / batch)


@pytest.mark.usefixtures("x64")
def test_pkt_is_a_mean_divergence():
    """The rows are probabilities: a row's sum is a KL, not negative but for epsilon."""
    assert np.all(losses.pkt(S, T) > 0)
    got = losses.pkt(np.eye(4), np.ones((4, 1)))  # (2, 1, 1, 1)/5 against 1/4
    kl = -np.log(4 * 2 / 5) / 4 - 3 * np.log(4 / 5) / 4
    np.testing.assert_allclose(got, kl / 4, rtol=1e-5)  # epsilon's size


@pytest.mark.usefixtures("x64")
def test_cc_tends_to_the_gaussian_kernel():
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
    kernel = lambda x: np.exp(-0.4 * ((unit(x)[:, None] - unit(x)[None]) ** 2).sum(-1))
    want = ((kernel(S) - kernel(T)) ** 2).mean(1)
    np.testing.assert_allclose(losses.cc(S, T, order=20), want, rtol=1e-9)
    first = np.abs(losses.cc(S, T, order=1) - want)
    assert np.all(first > 1e-4 * want)


# Distances.


def gram(monkeypatch):
    """Makes every batch a large one."""
    monkeypatch.setattr(_rkd_distance, "EXACT", 0)
    return lambda x: np.asarray(_rkd_distance._squared_distances(jnp.asarray(x)))


@pytest.mark.usefixtures("x64")
def test_large_batches_get_the_same_distances(monkeypatch):
    want = ((S[:, None] - S[None]) ** 2).sum(-1)
    np.testing.assert_allclose(gram(monkeypatch)(S + 100), want, rtol=1e-9, atol=1e-20)


def test_distances_from_the_gram_matrix_are_never_negative(monkeypatch):
    x = np.float32(S)
    x[3] = x[1] * (1 + 1e-6)
    square = gram(monkeypatch)(x + 1000)
    assert np.all(square >= 0) and np.all(np.diag(square) == 0)
    assert square[1, 3] == 0 and square[0, 3] > 0


def test_close_examples_keep_their_distance():
    x = np.float32([[1.0, 0.0], [1.0 + 2**-12, 0.0], [0.0, 1.0]])
    square = _rkd_distance._squared_distances(jnp.asarray(x))
    np.testing.assert_allclose(square[0, 1], 2.0**-24, rtol=1e-6)


@pytest.mark.usefixtures("x64")
def test_coinciding_pairs_stay_out_of_the_mean_distance():
    """A difference of 1 is where the loss turns linear: it costs 1/2."""
    far = np.array([[0.0], [0.0], [1.0]])
    near = np.array([[0.0], [1.0], [0.0]])
    # The mean over the pairs that do not coincide is 1.
    d_far = np.array([[0, 0, 1], [0, 0, 1], [1, 1, 0.0]])
    d_near = np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0.0]])
    want = np.where(np.abs(d_far - d_near) < 1, 0, np.abs(d_far - d_near) - 0.5)
    np.testing.assert_allclose(losses.rkd_distance(far, near), want.mean(1))


# Angles.


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("chunk", [2, 3, 4, 5, 6, 100])
def test_parts_change_nothing(chunk):
    whole, gradient = mean_and_gradient("rkd_angle", S, T)
    value, in_parts = mean_and_gradient("rkd_angle", S, T, chunk=chunk)
    np.testing.assert_allclose(value, whole, rtol=1e-13)
    np.testing.assert_allclose(in_parts, gradient, rtol=1e-11, atol=1e-15)


def temporaries(chunk, batch=64, dims=16):
    """Bytes that the loss with its gradient needs beside inputs and outputs."""
    x = jax.ShapeDtypeStruct((batch, dims), jnp.float32)
    mean = lambda s, t: losses.rkd_angle(s, t, chunk=chunk).mean()
    program = jax.jit(jax.value_and_grad(mean)).lower(x, x).compile()
    return program.memory_analysis().temp_size_in_bytes


def test_parts_take_less_memory():
    cube = 4 * 64**3
    assert temporaries(1) > cube
    assert temporaries(16) < cube / 2
    assert temporaries(16) < temporaries(1) / 6


@pytest.mark.bad_input
@pytest.mark.parametrize("chunk", [0, -1, 2.0, True], ids=str)
def test_refuses_chunks(chunk):
    with pytest.raises(ValueError, match="chunk must be"):
        losses.rkd_angle(S, T, chunk=chunk)


# Contrast.


def contrast(key=0, batch=4, data=10, count=5):
    """Unit vectors, banks, rows."""
    rng = np.random.default_rng(key)
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
    arrays = [unit(rng.normal(size=(n, 3))) for n in (batch, batch, data, data)]
    rows = rng.integers(data, size=batch), rng.integers(data, size=(batch, count))
    return [*arrays, *rows]


@pytest.mark.usefixtures("x64")
def test_crd_is_two_binary_classifications():
    s, t, bank_s, bank_t, positives, negatives = contrast()
    want = np.zeros(4)
    for anchor, bank in ((s, bank_t), (t, bank_s)):
        logit = anchor @ bank.T / 0.07 - np.log(5 / 10)
        for i in range(4):
            want[i] += np.log1p(np.exp(-logit[i, positives[i]]))
            want[i] += np.log1p(np.exp(logit[i, negatives[i]])).sum()
    got = losses.crd(s, t, bank_s, bank_t, positives, negatives)
    np.testing.assert_allclose(got, want, rtol=1e-10)


@pytest.mark.usefixtures("x64")
def test_crd_normalizers_shift_their_own_direction():
    """At Z = n mean exp(a'b/T) the mean of x = exp(a'b/T) / Z is 1/n."""
    arrays = contrast()
    base = losses.crd(*arrays)
    student = losses.crd(*arrays, student_normalizer=3.0)
    teacher = losses.crd(*arrays, teacher_normalizer=3.0)
    both = losses.crd(*arrays, student_normalizer=3.0, teacher_normalizer=3.0)
    np.testing.assert_allclose(student + teacher - base, both, rtol=1e-10)
    swapped = [arrays[k] for k in (1, 0, 3, 2, 4, 5)]
    np.testing.assert_allclose(
        losses.crd(*swapped, teacher_normalizer=3.0), student, rtol=1e-12
    )


@pytest.mark.usefixtures("x64")
def test_crd_gradient_pulls_to_the_positive_and_away_from_negatives():
    """d loss / da = -(1 - h_+) b_+ / T + sum over negatives of h_b b / T."""
    s, t, bank_s, bank_t, positives, negatives = contrast()
    loss = lambda s: losses.crd(s, t, bank_s, bank_t, positives, negatives).sum()
    got = jax.grad(loss)(jnp.asarray(s))
    h = 1 / (1 + 5 / 10 * np.exp(-s @ bank_t.T / 0.07))
    for i in range(4):
        want = -(1 - h[i, positives[i]]) * bank_t[positives[i]]
        want = want + sum(h[i, row] * bank_t[row] for row in negatives[i])
        np.testing.assert_allclose(got[i], want / 0.07, rtol=1e-9, atol=1e-12)


@pytest.mark.bad_input
def test_crd_names_what_does_not_fit():
    s, t, bank_s, bank_t, positives, negatives = contrast()
    with pytest.raises(ValueError, match="student_bank"):
        losses.crd(s, t, bank_s[:-1], bank_t, positives, negatives)
    with pytest.raises(ValueError, match="channels must be equal.*teacher_bank 2"):
        losses.crd(s, t, bank_s[:, :2], bank_t[:, :2], positives, negatives)
    with pytest.raises(ValueError, match="positives must have shape"):
        losses.crd(s, t, bank_s, bank_t, negatives, negatives)
    with pytest.raises(ValueError, match="student_normalizer must be"):
        losses.crd(*contrast(), student_normalizer=0.0)
