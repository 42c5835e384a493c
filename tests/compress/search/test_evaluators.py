"""What candidates are worth: trainings, proxies, halving; regret on a known table."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkd import data, distill, losses, models
from jaxkd.compress import search
from jaxkd.compress.search import _evaluators
from jaxkd.data import augment
from tests import toys
from tests.compress.search import tabular

WIDTHS = search.Space(
    "mlp", {"width": (1, 24)}, lambda width: models.mlp([width], classes=5)
)
COURSE = search.Course(
    data.on_device(toys.dataset(200)),
    data.on_device(toys.dataset(100, seed=1)),
    augment.to_float(),
    augment.to_float(),
    optax.adam(2e-2),
    20,
)


@pytest.mark.slow
def test_a_short_training_tells_a_network_that_can_learn_from_one_that_cannot():
    evaluate = search.short_training(WIDTHS, COURSE, epochs=8, seeds=2)
    narrow, wide = evaluate((0,)), evaluate((1,))
    assert wide["reward"] > 0.6 > narrow["reward"]
    assert len(wide["accuracy"]) == 2 and not wide["diverged"]
    assert wide["reward"] == pytest.approx(np.mean(wide["accuracy"]))
    assert evaluate((1,)) == wide  # a resumed search depends on it


def test_a_training_is_the_librarys_own():
    """The program against `train.fit` step by step, from the same keys."""
    from jaxkd import evaluate, train

    net = WIDTHS.net((1,))
    accuracy, loss = search.trained(net, COURSE, 2, 1, first_seed=3)
    d = distill.distiller(net, COURSE.teacher, COURSE.spec, COURSE.tx)
    init_key, order_key = jax.random.split(_evaluators.key_of(3))
    state = d.init(init_key, None, train.example(COURSE.resident, COURSE.plain))
    epoch = jax.jit(train.make_epoch(d, view=COURSE.view, batch_size=20))
    for e, key in enumerate(jax.random.split(order_key, 2)):
        state, metrics = epoch(state, None, COURSE.resident, key)
        np.testing.assert_allclose(metrics["loss"].mean(), loss[0, e], rtol=1e-5)
    found = evaluate.scorer(net, COURSE.held_out, view=COURSE.plain)(state)
    np.testing.assert_allclose(found["accuracy"], accuracy[0])


@pytest.mark.slow
def test_a_teacher_shows_in_the_reward():
    """Labels that say nothing, and a teacher whose logits say everything."""
    resident = dict(COURSE.resident)
    resident["teacher"] = 9.0 * jax.nn.one_hot(resident["label"], 5)
    resident["label"] = jnp.zeros_like(resident["label"])
    kd = distill.on_logits(losses.kd, temperature=2.0)
    taught = COURSE._replace(
        resident=resident, spec={"kd": (1.0, kd)}, teacher=distill.cached
    )
    alone = COURSE._replace(resident=resident)
    rewards = [
        search.short_training(WIDTHS, course, epochs=8)((1,))["reward"]
        for course in (taught, alone)
    ]
    assert rewards[0] > 0.45 > 0.35 > rewards[1]  # chance is 0.2


def test_a_training_that_diverges_fails():
    wild = COURSE._replace(tx=optax.sgd(float("inf")))
    evaluate = search.short_training(WIDTHS, wild, epochs=2)
    with pytest.raises(FloatingPointError, match="the loss is nan in epoch 1: lower"):
        evaluate((1,))
    with pytest.raises(RuntimeError, match="all 1 candidates failed; .*Floating"):
        search.run(search.in_order([(1,)]), evaluate, budget=1)


def test_synflow_of_a_net_without_biases_has_a_closed_form():
    def apply(params, state, x, *, train, key=None):
        hidden = jax.nn.relu(x.reshape(len(x), -1) @ params["a"])
        return models.net.Outputs(hidden @ params["b"], {}), state

    rng = np.random.default_rng(0)
    params = {
        "a": jnp.asarray(rng.normal(size=(4, 3)), jnp.float32),
        "b": jnp.asarray(rng.normal(size=(3, 2)), jnp.float32),
    }
    flow = (np.abs(params["a"]) @ np.abs(params["b"])).sum()
    # R is linear in each of the two layers, so that each of them adds R.
    score = search.synflow(models.Net(None, apply), params, {}, (2, 2, 1))
    np.testing.assert_allclose(score, math.log(2 * flow), rtol=1e-5)
    nothing = jax.tree.map(jnp.zeros_like, params)
    none = search.synflow(models.Net(None, apply), nothing, {}, (2, 2, 1))
    assert none == -np.inf


def test_naswot_against_its_definition():
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(6, 2, 2, 3)), rng.normal(size=(6, 7))
    codes = np.concatenate([m.reshape(6, -1) > 0 for m in maps], 1)
    kernel = [[19 - np.sum(a != b) for b in codes] for a in codes]
    score = search.naswot([jnp.asarray(m, jnp.float32) for m in maps])
    np.testing.assert_allclose(score, np.linalg.slogdet(kernel)[1], rtol=1e-4)
    same = jnp.ones((3, 4))
    assert search.naswot([same]) == -np.inf


@pytest.mark.parametrize("kind", ["naswot", "synflow"])
def test_proxies_score_candidates_without_training(kind):
    # An mlp's taps are its hidden layers, after their ReLUs.
    space = WIDTHS._replace(choices={"width": (8, 64)})
    taps = [*jax.eval_shape(*_forward(space.net((0,)))).taps]
    images = jnp.asarray(np.random.default_rng(0).normal(size=(6, 4, 4, 3)), "float32")
    evaluate = search.proxy(space, images, kind=kind, taps=taps[:1])
    narrow, wide = evaluate((0,))["reward"], evaluate((1,))["reward"]
    assert -1e30 < narrow < wide < 1e30
    assert evaluate((0,))["reward"] == narrow


def _forward(net):
    x = jnp.zeros((1, 4, 4, 3))
    params, state = net.init(jax.random.key(0), x)
    return lambda x: net.apply(params, state, x, train=False)[0], x


def test_halving_keeps_the_best_and_gives_them_more(tmp_path):
    table, asked = tabular.table((4, 4, 4)), []

    def evaluate(tokens, effort):
        asked.append((tokens, effort))
        return table.reward(tokens)

    candidates = search.sample(table.sizes, 20)
    journal = lambda rung: tmp_path / f"{rung}.jsonl"
    rungs = search.successive_halving(
        candidates, evaluate, least=2, eta=3, journal=journal
    )
    assert [(r.effort, len(r.trials)) for r in rungs] == [
        (2, 20),
        (6, 6),
        (18, 2),
        (54, 1),
    ]
    (winner,) = rungs[-1].trials
    assert winner.reward == max(map(table.reward, candidates))
    ranked = sorted(candidates, key=table.reward, reverse=True)
    assert {t.tokens for t in rungs[1].trials} == set(ranked[:6])
    before = len(asked)
    again = search.successive_halving(
        candidates, evaluate, least=2, eta=3, journal=journal
    )
    assert again == rungs and len(asked) == before == 29


def test_the_optimum_of_a_table_is_known():
    table = tabular.table((3, 2, 4), seed=5)
    everything = list(itertools.product(range(3), range(2), range(4)))
    assert (
        table.optimum()[1] == max(map(table.reward, everything)) == table.rewards.max()
    )
    few = lambda tokens: table.cost(tokens) <= 2
    tokens, reward = table.optimum(few)
    assert sum(tokens) <= 2 and reward == max(
        map(table.reward, filter(few, everything))
    )


def test_without_ruggedness_positions_are_independent():
    table = tabular.table((3, 4, 2), rugged=0.0)
    r = table.rewards
    np.testing.assert_allclose(r[1, 2, 1] - r[0, 2, 1], r[1, 0, 0] - r[0, 0, 0])
    rugged = tabular.table((3, 4, 2)).rewards
    assert (
        abs(rugged[1, 2, 1] - rugged[0, 2, 1] - rugged[1, 0, 0] + rugged[0, 0, 0]) > 0.1
    )


@pytest.mark.parametrize("limited", [False, True], ids=["free", "limited"])
def test_annealing_and_evolution_beat_random_search_at_equal_budget(limited):
    table = tabular.table()
    feasible = (
        (lambda tokens: table.cost(tokens) <= 12) if limited else (lambda _: True)
    )
    controllers = {
        "random": search.random_search(table.sizes),
        "anneal": search.anneal(table.sizes, (0,) * 5),
        "evolve": search.evolve(table.sizes),
    }
    found = tabular.regrets(table, controllers, budget=100, seeds=50, feasible=feasible)
    assert all((values >= -1e-9).all() for values in found.values())
    medians = {name: np.median(values) for name, values in found.items()}
    assert medians["anneal"] < medians["random"]
    assert medians["evolve"] < medians["random"]


@pytest.mark.bad_input
def test_wrong_numbers_are_refused():
    with pytest.raises(ValueError, match="epochs must be >= 1, got 0"):
        search.short_training(WIDTHS, COURSE, epochs=0)
    with pytest.raises(ValueError, match="seeds must be >= 1, got 0"):
        search.short_training(WIDTHS, COURSE, epochs=1, seeds=0)
    with pytest.raises(ValueError, match="kind must be 'naswot' or 'synflow'"):
        search.proxy(WIDTHS, jnp.zeros((2, 4, 4, 3)), kind="naswat")
    with pytest.raises(ValueError, match="eta must be >= 2"):
        search.successive_halving([(0,)], lambda t, e: 0.0, least=1, eta=1)
    with pytest.raises(ValueError, match="candidates must be different"):
        search.successive_halving([(0,), (0,)], lambda t, e: 0.0, least=1)
    with pytest.raises(ValueError, match="candidates must be feasible"):
        search.successive_halving(
            [(0,)], lambda t, e: 0.0, least=1, feasible=lambda tokens: False
        )
    assert _evaluators.LABELS.keys() == {"ce"}
