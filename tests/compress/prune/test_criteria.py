"""Scores against their definitions, unit by unit, and what is chosen by them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.compress import prune
from jaxkd.compress.prune import criteria
from tests.compress.prune.nets import ResNeXt, SqueezeExcite, applied, images, made


def setup(module):
    variables = made(module)
    return prune.analyse(applied(module), variables, images()), variables


PLAN, VARIABLES = setup(SqueezeExcite())
PARAMS = VARIABLES["params"]
# By hand: the layers that make a group's channels, all along their last axis.
MAKERS = {
    "stem": ["stem", "project1", "project2"],
    "expand1": ["expand1", "depth1", "excite1"],
    "squeeze1": ["squeeze1"],
    "expand2": ["expand2", "depth2", "excite2"],
    "squeeze2": ["squeeze2"],
}


def by_hand(worth, of=("kernel",)):
    """For each unit the list of worths of its weights."""
    out = []
    for group in PLAN.groups:
        norm = {"expand1": "BatchNorm_0", "expand2": "BatchNorm_1"}.get(group.name)
        layers = MAKERS[group.name] + ([norm] if norm else [])
        for channel in range(len(group.units)):
            out.append(
                np.concatenate(
                    [
                        np.ravel(worth(layer, name)[..., channel])
                        for layer in layers
                        for name in of
                        if name in PARAMS[layer]
                    ]
                )
            )
    return out


def weights(layer, name):
    return np.asarray(PARAMS[layer][name], np.float64)


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-5)


def compiled(scores):
    return jax.jit(scores)(VARIABLES)


def test_norms_are_those_of_all_kernels_that_make_the_channels():
    assert [g.name for g in PLAN.groups] == list(MAKERS)
    each = by_hand(weights)
    of = compiled(
        lambda v: (
            [
                norm(PLAN, v["params"], mean=mean)
                for norm in (criteria.l1, criteria.l2)
                for mean in (False, True)
            ]
            + [criteria.l1(PLAN, v)]
        )
    )
    close(of[0], [np.abs(w).sum() for w in each])
    close(of[1], [np.abs(w).mean() for w in each])
    close(of[2], [np.sqrt((w**2).sum()) for w in each])
    close(of[3], [np.sqrt((w**2).mean()) for w in each])
    close(of[4], of[0])
    close(criteria.l1(PLAN, PARAMS), of[0])  # not compiled


def test_taylor_is_of_all_parameters_of_the_channels():
    move = lambda params: jax.tree.map(lambda a: a**2 - 0.3, params)
    grads = move(PARAMS)
    product = lambda layer, name: weights(layer, name) * np.asarray(grads[layer][name])
    every = by_hand(product, ("kernel", "bias", "scale"))
    of = compiled(
        lambda v: [
            criteria.taylor(PLAN, v["params"], move(v["params"]), **how)
            for how in ({}, {"squared": True}, {"mean": True})
        ]
    )
    close(of[0], [np.abs(w).sum() for w in every])
    close(of[1], [(w**2).sum() for w in every])
    close(of[2], [np.abs(w).mean() for w in every])


def test_batch_norm_scales_where_there_are_some():
    plan = prune.analyse(
        applied(SqueezeExcite()), VARIABLES, images(), include="expand*"
    )
    scales = [PARAMS[f"BatchNorm_{i}"]["scale"] for i in (0, 1)]
    close(criteria.batch_norm_scale(plan, PARAMS), np.abs(np.concatenate(scales)))
    with pytest.raises(ValueError, match="group 'stem' has no weights"):
        criteria.batch_norm_scale(PLAN, PARAMS)


def test_geometric_median_is_the_sum_of_distances():
    scores = compiled(lambda v: criteria.geometric_median(PLAN, v))
    for group in PLAN.groups:
        expected = 0.0
        for layer in MAKERS[group.name]:
            rows = weights(layer, "kernel").reshape(-1, len(group.units)).T
            gaps = np.linalg.norm(rows[:, None] - rows[None], axis=-1)
            expected = expected + gaps.sum(1)
        part = scores[group.units.start : group.units.stop]
        np.testing.assert_allclose(part, expected, rtol=1e-4)


def test_the_filter_that_others_can_replace_scores_least():
    rows = jnp.array([[1.0, 0], [0, 1], [-1, 0], [0, -1], [0.1, 0]])
    w = {"a": rows.T, "b": jnp.ones((5, 2))}
    plan = prune.analyse(lambda w, x: x @ w["a"] @ w["b"], w, jnp.ones((1, 2)))
    score = jax.jit(lambda w: criteria.geometric_median(plan, w))
    assert score(w).argmin() == 4
    # ... and the far ones by symmetry the same, apart from the small one's side.
    scores = score({**w, "a": w["a"].at[0, 4].set(0)})
    np.testing.assert_allclose(scores[:4], 3 + 2 * np.sqrt(2), rtol=1e-6)


def test_units_of_grouped_convolutions_have_all_their_channels_weights():
    plan, variables = setup(ResNeXt())
    scores = criteria.l1(plan, variables)
    group = plan.group("reduce")
    kernel = np.abs(np.asarray(variables["params"]["reduce"]["kernel"])).sum((0, 1, 2))
    part = scores[group.units.start : group.units.stop]
    close(part, kernel.reshape(3, 4).sum(0))  # three groups of four channels


@pytest.mark.bad_input
def test_trees_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="nothing with the structure"):
        criteria.l1(PLAN, {"stem": PARAMS["stem"]})
    with pytest.raises(ValueError, match="of another network"):
        criteria.l2(PLAN, jax.tree.map(lambda a: a[..., :1], PARAMS))
    with pytest.raises(ValueError, match="variables, only"):
        criteria.l1(PLAN, {"params": PARAMS, "copy": PARAMS})
    with pytest.raises(ValueError, match="nothing with the structure"):
        criteria.taylor(PLAN, PARAMS, {})


def dense(*widths):
    """A plan of groups with so many units."""
    sizes = zip((2, *widths), (*widths, 3), strict=True)
    w = {f"w{i}": jnp.ones(s) for i, s in enumerate(sizes)}

    def apply(w, x):
        for i in range(len(w)):
            x = x @ w[f"w{i}"]
        return x

    return prune.analyse(apply, w, jnp.ones((1, 2)))


@pytest.mark.parametrize(
    ("width", "ratio", "round_to", "kept"),
    [
        (64, 0.5, 8, 32),
        (64, 0.3, 8, 48),  # of 44.8: 48 is nearer than 40
        (64, 0.99, 8, 8),
        (64, 0.01, 8, 64),
        (20, 0.05, 8, 20),  # all may stay, though they are no multiple
        (20, 0.3, 8, 16),
        (6, 0.5, 8, 3),
        (6, 0.99, 8, 1),
        (64, 0.3, 1, 45),
        (12, 0.0, 8, 12),
    ],
)
def test_counts_are_the_nearest_multiples(width, ratio, round_to, kept):
    plan = dense(width)
    assert prune.counts(plan, ratio, round_to=round_to).tolist() == [kept]


def test_multiples_are_of_channels():
    plan, _ = setup(ResNeXt())
    # "reduce": units of 3 channels, 8 channels are no whole number of them but 24 are;
    # "grouped": units of 6 channels, 4 of which are 24. Rounded to 6 channels they are
    # two units and one.
    names = [g.name for g in plan.groups]
    left = dict(zip(names, prune.counts(plan, 0.4, round_to=6), strict=True))
    assert (left["reduce"], left["grouped"]) == (2, 2)


def test_the_lowest_of_each_group_go():
    plan = dense(3, 4)
    scores = [5, 1, 3, 0.2, 0.9, 0.1, 0.3]
    assert prune.lowest(plan, scores, [2, 1]).tolist() == [1, 3, 5, 6]
    assert prune.choose(plan, scores, {"w1": 0.5}, round_to=1).tolist() == [3, 5]
    assert prune.choose(plan, scores, [0.4, 0], round_to=1).tolist() == [1]
    assert prune.choose(plan, scores, 0.0).tolist() == []


@pytest.mark.bad_input
def test_wrong_ratios_scores_and_counts_are_refused():
    plan = dense(3, 4)
    for ratios in (1.0, -0.1, [0.5, 1.5], float("nan")):
        with pytest.raises(ValueError, match=r"in \[0, 1\)"):
            prune.counts(plan, ratios)
    with pytest.raises(ValueError, match="one for each group"):
        prune.counts(plan, [0.5])
    with pytest.raises(KeyError, match="no group 'w9'"):
        prune.counts(plan, {"w9": 0.5})
    with pytest.raises(ValueError, match="round_to must be >= 1"):
        prune.counts(plan, 0.5, round_to=0)
    with pytest.raises(ValueError, match="one for each unit"):
        prune.lowest(plan, np.ones(6), [1, 1])
    with pytest.raises(ValueError, match="1 not numbers"):
        prune.lowest(plan, [np.nan, *range(6)], [1, 1])
    for kept in ([0, 1], [4, 1], [1]):
        with pytest.raises(ValueError, match="kept must be from 1 to"):
            prune.lowest(plan, np.ones(7), kept)
