"""Sensitivity pruning: curves, their file, and equal predicted loss."""

import itertools
import json

import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import distill, evaluate
from jaxkd.compress import prune
from jaxkd.compress.prune import _sensitivity
from tests.compress.prune import small

# What a unit of each group is worth in the metric.
WEIGHTS = np.concatenate([np.full(16, 3.0), np.full(24, 1.0), np.full(32, 0.5)])
RATIOS = (0.25, 0.5, 0.75)


def half():
    return prune.target(small.plan(), "macs", fraction=0.5)


class Killed(BaseException):
    pass


def counted(metric, most=None):
    """The same metric, which counts its calls and stops after so many."""
    calls = []

    def of(keep):
        if most is not None and len(calls) == most:
            raise Killed
        calls.append(keep)
        return metric(keep)

    return prune.Metric(of, metric.settings), calls


def test_curves_are_the_metric_of_each_group_pruned_alone():
    found = prune.curves(
        small.plan(), small.scores(), half(), small.additive(WEIGHTS), ratios=RATIOS
    )
    assert found.whole == 16 * 3 + 24 + 32 * 0.5
    names = [group.name for group in small.plan().groups]
    # Ratios of 16, 24 and 32 units, rounded to eights that lose no more than that.
    assert found.points[names[0]] == {8: found.whole - 8 * 3}
    assert found.points[names[1]] == {16: found.whole - 8, 8: found.whole - 16}
    assert sorted(found.points[names[2]]) == [8, 16, 24]
    ratios, losses = found.losses(names[2])
    assert ratios.tolist() == [0, 0.25, 0.5, 0.75]
    assert losses.tolist() == [0, 4, 8, 12]


def test_the_common_loss_is_the_smallest_that_meets_the_target():
    plan, target = small.plan(), half()
    metric = small.additive(WEIGHTS)
    dropped = prune.sensitivity(plan, small.scores(), target, metric, ratios=RATIOS)
    kept = plan.kept(dropped)
    assert target.met(kept)
    loss = lambda kept: (np.array([16, 24, 32]) - kept) * np.array([3.0, 1.0, 0.5])
    every = [np.array(k) for k in itertools.product(*target.widths)]
    best = min(loss(k).max() for k in every if target.met(k))
    assert loss(kept).max() == best


def test_no_group_loses_more_than_the_greatest_ratio_measured():
    """Though three quarters of the last group, worth nothing, would be enough."""
    plan, scores = small.plan(), small.scores()
    most = 36 * 9 * (16 + 2 * 16 * 24 + 16 * 8) + 8 * 3
    target = prune.target(plan, "macs", most=most)
    metric = small.additive(np.concatenate([np.full(40, 30.0), np.zeros(32)]))
    go = lambda *ratios: plan.kept(
        prune.sensitivity(plan, scores, target, metric, ratios=ratios)
    )
    assert go(0.25, 0.75).tolist() == [16, 24, 8]
    assert go(0.25, 0.5)[2] >= 16


def test_monotone_is_the_nearest_in_squares():
    rng = np.random.default_rng(0)
    for _ in range(20):
        values = rng.normal(size=6)
        found = _sensitivity.monotone(values)
        assert (np.diff(found) >= 0).all() and found.mean() == pytest.approx(
            values.mean()
        )
        # By the min-max formula: max over a <= i of min over b >= i of mean(a..b).
        expected = [
            max(
                min(values[a : b + 1].mean() for b in range(i, 6)) for a in range(i + 1)
            )
            for i in range(6)
        ]
        np.testing.assert_allclose(found, expected, atol=1e-12)


def test_a_gain_counts_as_no_loss():
    curves = prune.Curves(0.5, {"a": 16}, {"a": {8: 0.6, 4: 0.4}})
    assert curves.losses("a")[1].tolist() == [0, 0, pytest.approx(0.1)]


def test_a_killed_measurement_goes_on_and_ends_the_same(tmp_path):
    plan, scores, target = small.plan(), small.scores(), half()
    metric = small.additive(WEIGHTS)
    whole, calls = counted(metric)
    expected = prune.sensitivity(plan, scores, target, whole, ratios=RATIOS)
    file = tmp_path / "sensitivity.json"
    killed, before = counted(metric, most=3)
    with pytest.raises(Killed):
        prune.sensitivity(plan, scores, target, killed, ratios=RATIOS, file=file)
    resumed, after = counted(metric)
    found = prune.sensitivity(plan, scores, target, resumed, ratios=RATIOS, file=file)
    assert np.array_equal(found, expected)
    assert len(before) + len(after) == len(calls) == 1 + 1 + 2 + 3
    again, none = counted(metric)
    prune.sensitivity(plan, scores, target, again, ratios=RATIOS, file=file)
    assert not none
    more, one = counted(metric)  # a ratio more costs its own measurements alone
    fine = prune.target(plan, "macs", fraction=0.5, round_to=4)
    prune.sensitivity(plan, scores, fine, more, ratios=(*RATIOS, 0.8), file=file)
    assert 0 < len(one) <= 6
    assert [path.name for path in tmp_path.iterdir()] == ["sensitivity.json"]


@pytest.mark.bad_input
def test_a_file_of_something_else_is_refused_with_the_reason(tmp_path):
    plan, scores, target = small.plan(), small.scores(), half()
    file = tmp_path / "sensitivity.json"
    metric = small.additive(WEIGHTS)
    go = lambda scores, metric: prune.sensitivity(
        plan, scores, target, metric, ratios=RATIOS, file=file
    )
    go(scores, metric)
    with pytest.raises(ValueError, match="belongs to another run: scores was"):
        go(scores + 1, metric)
    with pytest.raises(ValueError, match='metric was "sum", is "other"'):
        go(scores, prune.Metric(metric.of, {"metric": "other"}))
    content = json.loads(file.read_text())
    content["settings"]["plan"] = "another"
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match='plan was "another", is '):
        go(scores, metric)
    file.write_text("{}")
    with pytest.raises(ValueError, match="not a file of sensitivities"):
        go(scores, metric)
    assert file.read_text() == "{}"


@pytest.mark.bad_input
def test_what_cannot_be_is_refused_before_anything_is_measured():
    plan, scores = small.plan(), small.scores()
    metric, calls = counted(small.additive(WEIGHTS))
    with pytest.raises(ValueError, match=r"ratios up to 0.25: they reach"):
        prune.sensitivity(plan, scores, half(), metric, ratios=(0.1, 0.25))
    for wrong in ((), (1.0,), (-0.1, 0.5)):
        with pytest.raises(ValueError, match=r"ratios must be ratios in \[0, 1\)"):
            prune.sensitivity(plan, scores, half(), metric, ratios=wrong)
    assert not calls


@pytest.mark.bad_input
def test_a_metric_that_is_no_number_is_refused():
    nothing = prune.Metric(lambda keep: float("nan"), {})
    with pytest.raises(ValueError, match="the metric must be finite, got nan"):
        prune.sensitivity(small.plan(), small.scores(), half(), nothing)


def test_masked_is_the_accuracy_of_the_pruned_network_and_compiles_once():
    plan, resident = small.plan(), small.resident()
    traced = []

    def accuracy(logits, labels):
        traced.append(logits.shape)
        return evaluate.accuracy(logits, labels)

    metric = prune.masked_metric(
        small.net, plan, small.variables(), resident, view=small.VIEW, measure=accuracy
    )
    rng = np.random.default_rng(0)
    for _ in range(5):
        dropped = rng.choice(plan.units, 20, replace=False)
        found = metric(plan.keep(dropped))
        pruned = plan.apply(small.variables(), dropped)
        teacher = distill.frozen(prune.resized(small.net))
        logits = evaluate.predict(teacher, pruned, resident, view=small.VIEW)
        assert found == pytest.approx(
            float(evaluate.accuracy(logits, resident["label"]))
        )
    assert len(traced) == 1


def test_the_part_that_is_measured_is_random_and_the_same_for_a_seed():
    keep = small.plan().keep()
    make = lambda **how: prune.masked_metric(
        small.net, small.plan(), small.variables(), small.resident(), view=small.VIEW,
        measure="nll", **how,
    )  # fmt: skip
    a, b, c = make(eval_rate=0.2), make(eval_rate=0.2), make(eval_rate=0.2, seed=1)
    assert a(keep) == b(keep) != c(keep)
    assert a.settings == b.settings and a.settings["data"] != c.settings["data"]
    json.dumps(dict(a.settings))


@pytest.mark.bad_input
def test_knobs_of_the_metric_are_checked():
    make = lambda **how: prune.masked_metric(
        small.net, small.plan(), small.variables(), small.resident(), view=small.VIEW,
        **how,
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"eval_rate must be in \(0, 1\], got 0"):
        make(eval_rate=0)
    with pytest.raises(ValueError, match="measure must be one of"):
        make(measure="top5")
    assert jnp.isfinite(make(measure="accuracy")(small.plan().keep()))
