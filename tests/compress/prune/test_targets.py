"""Targets: what they cost, what can be met, and what is refused."""

import doctest
import itertools

import numpy as np
import pytest

from jaxkd import cost
from jaxkd.compress import prune
from jaxkd.compress.prune import _gradual, _sensitivity, targets
from tests.compress.prune import small


@pytest.mark.parametrize("module", [targets, _gradual, _sensitivity])
def test_the_examples_are_true(module):
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize("kind", ["macs", "parameters", "bytes"])
def test_costs_are_those_of_the_whole_network(kind):
    target = prune.target(small.plan(), kind, fraction=0.5)
    whole = getattr(cost.of(small.net, small.SHAPE), kind)
    assert (target.whole, target.most) == (whole, whole / 2)


def test_the_least_cost_is_that_of_every_combination_of_widths():
    target = prune.target(small.plan(), "macs", fraction=0.5)
    costs = [target.cost(np.array(kept)) for kept in itertools.product(*target.widths)]
    assert (min(costs), max(costs)) == (target.least, target.whole)


def test_widths_are_whole_steps_or_all():
    widths = prune.target(small.plan(), "macs", fraction=0.9, round_to=7).widths
    assert [w.tolist() for w in widths] == [
        [7, 14, 16],
        [7, 14, 21, 24],
        [7, 14, 21, 28, 32],
    ]
    narrow = prune.target(small.plan(), "macs", fraction=0.9, round_to=20).widths
    assert narrow[0].tolist() == list(range(1, 17))  # fewer than a step: not rounded


def test_latency_is_asked_once_for_each_set_of_widths():
    asked = []

    def measure(dropped):
        asked.append(dropped)
        return float(small.plan().keep(dropped).sum())

    target = prune.target(small.plan(), "latency", fraction=0.6, measure=measure)
    kept = np.array([8, 8, 16])
    assert target.cost(kept) == target.cost(kept) == 32.0
    assert target.met(kept) and not target.met(np.array([16, 24, 32]))
    assert len(asked) == 3  # the whole, the least, and this one
    assert small.plan().kept(asked[-1]).tolist() == [8, 8, 16]


def test_latency_by_a_table():
    table = {(16, 24, 32): 9.0, (8, 8, 8): 1.0, (8, 16, 8): 2.0}
    target = prune.target(small.plan(), "latency", most=2.0, measure=table)
    assert target.met([8, 16, 8])
    with pytest.raises(KeyError, match=r"no latency for the widths \(8, 24, 8\)"):
        target.cost(np.array([8, 24, 8]))


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"fraction": 0.0}, r"fraction must be in \(0, 1\], got 0.0"),
        ({"fraction": 1.5}, r"fraction must be in \(0, 1\], got 1.5"),
        ({"fraction": float("nan")}, r"fraction must be in \(0, 1\]"),
        ({"fraction": 0.5, "most": 3}, "give fraction or most, one of them"),
        ({}, "give fraction or most, one of them"),
        ({"most": -3}, "most must be finite and > 0, got -3"),
        ({"fraction": 0.5, "round_to": 0}, "round_to must be >= 1, got 0"),
        ({"fraction": 0.5, "measure": len}, 'measure belongs to "latency" alone'),
        ({"fraction": 0.01}, r"macs <= [\d.,]+ cannot be met: in steps of 8 channels"),
        # 36 positions of 9 * (8 + 3 * 8 * 8), and 9 * (16 + 2 * 16 * 24 + 16 * 32); the
        # head has 8 * 3 and 32 * 3.
        ({"most": 5}, r"reaches 64,824 to 420,000"),
    ],
)
def test_what_cannot_be_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        prune.target(small.plan(), "macs", **wrong)


@pytest.mark.bad_input
def test_unknown_kinds_and_silent_clocks_are_refused():
    with pytest.raises(ValueError, match="kind must be one of"):
        prune.target(small.plan(), "flops", fraction=0.5)
    with pytest.raises(ValueError, match="latency"):
        prune.target(small.plan(), "latency", fraction=0.5)
    with pytest.raises(ValueError, match="the latency must be finite and > 0, got nan"):
        prune.target(
            small.plan(), "latency", fraction=0.5, measure=lambda dropped: float("nan")
        )
