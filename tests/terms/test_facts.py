"""What each feature and relational Term is, from its own definition."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses, terms
from jaxkd.terms import _pairs
from jaxkd.types import Outputs
from tests.terms import small

close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
B = 4


def outputs(seed, width=3, *, size=4):
    """Two maps, the second half as large, and an embedding."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=(B, *shape)), jnp.float32)
    taps = {
        "stage1": draw(size, size, width),
        "stage2": draw(size // 2, size // 2, width + 1),
        "pooled": draw(width + 1),
    }
    return Outputs(draw(5), taps)


def made(term, s, t):
    key = jax.random.key(0, impl="unsafe_rbg")  # compiles in a fraction of the time
    return term.init(key, s, t, {})


def shapes(term, s, t):
    """Of its parameters and its state; nothing is computed."""
    found = jax.eval_shape(lambda s, t: made(term, s, t), s, t)
    return jax.tree.map(lambda leaf: leaf.shape, found)


def value(term, s, t, params=None):
    its, state = made(term, s, t)
    return term.apply(its if params is None else params, state, s, t, {})[0]


ALIKE = outputs(0), outputs(1)
WIDER = outputs(0), outputs(1, 5)
LARGER = outputs(0), outputs(1, 3, size=8)

# Pairs.


def test_pairs_are_summed():
    s, t = ALIKE
    both = value(terms.at(["stage1", "stage2"]), s, t)
    close(both, sum(losses.at(s.taps[n], t.taps[n]) for n in ("stage1", "stage2")))
    crossed = value(terms.sp({"stage1": "stage2", "pooled": "pooled"}), s, t)
    wanted = losses.sp(s.taps["stage1"], t.taps["stage2"])
    close(crossed, wanted + losses.sp(s.taps["pooled"], t.taps["pooled"]))


def test_every_pair_has_its_own_variables():
    term = terms.hint({"stage1": "stage1", "stage2": "stage2"})
    params, _ = made(term, *ALIKE)
    assert set(params) == {"stage1", "stage2"}
    kernels = [params[n]["conv"]["kernel"] for n in params]
    assert not np.allclose(kernels[0][0, 0], kernels[1][0, 0, :3, :3])


@pytest.mark.bad_input
def test_pairs_that_make_no_sense():
    with pytest.raises(ValueError, match="names no tap"):
        terms.at([])
    with pytest.raises(ValueError, match="twice"):
        terms.at(["stage1", "stage1"])
    assert _pairs.one({"a": "b"}) == ("a", "b")
    with pytest.raises(ValueError, match="one pair"):
        _pairs.one(["a", "b"])


# Losses that need nothing of their own.


@pytest.mark.parametrize(
    ("make", "loss", "tap"),
    [
        (functools.partial(terms.hint, adapter=None), losses.hint, "stage1"),
        (terms.at, losses.at, "stage1"),
        (
            functools.partial(terms.at, p=1, variant="paper"),
            functools.partial(losses.at, p=1, variant="paper"),
            "stage1",
        ),
        (terms.nst, losses.nst, "stage1"),
        (
            functools.partial(terms.cwd, temperature=2.0),
            functools.partial(losses.cwd, temperature=2.0),
            "stage1",
        ),
        (terms.ickd, losses.ickd, "stage1"),
        (terms.pearson, losses.pearson_features, "stage1"),
        (
            functools.partial(terms.wasserstein, mean_weight=2.0, deviation_weight=3.0),
            functools.partial(
                losses.wasserstein_features, mean_weight=2.0, deviation_weight=3.0
            ),
            "stage1",
        ),
        (terms.sp, losses.sp, "stage1"),
        (terms.pkt, losses.pkt, "pooled"),
        (
            functools.partial(terms.cc, gamma=0.5, order=3),
            functools.partial(losses.cc, gamma=0.5, order=3),
            "pooled",
        ),
    ],
)
def test_of_networks_that_fit_is_the_loss_and_has_no_variables(make, loss, tap):
    s, t = ALIKE
    assert not jax.tree.leaves(made(make(tap), s, t))
    close(value(make(tap), s, t), loss(s.taps[tap], t.taps[tap]))


@pytest.mark.parametrize("make", [terms.rkd, terms.pkt, terms.cc])
def test_relations_of_maps_are_those_of_their_vectors(make):
    s, t = WIDER
    flat = lambda o: Outputs(o.logits, {"stage1": o.taps["stage1"].reshape(B, -1)})
    close(value(make("stage1"), s, t), value(make("stage1"), flat(s), flat(t)))


def test_rkd_is_25_distances_and_50_angles():
    s, t = WIDER
    features = s.taps["pooled"], t.taps["pooled"]
    distance, angle = losses.rkd_distance(*features), losses.rkd_angle(*features)
    close(value(terms.rkd(), s, t), 25 * distance + 50 * angle)
    close(value(terms.rkd(distance=2.0, angle=0.0), s, t), 2 * distance)
    close(value(terms.rkd(distance=0.0, angle=3.0, chunk=2), s, t), 3 * angle)


@pytest.mark.bad_input
def test_rkd_of_nothing():
    with pytest.raises(ValueError, match="both 0"):
        terms.rkd(distance=0.0, angle=0.0)
    with pytest.raises(ValueError, match="distance must be finite and >= 0"):
        terms.rkd(distance=-1.0)


# Adapters where they are needed.


@pytest.mark.parametrize("make", [terms.cwd, terms.pearson])
def test_a_map_of_another_size_needs_no_parameters(make):
    s, t = LARGER
    assert not jax.tree.leaves(made(make("stage1"), s, t))
    assert np.isfinite(value(make("stage1"), s, t)).all()


@pytest.mark.parametrize(
    ("make", "loss"),
    [
        (terms.ickd, losses.ickd),
        (terms.wasserstein, losses.wasserstein_features),
    ],
)
def test_correlations_and_statistics_are_of_each_map_at_its_own_size(make, loss):
    s, t = LARGER
    wanted = loss(s.taps["stage1"], t.taps["stage1"])
    close(value(make("stage1"), s, t), wanted)


@pytest.mark.parametrize(
    "make", [terms.cwd, terms.ickd, terms.pearson, terms.wasserstein]
)
def test_another_width_has_one_adapter_or_is_refused(make):
    s, t = WIDER
    params, _ = shapes(make("stage1"), s, t)
    assert params["stage1"]["adapter"]["conv"]["kernel"] == (1, 1, 3, 5)
    with pytest.raises(ValueError, match=r"student's taps are stage1 \(4, 4, 4, 3\)"):
        made(make("stage1", adapt=False), s, t)


def test_hints_regressor_ends_in_batch_norm_and_relu():
    s, t = WIDER
    term = terms.hint("stage1")
    params, state = made(term, s, t)
    x = s.taps["stage1"] @ params["stage1"]["conv"]["kernel"][0, 0]
    x = np.maximum(small.normalised(x, params["stage1"]["norm"]), 0)
    error = (x - np.asarray(t.taps["stage1"])) ** 2
    close(value(term, s, t), error.mean((1, 2, 3)), rtol=1e-4)
    assert set(state["stage1"]["batch_stats"]["norm"]) == {"mean", "var"}


def test_hints_regressor_can_be_any_module():
    larger = functools.partial(terms.adapters.Adapter, kernel=3, norm=True)
    params, state = shapes(terms.hint("stage1", adapter=larger), *WIDER)
    assert params["stage1"]["conv"]["kernel"] == (3, 3, 3, 5)
    assert set(state["stage1"]["batch_stats"]["norm"]) == {"mean", "var"}
    with pytest.raises(ValueError, match="shapes must be equal"):
        made(terms.hint("stage1", adapter=None), *WIDER)


def test_cc_embeds_both_networks_if_asked():
    s, t = WIDER
    term = terms.cc({"stage1": "pooled"}, dims=7)
    params, _ = made(term, s, t)
    sizes = jax.tree.map(jnp.shape, params["stage1"])
    assert sizes["student"] == {"bias": (7,), "kernel": (48, 7)}
    assert sizes["teacher"] == {"bias": (7,), "kernel": (6, 7)}
    embed = lambda p, x: x.reshape(B, -1) @ p["kernel"] + p["bias"][None]
    ours = embed(params["stage1"]["student"], s.taps["stage1"])
    theirs = embed(params["stage1"]["teacher"], t.taps["pooled"])
    close(value(term, s, t), losses.cc(ours, theirs), rtol=1e-4)
    with pytest.raises(ValueError, match="dims must be >= 1"):
        terms.cc(dims=0)


# Token sequences.


def tokens(seed, length, dim=3):
    rng = np.random.default_rng(seed)
    taps = {n: jnp.asarray(rng.normal(size=(B, length, dim))) for n in ("a", "b")}
    return Outputs(jnp.zeros((B, 5)), taps | {"pooled": jnp.ones((B, dim))})


HEAD = {"kernel": jnp.ones((3, 5)), "bias": jnp.ones(5)}


@pytest.mark.parametrize(
    "make",
    [
        terms.hint,
        functools.partial(terms.hint, adapter=None),
        terms.at,
        terms.cwd,
        terms.nst,
        terms.ickd,
        terms.pearson,
        terms.wasserstein,
        terms.vid,
        terms.ab,
        functools.partial(terms.ofd, margins={"a": jnp.zeros(3)}),
        functools.partial(terms.srrl, head=HEAD),
        lambda tap: terms.fsp([(tap, "b")]),
    ],
)
def test_token_sequences_are_compared_at_equal_lengths_only(make):
    s = tokens(0, 5)
    assert shapes_of_loss(make("a"), s, tokens(1, 5)) == (B,)
    match = (
        r"\(4, 5, 3\)(| and|, teacher_features) \(4, 6, 3\).*"
        r"student's taps are a \(4, 5, 3\).*teacher's a \(4, 6, 3\)"
    )
    with pytest.raises(ValueError, match=match):
        shapes_of_loss(make("a"), s, tokens(1, 6))


def shapes_of_loss(term, s, t):
    """Of the loss; nothing is computed."""

    def run(s, t):
        params, state = made(term, s, t)
        return term.apply(params, state, s, t, {})[0]

    return jax.eval_shape(run, s, t).shape


# FSP.

BLOCK = ("stage1", "stage2")


def test_fsp_of_equal_widths_is_the_loss():
    s, t = ALIKE
    wanted = losses.fsp(*(o.taps[tap] for o in ALIKE for tap in BLOCK))
    close(value(terms.fsp([BLOCK]), s, t), wanted)
    close(value(terms.fsp({BLOCK: BLOCK}), s, t), wanted)
    close(value(terms.fsp([BLOCK, BLOCK[::-1]]), s, t), 2 * wanted)
    assert not jax.tree.leaves(made(terms.fsp([BLOCK]), s, t))


def test_fsp_adapts_both_ends_to_the_teachers_block():
    s, t = WIDER
    params, _ = shapes(terms.fsp({BLOCK: ("stage2", "stage1")}), s, t)
    sizes = params["stage1_to_stage2"]
    assert sizes["first"]["adapter"]["conv"]["kernel"] == (1, 1, 3, 6)
    assert sizes["second"]["adapter"]["conv"]["kernel"] == (1, 1, 4, 5)


@pytest.mark.bad_input
def test_fsp_refuses():
    with pytest.raises(
        ValueError, match=r"channels must be equal.*stage1 \(4, 4, 4, 3"
    ):
        made(terms.fsp([BLOCK], adapt=False), *WIDER)
    for layers in ([], "stage1", ["stage1", "stage2"], [("stage1",)]):
        with pytest.raises(ValueError, match="layers must be"):
            terms.fsp(layers)
    with pytest.raises(ValueError, match="twice"):
        terms.fsp([BLOCK, BLOCK])


# VID.


def variances(params):
    return jax.nn.softplus(params["stage1"]["raw_scale"]) + 1e-5


@pytest.mark.parametrize("variance", [5.0, 0.01, 300.0])
def test_vids_variance_starts_where_it_is_told(variance):
    params, _ = made(terms.vid("stage1", variance=variance), *WIDER)
    close(variances(params), np.full(5, variance), rtol=1e-4)


def test_vids_variance_goes_to_the_mean_squared_error():
    s, t = WIDER
    term = terms.vid("stage1")
    params, state = made(term, s, t)
    # Where 0 is predicted, the best variance is the mean square of a channel.
    params["stage1"]["regressor"] = jax.tree.map(
        jnp.zeros_like, params["stage1"]["regressor"]
    )
    best = jnp.square(t.taps["stage1"]).mean((0, 1, 2))

    def slope(variance):
        scale = jnp.log(jnp.expm1(variance - 1e-5))
        at = {"stage1": {**params["stage1"], "raw_scale": scale}}
        loss = lambda p: term.apply(p, state, s, t, {})[0].mean()
        return jax.grad(loss)(at)["stage1"]["raw_scale"]

    close(slope(best), np.zeros(5), atol=1e-5)
    assert (slope(2 * best) > 1e-3).all()
    assert (slope(best / 2) < -1e-3).all()


def test_vid_is_three_layers_on_the_smaller_map():
    s, t = outputs(0), outputs(1, 5, size=8)
    params, _ = made(terms.vid("stage1"), s, t)
    kernels = [params["stage1"]["regressor"][f"layer{i}"]["kernel"] for i in (1, 2, 3)]
    assert [k.shape[2:] for k in kernels] == [(3, 5), (5, 5), (5, 5)]
    x = s.taps["stage1"] @ kernels[0][0, 0]
    for kernel in kernels[1:]:
        x = jnp.maximum(x, 0) @ kernel[0, 0]
    smaller = t.taps["stage1"].reshape(B, 4, 2, 4, 2, 5).mean((2, 4))
    error = jnp.square(x - smaller).mean((1, 2, 3))
    wanted = 0.5 * (error / 5 + jnp.log(5.0))
    close(value(terms.vid("stage1"), s, t), wanted, rtol=1e-4)


@pytest.mark.bad_input
def test_vids_variance_is_more_than_the_least():
    for variance in (0.0, 1e-6):
        with pytest.raises(ValueError, match="variance must be"):
            terms.vid("stage1", variance=variance)
