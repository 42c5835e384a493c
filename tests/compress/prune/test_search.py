"""Searched pruning: feasible always, resumable, at least as good as where it starts."""

import itertools

import numpy as np
import pytest

from jaxkd.compress import prune, search as searches
from tests.compress.prune import small

WEIGHTS = np.concatenate([np.full(16, 3.0), np.full(24, 1.0), np.full(32, 0.5)])
GRID = (0.25, 0.5, 0.75)


def half():
    return prune.target(small.plan(), "macs", fraction=0.5)


class Killed(BaseException):
    pass


def counted(most=None):
    calls = []
    metric = small.additive(WEIGHTS)

    def of(keep):
        if most is not None and len(calls) == most:
            raise Killed
        calls.append(keep)
        return metric(keep)

    return prune.Metric(of, metric.settings), calls


def find(metric=None, target=None, **how):
    how = {"grid": GRID, "budget": 12, **how}
    metric = metric or small.additive(WEIGHTS)
    return prune.search(small.plan(), small.scores(), target or half(), metric, **how)


def best_of_all():
    """(the greatest reward, how many candidates are feasible), by trying all."""
    target = half()
    every = [np.array(kept) for kept in itertools.product(*target.widths)]
    feasible = [kept for kept in every if target.met(kept)]
    return max(kept @ np.array([3.0, 1.0, 0.5]) for kept in feasible), len(feasible)


def test_random_search_of_all_of_a_small_space_finds_the_best():
    best, size = best_of_all()
    found = find(controller=prune.random, budget=size)
    assert len({trial.tokens for trial in found.trials}) == size
    assert small.additive(WEIGHTS)(small.plan().keep(found.dropped)) == found.reward
    assert found.reward == best


def test_annealing_finds_the_best_from_one_of_a_few_seeds():
    best, size = best_of_all()
    found = [find(seed=seed, budget=size).reward for seed in range(6)]
    assert max(found) == best


@pytest.mark.parametrize("kind", ["macs", "parameters", "latency"])
def test_every_candidate_meets_the_target(kind):
    plan = small.plan()
    how = {"measure": lambda d: float(plan.macs(d))} if kind == "latency" else {}
    target = prune.target(plan, kind, fraction=0.5, **how)
    found = find(target=target, grid=[i / 10 for i in range(10)], budget=15)
    kept = [
        [w[t] for w, t in zip(found.widths, trial.tokens, strict=True)]
        for trial in found.trials
    ]
    assert all(target.met(k) for k in kept) and target.met(plan.kept(found.dropped))
    assert all(t.info["cost"] <= target.most for t in found.trials)


def test_candidates_use_up_what_they_are_told_to():
    target, grid = half(), [i / 10 for i in range(10)]
    worthless = prune.Metric(lambda keep: -float(keep.sum()), {"metric": "smaller"})
    costs = lambda **how: [
        trial.info["cost"] / target.most
        for trial in find(worthless, grid=grid, controller=prune.random, **how).trials
    ]
    assert min(costs()) < 0.8 <= min(costs(least=0.8)) <= max(costs(least=0.8)) <= 1
    kept = small.plan().kept(find(worthless, grid=grid, least=0.8).dropped)
    assert 0.8 <= target.cost(kept) / target.most <= 1


def test_annealing_is_not_worse_than_the_uniform_start():
    found = find(budget=5)
    target = half()
    uniform = small.plan().keep(prune.uniform(small.plan(), small.scores(), target))
    first = found.trials[0].reward
    assert found.reward >= first == small.additive(WEIGHTS)(uniform)


def test_a_killed_search_goes_on_to_the_same_answer(tmp_path):
    expected = find()
    journal = tmp_path / "search.jsonl"
    killed, before = counted(most=5)
    with pytest.raises(Killed):
        find(killed, journal=journal)
    resumed, after = counted()
    found = find(resumed, journal=journal)
    assert np.array_equal(found.dropped, expected.dropped)
    assert [t.tokens for t in found.trials] == [t.tokens for t in expected.trials]
    assert len(before) == 5 and len(before) + len(after) == len(expected.trials)


def test_seeds_differ_and_repeat():
    tokens = lambda **how: [trial.tokens for trial in find(budget=6, **how).trials]
    assert tokens(seed=1) == tokens(seed=1) != tokens(seed=2)


def test_a_controller_of_ones_own():
    make = lambda sizes, start: searches.evolve(sizes, population=3, start=start)
    assert half().met(small.plan().kept(find(controller=make).dropped))


@pytest.mark.bad_input
def test_the_journal_of_another_search_is_refused(tmp_path):
    journal = tmp_path / "search.jsonl"
    find(journal=journal)
    other = prune.target(small.plan(), "macs", fraction=0.6)
    with pytest.raises(ValueError, match="of another search: .*target was"):
        find(journal=journal, target=other)
    with pytest.raises(ValueError, match="of another search: prune was"):
        find(prune.Metric(lambda keep: 0.0, {"metric": "other"}), journal=journal)


@pytest.mark.bad_input
def test_what_cannot_be_is_refused_before_anything_is_evaluated():
    metric, calls = counted()
    with pytest.raises(ValueError, match="cannot be met: this method reaches"):
        find(metric, grid=(0.1, 0.3))
    for wrong in ((), (0.5, 1.0), (-0.5,)):
        with pytest.raises(ValueError, match=r"grid must be ratios in \[0, 1\)"):
            find(metric, grid=wrong)
    with pytest.raises(ValueError, match="budget must be >= 1"):
        find(metric, budget=0)
    with pytest.raises(ValueError, match=r"least must be in \[0, 1\), got 1"):
        find(metric, least=1.0)
    assert not calls
