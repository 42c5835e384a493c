"""Uniform and global pruning: they meet the target, as nearly as steps allow."""

import numpy as np
import pytest

from jaxkd.compress import prune
from tests.compress.prune import small

FRACTIONS = [0.25, 0.4, 0.5, 0.66, 0.8, 0.99, 1.0]


def nothing_fits_any_more(target, kept):
    """No group can be one step wider without breaking the target."""
    for g, widths in enumerate(target.widths):
        wider = widths[widths > kept[g]]
        if len(wider):
            assert not target.met([*kept[:g], wider[0], *kept[g + 1 :]])


@pytest.mark.parametrize("fraction", FRACTIONS)
@pytest.mark.parametrize("kind", ["macs", "parameters"])
@pytest.mark.parametrize("round_to", [1, 4, 8])
@pytest.mark.parametrize("method", [prune.uniform, prune.global_threshold])
def test_the_target_is_met_and_no_step_is_left(method, fraction, kind, round_to):
    if fraction == 0.25 and kind == "parameters" and round_to == 8:
        fraction = 0.3
    plan = small.plan()
    target = prune.target(plan, kind, fraction=fraction, round_to=round_to)
    dropped = method(plan, small.scores(), target)
    kept = plan.kept(dropped)
    assert target.cost(kept) <= target.most
    assert all(k in w for k, w in zip(kept, target.widths, strict=True))
    nothing_fits_any_more(target, kept)


@pytest.mark.parametrize("fraction", FRACTIONS)
def test_uniform_is_no_cheaper_than_the_best_single_ratio(fraction):
    """By its definition: of all ratios that meet the target, the smallest."""
    plan = small.plan()
    target = prune.target(plan, "macs", fraction=fraction)
    meeting = []
    for ratio in np.linspace(0, 0.95, 2000):
        kept = [w[w >= w[-1] * (1 - ratio)][0] for w in target.widths]
        meeting += [kept] if target.met(kept) else []
    dropped = prune.uniform(plan, small.scores(), target)
    kept = plan.kept(dropped)
    assert (kept >= meeting[0]).all()  # what the ratio leaves, and what was filled in


def test_in_each_group_the_lowest_scores_go():
    plan, scores = small.plan(), small.scores()
    target = prune.target(plan, "macs", fraction=0.5)
    keep = plan.keep(prune.uniform(plan, scores, target))
    for group in plan.groups:
        own = slice(group.units.start, group.units.stop)
        lost = scores[own][~keep[own]]
        assert scores[own][keep[own]].min() >= lost.max(initial=0)


def test_globally_is_one_threshold_where_steps_are_single_channels():
    plan, scores = small.plan(), small.scores()
    target = prune.target(plan, "macs", fraction=0.5, round_to=1)
    keep = plan.keep(prune.global_threshold(plan, scores, target))
    normal = scores.copy()
    for group in plan.groups:
        own = slice(group.units.start, group.units.stop)
        normal[own] /= normal[own].mean()
    # Filling in may have kept a few more below the threshold, but none above it goes.
    order = np.argsort(normal)
    first_kept = int(np.argmax(keep[order]))
    assert plan.macs(order[:first_kept]) > target.most * 0.95
    assert keep[normal > normal[~keep].max()].all()


@pytest.mark.parametrize("fraction", FRACTIONS[1:])
@pytest.mark.parametrize("round_to", [1, 4, 8])
def test_globally_keeps_what_the_lowest_sufficient_threshold_keeps(fraction, round_to):
    """By its definition, trying every threshold in ascending order."""
    plan, scores = small.plan(), small.scores()
    target = prune.target(plan, "macs", fraction=fraction, round_to=round_to)
    normal = [
        np.sort(scores[g.units.start : g.units.stop].astype(float)) for g in plan.groups
    ]
    normal = [own / own.mean() for own in normal]

    def kept_at(threshold):
        below = [int((own <= threshold).sum()) for own in normal]
        return [
            w[len(own) - w <= b][0]
            for w, own, b in zip(target.widths, normal, below, strict=True)
        ]

    thresholds = [0.0, *np.sort(np.concatenate(normal))]
    expected = next(k for t in thresholds if target.met(k := kept_at(t)))
    found = plan.kept(prune.global_threshold(plan, scores, target))
    assert (found >= expected).all()


def test_globally_removes_a_group_of_zeros_down_to_one_step():
    plan, scores = small.plan(), small.scores().copy()
    middle = plan.groups[1].units
    scores[middle.start : middle.stop] = 0
    target = prune.target(plan, "macs", fraction=0.6)
    kept = plan.kept(prune.global_threshold(plan, scores, target))
    assert kept[1] == 8 and kept[0] == 16


@pytest.mark.parametrize("factor", [100.0, 0.01])
def test_scales_of_layers_do_not_matter_to_globally_unless_asked(factor):
    plan, scores = small.plan(), small.scores()
    target = prune.target(plan, "macs", fraction=0.5)
    scaled = scores.copy()
    scaled[plan.groups[0].units.start : plan.groups[0].units.stop] *= factor
    for how in ("mean", "max"):
        a = prune.global_threshold(plan, scores, target, normalise=how)
        b = prune.global_threshold(plan, scaled, target, normalise=how)
        assert np.array_equal(a, b)
    raw = prune.global_threshold(plan, scaled, target, normalise="none")
    assert plan.kept(raw)[0] == (16 if factor > 1 else 8)


def test_a_network_that_is_small_enough_stays_whole():
    plan = small.plan()
    target = prune.target(plan, "macs", most=10**9)
    for method in (prune.uniform, prune.global_threshold):
        assert len(method(plan, small.scores(), target)) == 0


def test_latency_that_does_not_fall_evenly_is_still_met():
    plan = small.plan()
    rng = np.random.default_rng(0)
    noisy = lambda dropped: plan.macs(dropped) / 1e5 * rng.uniform(0.8, 1.2)
    target = prune.target(plan, "latency", fraction=0.6, measure=noisy)
    dropped = prune.uniform(plan, small.scores(), target)
    assert target.met(plan.kept(dropped))


@pytest.mark.bad_input
@pytest.mark.parametrize("method", [prune.uniform, prune.global_threshold])
def test_scores_of_something_else_are_refused(method):
    plan = small.plan()
    target = prune.target(plan, "macs", fraction=0.5)
    with pytest.raises(ValueError, match="one number for each of 72 units"):
        method(plan, np.ones(3), target)
    with pytest.raises(ValueError, match="scores must be finite"):
        method(plan, np.full(72, np.nan), target)


@pytest.mark.bad_input
def test_negative_scores_cannot_be_normalised():
    target = prune.target(small.plan(), "macs", fraction=0.5)
    with pytest.raises(ValueError, match="scores must be >= 0, got -1"):
        prune.global_threshold(small.plan(), -np.ones(72), target)
    with pytest.raises(ValueError, match="normalise must be one of"):
        prune.global_threshold(small.plan(), np.ones(72), target, normalise="median")
