"""What the papers and the definitions say of the feature losses, one by one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses
from jaxkd.losses import _feature_math as fm
from tests.losses.derivatives import assert_two_derivatives

RNG = np.random.default_rng(0)
S, T = RNG.normal(size=(3, 4, 4, 5)), RNG.normal(size=(3, 4, 4, 5))
OF_MAPS = {
    name: getattr(losses, name)
    for name in (
        *("hint", "at", "nst", "ab", "factor_transfer", "hcl", "cwd", "ickd"),
        *("pearson_features", "wasserstein_features", "cosine", "sp"),
    )
} | {
    "at_paper": lambda s, t: losses.at(s, t, variant="paper"),
    "fsp": lambda s, t: losses.fsp(s, s[:, ::2, ::2], t, t[:, ::2, ::2]),
    "vid": lambda s, t: losses.vid(s, t, jnp.zeros(s.shape[-1])),
    "ofd": lambda s, t: losses.ofd(s, t, -jnp.ones(s.shape[-1])),
}

every_loss = pytest.mark.parametrize("name", OF_MAPS)


@functools.cache
def graded(loss):
    """One program for the losses and the gradients of their mean for both maps."""
    mean = lambda s, t: (loss(s, t).mean(), loss(s, t))
    both = jax.grad(mean, (0, 1), has_aux=True)
    return jax.jit(both, compiler_options={"xla_backend_optimization_level": 0})


def value_and_gradients(loss, s, t):
    """The losses, and the gradients of their mean for both maps."""
    gradients, losses_of_examples = graded(loss)(s, t)
    return losses_of_examples, *gradients


def holes(kind, x):
    """A map in which something is dead."""
    x = np.array(x, np.float32)
    if kind == "channel":
        x[..., 1] = 0
    elif kind == "constant channel":
        x[..., 1] = 0.7
    elif kind == "example":
        x[1] = 0
    elif kind == "position":
        x[:, 2, 2] = 0
    elif kind == "all but one unit":
        x[:] = 0
        x[0, 0, 0, 0] = 1
    elif kind == "tiny":
        x *= 1e-20
    return jnp.asarray(x)


@every_loss
@pytest.mark.parametrize(
    "kind",
    ["channel", "constant channel", "example", "position", "all but one unit", "tiny"],
)
def test_nothing_dead_makes_a_nan(name, kind):
    for s, t in ((holes(kind, S), T), (S, holes(kind, T)), (holes(kind, S),) * 2):
        pair = jnp.asarray(s, jnp.float32), jnp.asarray(t, jnp.float32)
        for array in value_and_gradients(OF_MAPS[name], *pair):
            assert np.all(np.isfinite(array))


def test_only_the_dead_example_loses_its_gradient():
    s = holes("example", S)
    alive, _ = value_and_gradients(losses.at, s, jnp.asarray(T, jnp.float32))[1:]
    assert np.all(alive[1] == 0)
    assert np.all(np.abs(alive[0]).sum(-1) > 0)


@pytest.mark.parametrize(
    "name", ["at", "at_paper", "factor_transfer", "ickd", "cosine"]
)
def test_a_tiny_map_says_as_much_as_a_large_one(name):
    """Down to lengths of 1e-14, which squares to less than float32 can divide by."""
    small = jnp.asarray(S * 1e-6, jnp.float32)
    got = OF_MAPS[name](small, jnp.asarray(T, jnp.float32))
    want = OF_MAPS[name](jnp.asarray(S, jnp.float32), jnp.asarray(T, jnp.float32))
    np.testing.assert_allclose(got, want, rtol=1e-4)


@every_loss
@pytest.mark.usefixtures("x64")
def test_second_derivatives(name):
    if name in ("ab", "factor_transfer", "ofd"):
        pytest.skip("is piecewise smooth")
    f = lambda s: OF_MAPS[name](s, jnp.asarray(T)).mean()
    assert_two_derivatives(f, jnp.asarray(S), modes=("rev rev",))


# Closed-form gradients.


@pytest.mark.usefixtures("x64")
def test_gradient_of_hint():
    gradient = value_and_gradients(losses.hint, S, T)[1]
    np.testing.assert_allclose(gradient, 2 * (S - T) / S.size, rtol=1e-12)


@pytest.mark.usefixtures("x64")
def test_gradient_of_cosine():
    """(cos s/|s| - t/|t|) / |s|."""
    s, t = S[:, 0, 0], T[:, 0, 0]
    gradient = value_and_gradients(losses.cosine, s, t)[1]
    length = np.linalg.norm(s, axis=-1, keepdims=True)
    u, v = s / length, t / np.linalg.norm(t, axis=-1, keepdims=True)
    want = ((u * v).sum(-1, keepdims=True) * u - v) / length / len(s)
    np.testing.assert_allclose(gradient, want, rtol=1e-9, atol=1e-14)


@pytest.mark.usefixtures("x64")
def test_gradient_of_cwd():
    """T (q - p), over the channels."""
    softmax = lambda x: np.exp(x / 3) / np.exp(x / 3).sum((1, 2), keepdims=True)
    gradient = value_and_gradients(
        lambda s, t: losses.cwd(s, t, temperature=3.0), S, T
    )[1]
    want = 3 * (softmax(S) - softmax(T)) / 5 / len(S)
    np.testing.assert_allclose(gradient, want, rtol=1e-9, atol=1e-14)


@pytest.mark.usefixtures("x64")
def test_gradient_of_fsp():
    """d/dF2 mean (G_s - G_t)**2 = 2 F1 (G_s - G_t) / (N C1 C2)."""
    loss = lambda s, t: losses.fsp(S, s, S, t).mean()
    got = jax.grad(loss)(jnp.asarray(S), jnp.asarray(T)).reshape(3, 16, 5)
    f, s, t = (x.reshape(3, 16, 5) for x in (S, S, T))
    for i in range(3):
        difference = f[i].T @ (s[i] - t[i]) / 16
        np.testing.assert_allclose(
            got[i], 2 * f[i] @ difference / 16 / 25 / 3, rtol=1e-9, atol=1e-14
        )


# Attention transfer.


@pytest.mark.usefixtures("x64")
def test_at_code_is_the_paper_squared_over_positions():
    code, paper = losses.at(S, T), losses.at(S, T, variant="paper")
    np.testing.assert_allclose(code, paper**2 / 16, rtol=1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["at_paper", "factor_transfer"])
def test_kinked_losses_are_zero_at_equal_maps(name):
    np.testing.assert_allclose(OF_MAPS[name](S, S), 0, atol=1e-12)


@pytest.mark.usefixtures("x64")
def test_at_ignores_the_order_and_the_signs_of_channels():
    s = S[..., ::-1] * np.array([1, -1, 1, -1, -1])
    np.testing.assert_allclose(losses.at(s, T), losses.at(S, T), rtol=1e-12)
    np.testing.assert_allclose(losses.at(s, T, p=1), losses.at(S, T, p=1), rtol=1e-12)


@pytest.mark.usefixtures("x64")
def test_at_has_its_bounds():
    s, t = np.zeros((1, 2, 2, 1)), np.zeros((1, 2, 2, 1))
    s[0, 0, 0], t[0, 1, 1] = 5, 3  # attention to different places
    np.testing.assert_allclose(losses.at(s, t), 2 / 4)
    np.testing.assert_allclose(losses.at(s, t, variant="paper"), np.sqrt(2))


# Flow matrices.


@pytest.mark.usefixtures("x64")
def test_fsp_is_bilinear():
    zero = np.zeros_like(S)
    one = losses.fsp(S, T, zero, zero)
    np.testing.assert_allclose(losses.fsp(2 * S, 3 * T, zero, zero), 36 * one)
    # G(2 S, T) = G(S, 2 T)
    np.testing.assert_allclose(losses.fsp(2 * S, T, S, 2 * T), 0, atol=1e-28)


def test_fsp_names_channels_that_differ():
    with pytest.raises(ValueError, match=r"student_second 2, teacher_second 5"):
        losses.fsp(S, S[..., :2], T, T)


# Neuron selectivity.


@pytest.mark.usefixtures("x64")
def test_nst_of_orthogonal_patterns_is_the_kernel_of_each():
    eye = np.eye(4).reshape(1, 4, 4)  # four channels, each alive at its own position
    np.testing.assert_allclose(losses.nst(eye[..., :2], eye[..., 2:]), 0.5 + 0.5)
    np.testing.assert_allclose(losses.nst(eye[..., :2], eye[..., :2]), 0, atol=1e-15)


@pytest.mark.usefixtures("x64")
def test_nst_does_not_see_repeated_channels():
    twice = np.concatenate([S, S], axis=-1)
    np.testing.assert_allclose(losses.nst(twice, T), losses.nst(S, T), rtol=1e-10)


# Variational information.


@pytest.mark.usefixtures("x64")
def test_vid_is_least_where_the_variance_is_the_squared_error():
    error = S - T
    best = (error**2).mean((0, 1, 2))
    raw = np.log(np.expm1(best - 1e-5))
    mean = lambda raw: losses.vid(S, T, raw).mean()
    np.testing.assert_allclose(jax.grad(mean)(jnp.asarray(raw)), 0, atol=1e-12)
    np.testing.assert_allclose(mean(raw), 0.5 + 0.5 * np.log(best).mean())


def test_vid_does_not_overflow_and_may_be_negative():
    x = jnp.zeros((1, 2))
    np.testing.assert_allclose(
        losses.vid(x, x, jnp.full(2, 1e4)), np.log(1e4) / 2, rtol=1e-6
    )
    np.testing.assert_allclose(
        losses.vid(x, x, jnp.full(2, -1e4)), np.log(1e-5) / 2, rtol=1e-6
    )


# Boundaries.


def test_ab_asks_only_for_the_side():
    s = jnp.array([[1.5, -1.5]])
    np.testing.assert_array_equal(losses.ab(s, jnp.array([[9.0, -9.0]])), 0)
    np.testing.assert_array_equal(losses.ab(s, jnp.array([[0.1, 0.0]])), 0)
    np.testing.assert_array_equal(losses.ab(s, jnp.array([[-1.0, 1.0]])), 2.5**2)


def test_ofd_lets_negative_units_be_more_negative():
    t, margin = jnp.array([[-5.0, -0.5, 2.0]]), jnp.full(3, -1.0)
    loss = lambda *s: float(losses.ofd(jnp.array([s]), t, margin)[0])
    assert loss(-1.0, -0.5, 2.0) == 0  # the targets
    assert loss(-9.0, -9.0, 2.0) == 0
    assert loss(0.0, -0.5, 2.0) == 1  # from above it is pulled to the margin
    assert loss(-1.0, 0.5, 2.0) == 1
    assert loss(-1.0, -0.5, 0.0) == 4  # a positive target counts on both sides


# Context at several resolutions.


@pytest.mark.usefixtures("x64")
def test_hcl_of_a_constant_difference_is_its_square():
    np.testing.assert_allclose(losses.hcl(S + 3, S), 9)
    np.testing.assert_allclose(losses.hcl(S + 3, S, levels=(2,)), 9)


@pytest.mark.usefixtures("x64")
def test_hcl_skips_levels_that_are_no_smaller():
    np.testing.assert_allclose(
        losses.hcl(S, T), losses.hcl(S, T, levels=(2, 1)), rtol=1e-12
    )
    np.testing.assert_allclose(losses.hcl(S, T, levels=(4, 9)), losses.hint(S, T))


@pytest.mark.bad_input
@pytest.mark.parametrize("levels", [(0,), (1.5,), 4, (True,)], ids=str)
def test_hcl_refuses_levels(levels):
    with pytest.raises(ValueError, match="levels must be"):
        losses.hcl(S, T, levels=levels)


# Statistics.


@pytest.mark.usefixtures("x64")
def test_pearson_is_one_minus_the_correlation():
    r = [np.corrcoef(S[..., c].ravel(), T[..., c].ravel())[0, 1] for c in range(5)]
    got = losses.pearson_features(S, T).mean()
    np.testing.assert_allclose(got, 1 - np.mean(r), rtol=1e-10)
    np.testing.assert_allclose(losses.pearson_features(S, -3 * S + 1).mean(), 2)


def test_pearson_does_not_blow_up_the_rounding_of_a_constant_channel():
    s, t = np.full((64, 4, 4, 1), 0.7, np.float32), np.ones((64, 4, 4, 1), np.float32)
    t[0] = 2
    loss = losses.pearson_features(s, t)
    np.testing.assert_allclose(loss.mean(), 0.5, rtol=1e-5)  # z_s = 0, var z_t = 1


@pytest.mark.usefixtures("x64")
def test_wasserstein_of_a_shift_and_of_a_scale():
    shift = losses.wasserstein_features(S + 2.0, S)
    np.testing.assert_allclose(shift, 5 * 2.0**2)  # 5 channels
    deviation = S.std((1, 2), ddof=1)
    scale = losses.wasserstein_features(3 * S, S, mean_weight=0, epsilon=1e-12)
    np.testing.assert_allclose(scale, ((2 * deviation) ** 2).sum(-1), rtol=1e-9)


@pytest.mark.usefixtures("x64")
def test_ickd_ignores_rotations_of_space_and_moves_with_channels():
    moved = S[:, ::-1].swapaxes(1, 2)
    np.testing.assert_allclose(losses.ickd(moved, T), losses.ickd(S, T), rtol=1e-10)
    assert np.all(losses.ickd(S[..., ::-1], T) != losses.ickd(S, T))


@pytest.mark.usefixtures("x64")
def test_cosine_of_opposite_and_zero_vectors():
    np.testing.assert_allclose(losses.cosine(-2 * S, S), 2)
    np.testing.assert_allclose(losses.cosine(0 * S, S), 1)


# Pooling.


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("cells", [1, 2, 3, 4, 5, 6, 7])
def test_pooling_covers_its_cells(cells):
    x = RNG.normal(size=(2, 7, 3))
    want = np.stack(
        [x[:, i * 7 // cells : -(-(i + 1) * 7 // cells)].mean(1) for i in range(cells)],
        axis=1,
    )
    np.testing.assert_allclose(fm.pool(jnp.asarray(x), (cells,)), want, rtol=1e-12)


@pytest.mark.bad_input
def test_maps_need_equally_many_axes():
    with pytest.raises(ValueError, match=r"spatial axes.*\(3, 4, 4, 5\)"):
        losses.at(S, T[:, 0])
