"""Controllers: their draws against their definitions, limits, states through JSON."""

import itertools
import json
import math
from collections import Counter

import numpy as np
import pytest

from jaxkd.compress import search
from jaxkd.compress.search import _anneal, _controller

SIZES = (4, 3, 5)
MAKERS = {
    "anneal": lambda **how: search.anneal(SIZES, (0, 0, 0), **how),
    "evolve": lambda **how: search.evolve(SIZES, population=5, tournament=2, **how),
    "evolve from a start": lambda **how: search.evolve(
        SIZES, population=5, tournament=2, start=(0, 0, 0), **how
    ),
    "random": lambda **how: search.random_search(SIZES, **how),
}
each = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def small(tokens):
    return sum(tokens) <= 5


def steps(controller, n, feasible=_controller.anything, seed=0, state=None, reward=sum):
    state = controller.init(seed) if state is None else state
    seen = []
    for _ in range(n):
        tokens, state = controller.propose(state, feasible)
        state = controller.observe(state, tokens, float(reward(tokens)))
        seen.append(tokens)
    return seen, state


@each
def test_the_same_seed_gives_the_same_sequence_and_another_seed_another(make):
    one, two, other = (steps(make(), 30, seed=seed)[0] for seed in (1, 1, 2))
    assert one == two != other


@each
def test_a_state_that_went_through_json_goes_on_alike(make):
    controller = make()
    _, state = steps(controller, 11)
    copy = type(state)(**json.loads(json.dumps(state._asdict())))
    assert steps(controller, 20, state=copy)[0] == steps(controller, 20, state=state)[0]


@each
def test_proposals_are_feasible_and_within_the_choices(make):
    seen, _ = steps(make(), 60, small)
    assert all(map(small, seen))
    assert all(
        0 <= t < n for tokens in seen for t, n in zip(tokens, SIZES, strict=True)
    )
    assert all(type(t) is int for tokens in seen for t in tokens)


@each
def test_propose_and_observe_are_pure(make):
    controller = make()
    _, state = steps(controller, 7)
    one, two = (controller.propose(state, small) for _ in range(2))
    assert one == two
    assert controller.observe(state, one[0], 1.0) == controller.observe(
        state, one[0], 1.0
    )
    json.dumps(controller.settings)


def test_annealing_changes_one_position_of_the_current_tokens():
    controller = MAKERS["anneal"]()
    state = controller.init(3)
    for _ in range(40):
        before = state.current
        tokens, state = controller.propose(state, _controller.anything)
        changed = sum(a != b for a, b in zip(before, tokens, strict=True))
        assert changed == (1 if state.proposed > 1 else 0)
        state = controller.observe(state, tokens, float(sum(tokens)))


def test_a_worse_reward_is_accepted_as_often_as_metropolis_says():
    controller = search.anneal((2,), (0,), initial_temperature=0.5, rescale=False)
    accepted = []
    for seed in range(2000):
        state = controller.observe(controller.init(seed), (0,), 1.0)
        state = controller.observe(state._replace(heat=0), (1,), 0.7)
        accepted.append(state.current == (1,))
    p = math.exp(-0.3 / 0.5)
    assert abs(np.mean(accepted) - p) < 4 * math.sqrt(p * (1 - p) / 2000)


def test_the_temperature_falls_by_the_rate_until_only_better_ones_are_taken():
    rate = 0.5
    controller = search.anneal((2,), (0,), reduce_rate=rate, rescale=False)
    state = controller.observe(controller.init(0), (0,), 1.0)
    for k in range(1, 30):
        assert state.heat == k
        state = controller.observe(state, (1,), 1.0 - 1e-3)
        # exp(-1e-3 / 2^-k) is below 1e-100 from k = 18 on.
        if k >= 18:
            assert state.current == (0,)
        state = state._replace(current=(0,), reward=1.0)
    assert controller.observe(state, (1,), 1.0).current == (1,)  # equal is accepted


def test_rescaled_annealing_does_not_depend_on_the_unit_of_rewards():
    worth = lambda unit: lambda tokens: unit * (tokens[0] - 0.5 * tokens[1] ** 2)
    controller = search.anneal(SIZES, (0, 0, 0))
    sequences = [steps(controller, 50, reward=worth(u))[0] for u in (1, 0.125, 64)]
    assert sequences[0] == sequences[1] == sequences[2]
    controller = search.anneal(SIZES, (0, 0, 0), rescale=False)
    sequences = [steps(controller, 50, reward=worth(u))[0] for u in (1, 0.125, 64)]
    assert sequences[0] != sequences[2]


def test_the_deviation_is_that_of_the_rewards_seen():
    rewards = np.random.default_rng(0).normal(3, 2, 40)
    controller, state = MAKERS["anneal"](), None
    state = controller.init(0)
    for reward in rewards:
        state = controller.observe(state, (0, 0, 0), reward)
    np.testing.assert_allclose(state.mean, rewards.mean())
    np.testing.assert_allclose(math.sqrt(state.squares / 40), rewards.std())


def test_reheating_goes_back_to_the_best_and_to_the_first_temperature():
    controller = search.anneal(SIZES, (0, 0, 0), reheat=3, initial_temperature=1e6)
    state = controller.observe(controller.init(0), (0, 0, 1), 5.0)
    for k, tokens in enumerate([(1, 0, 0), (2, 0, 0)], start=2):
        state = controller.observe(state, tokens, 1.0)
        assert (state.heat, state.current) == (k, tokens)
    state = controller.observe(state, (3, 0, 0), 1.0)
    assert (state.heat, state.idle) == (0, 0)
    assert (state.current, state.reward) == ((0, 0, 1), 5.0)


def test_no_temperature_and_no_difference():
    assert _anneal.accepts(1.0, 1.0, 0.0, 0.5)
    assert not _anneal.accepts(0.9, 1.0, 0.0, 0.0)
    assert _anneal.accepts(-9.0, None, 0.0, 0.5)


def test_the_oldest_member_dies_not_the_worst():
    controller = search.evolve((9,), population=3, tournament=3)
    state = controller.init(0)
    for token, reward in ((0, 9.0), (1, 1.0), (2, 2.0), (3, 0.0)):
        state = controller.observe(state, (token,), reward)
    assert [tokens for tokens, _ in state.members] == [(1,), (2,), (3,)]


def test_the_parent_is_the_best_of_a_large_tournament():
    controller = search.evolve(SIZES, population=3, tournament=60)
    state = controller.init(0)._replace(proposed=3)
    for tokens, reward in (((0, 0, 0), 1.0), ((3, 2, 4), 5.0), ((1, 1, 1), 2.0)):
        state = controller.observe(state, tokens, reward)
    for seed in range(20):
        child, _ = controller.propose(state._replace(seed=seed), _controller.anything)
        assert sum(a != b for a, b in zip(child, (3, 2, 4), strict=True)) == 1


def test_a_neighbour_is_drawn_as_if_by_rejection():
    counts = Counter(
        _controller.neighbour(np.random.default_rng(seed), (0, 0, 0), SIZES, odd)
        for seed in range(4000)
    )
    # One of three positions, then one of its other values; the infeasible drop out.
    chances = {}
    for place, value in itertools.product(range(3), range(1, 5)):
        tokens = tuple(value if p == place else 0 for p in range(3))
        if value < SIZES[place] and odd(tokens):
            chances[tokens] = 1 / 3 / (SIZES[place] - 1)
    total = sum(chances.values())
    assert counts.keys() == chances.keys()
    for tokens, chance in chances.items():
        p = chance / total
        assert abs(counts[tokens] / 4000 - p) < 4.5 * math.sqrt(p * (1 - p) / 4000)


def odd(tokens):
    return sum(tokens) % 2 == 1


def test_uniform_draws_are_uniform_among_the_feasible():
    rng, n = np.random.default_rng(0), 3000
    drawn = Counter(_controller.uniform(rng, (2, 3), odd, 99) for _ in range(n))
    assert drawn.keys() == {(0, 1), (1, 0), (1, 2)}
    assert all(abs(count / n - 1 / 3) < 0.04 for count in drawn.values())


def test_a_sample_has_no_token_twice_and_obeys():
    drawn = search.sample(SIZES, 20, feasible=small, seed=1)
    assert len(set(drawn)) == 20 and all(map(small, drawn))
    with pytest.raises(RuntimeError, match="none of 50 uniform draws"):
        search.sample((2, 2), 5, tries=50)


def test_what_cannot_be_found_is_said_rather_than_answered_infeasibly():
    never = lambda tokens: False
    for make in (MAKERS["random"], MAKERS["evolve"]):
        controller = make(tries=20)
        with pytest.raises(RuntimeError, match="none of 20 uniform draws was feasible"):
            controller.propose(controller.init(0), never)
    for make in (MAKERS["anneal"], MAKERS["evolve from a start"]):
        controller = make()
        with pytest.raises(
            ValueError, match=r"start must be feasible, got \(0, 0, 0\)"
        ):
            controller.propose(controller.init(0), never)
        alone = lambda tokens: tokens == (0, 0, 0)
        _, state = controller.propose(controller.init(0), alone)
        with pytest.raises(RuntimeError, match="none of the 9 tokens that differ"):
            controller.propose(state, alone)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: search.anneal((), ()), "choices must have at least one position"),
        (lambda: search.anneal((1, 1), (0, 0)), "something to choose"),
        (lambda: search.anneal((2, 0), (0, 0)), "choices must be >= 1, got 0"),
        (lambda: search.anneal((2, 2), (0,)), "start must be 2 tokens, got 1"),
        (lambda: search.anneal((2, 2), (0, 2)), r"start\[1\] must be below its 2"),
        (lambda: search.anneal((2,), (0,), reduce_rate=1.0), "reduce_rate must be in"),
        (
            lambda: search.anneal((2,), (0,), initial_temperature=0.0),
            "initial_temperature must be finite and > 0",
        ),
        (lambda: search.anneal((2,), (0,), reheat=0), "reheat must be >= 1"),
        (lambda: search.anneal((2,), (0,)).init(-1), "seed must be >= 0"),
        (lambda: search.evolve((2,), population=0), "population must be >= 1"),
        (lambda: search.evolve((2,), tournament=0), "tournament must be >= 1"),
        (lambda: search.random_search((2,), tries=0), "tries must be >= 1"),
    ],
)
def test_wrong_numbers_are_refused_at_once(make, message):
    with pytest.raises(ValueError, match=message):
        make()
