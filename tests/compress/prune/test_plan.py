"""Removing and masking: variables, optimisers' states, averages, whole states."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkd import cost, distill
from jaxkd.compress import prune
from jaxkd.models.mlp import mlp
from jaxkd.models.net import from_linen
from tests.compress.prune.nets import some
from tests.toys import Toy, labels_only, teacher_variables

NET = from_linen(Toy(6))
PARAMS, STATE = NET.init(jax.random.key(0), jnp.ones((1, 4, 4, 3)))
PLAN = prune.analyse_net(NET, PARAMS, STATE, (4, 4, 3))
DROPPED = [1, 2, 5]
LEFT = np.array([0, 3, 4])


def shapes(tree):
    return jax.tree.map(np.shape, tree)


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_removal_takes_the_entries_out_and_nothing_else():
    params, state = PLAN.apply((PARAMS, STATE), DROPPED)
    assert [group.name for group in PLAN.groups] == ["Dense_0"]
    same(params["Dense_0"]["kernel"], PARAMS["Dense_0"]["kernel"][:, LEFT])
    same(params["Dense_0"]["bias"], PARAMS["Dense_0"]["bias"][LEFT])
    same(params["Dense_1"]["kernel"], PARAMS["Dense_1"]["kernel"][LEFT])
    same(params["Dense_1"]["bias"], PARAMS["Dense_1"]["bias"])
    before = STATE["batch_stats"]["BatchNorm_0"]
    after = state["batch_stats"]["BatchNorm_0"]
    same(after, {k: v[LEFT] for k, v in before.items()})


def test_masks_are_zeros_where_removal_takes_out():
    ones = jax.tree.map(jnp.ones_like, (PARAMS, STATE))
    masked = PLAN.mask(ones, DROPPED)
    assert shapes(masked) == shapes(ones)
    removed = PLAN.apply(masked, DROPPED)
    assert all((a == 1).all() for a in jax.tree.leaves(removed))
    # What is left of the mask is all that is not zero.
    for a, b in zip(jax.tree.leaves(masked), jax.tree.leaves(removed), strict=True):
        assert a.sum() == b.size


def test_one_compilation_masks_any_units():
    traces = []

    @jax.jit
    def mask(params, keep):
        traces.append(0)
        return PLAN.mask(params, keep=keep)

    for dropped in ([], [0], DROPPED):
        same(mask(PARAMS, PLAN.keep(dropped)), PLAN.mask(PARAMS, dropped))
    assert len(traces) == 1
    each = jnp.asarray([PLAN.keep([i]) for i in range(PLAN.units)])
    stacked = jax.vmap(lambda keep: PLAN.mask(PARAMS, keep=keep))(each)
    same(jax.tree.map(lambda a: a[4], stacked), PLAN.mask(PARAMS, [4]))


def test_gradients_go_through_a_mask():
    loss = lambda p: sum(a.sum() for a in jax.tree.leaves(PLAN.mask(p, DROPPED)))
    same(
        jax.grad(loss)(PARAMS), PLAN.mask(jax.tree.map(jnp.ones_like, PARAMS), DROPPED)
    )


def test_removal_is_the_same_of_arrays_specs_numpy_and_tracers():
    variables = {"params": PARAMS, "state": STATE}
    expected = PLAN.apply(variables, DROPPED)
    specs = PLAN.apply(jax.eval_shape(lambda: variables), DROPPED)
    assert shapes(expected) == shapes(specs)
    host = PLAN.apply(jax.tree.map(np.asarray, variables), keep=PLAN.keep(DROPPED))
    assert all(isinstance(a, np.ndarray) for a in jax.tree.leaves(host))
    same(expected, host)
    same(expected, jax.jit(lambda v: PLAN.apply(v, DROPPED))(variables))
    same(PLAN.apply(variables), variables)


def test_a_whole_training_state_is_pruned_and_trains_on():
    x = jax.random.normal(jax.random.key(1), (8, 4, 4, 3))
    batch = {"image": x, "label": jnp.arange(8) % 5}
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2))
    build = lambda net: distill.distiller(net, distill.no_teacher, labels_only, tx)
    d = build(NET)
    begin = lambda key: d.step(d.init(key, None, batch), None, batch)[0]
    state = jax.jit(begin)(jax.random.key(0))
    small = PLAN.apply(state, DROPPED)
    params, moments = small.params["student"], small.opt_state[1][0]
    assert shapes(small.params) == shapes(moments.mu) == shapes(moments.nu)
    assert params["Dense_1"]["kernel"].shape == (3, 5)
    assert moments.mu["student"]["Dense_1"]["kernel"].any()
    assert small.step == moments.count == 1
    after, metrics = jax.jit(build(prune.resized(NET)).step)(small, None, batch)
    assert shapes(after) == shapes(small) and np.isfinite(metrics["loss"])
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), after.params, small.params)
    assert all(jax.tree.leaves(moved))


@pytest.mark.parametrize(
    "tx",
    [
        optax.adam(1e-2),
        optax.sgd(0.1, momentum=0.9, nesterov=True),
        optax.chain(optax.add_decayed_weights(1e-2), optax.rmsprop(1e-2)),
        optax.masked(optax.adam(1e-2), lambda p: {k: k == "Dense_0" for k in p}),
        optax.partition(
            {"a": optax.adam(1e-2), "b": optax.sgd(0.1, momentum=0.9)},
            lambda p: {k: "a" if k == "Dense_0" else "b" for k in p},
        ),
    ],
    ids=["adam", "momentum", "decayed_rmsprop", "masked", "partition"],
)
def test_a_step_after_pruning_is_the_masked_networks_step(tx):
    """With moments that are not at their start, pruned along."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    noise = jax.tree.map(lambda a: draw(*a.shape), PARAMS)
    opt = jax.jit(lambda g, p: tx.update(g, tx.init(p), p)[1])(noise, PARAMS)
    x, target = draw(8, 4, 4, 3), draw(8, 5)

    def step(net, params, state, opt):
        def loss(params):
            out, _ = net.apply(params, state, x, train=False)
            return ((out.logits - target) ** 2).mean()

        updates, opt = tx.update(jax.grad(loss)(params), opt, params)
        return optax.apply_updates(params, updates), opt

    step = jax.jit(step, static_argnums=0)
    masked = step(NET, *PLAN.mask((PARAMS, STATE, opt), DROPPED))
    pruned = step(prune.resized(NET), *PLAN.apply((PARAMS, STATE, opt), DROPPED))
    assert shapes(pruned) == shapes(PLAN.apply(masked, DROPPED))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        pruned,
        PLAN.apply(masked, DROPPED),
    )


def test_costs_are_those_of_the_pruned_trees_whichever_units_go():
    net = mlp([8, 12], classes=3)
    params, state = net.init(jax.random.key(0), jnp.ones((1, 2, 2, 1)))
    plan = prune.analyse_net(net, params, state, (2, 2, 1))
    for seed in range(5):
        dropped = some(plan, 0.1 + 0.15 * seed, seed)
        left = plan.apply(params, dropped)
        kept = plan.kept(dropped)
        # 4 * a + a * b + b * 3 products of inputs, a and b hidden units and classes.
        a, b = (int(n) for n in kept)
        assert plan.macs(dropped) == 4 * a + a * b + 3 * b
        assert plan.params(dropped) == cost.parameters(left)
        assert plan.bytes(dropped) == 4 * plan.params(dropped)
        assert plan.cost(kept) == (
            plan.params(dropped),
            plan.macs(dropped),
            plan.bytes(dropped),
        )
        keep = plan.keep(dropped)
        assert keep.sum() == sum(kept) and not keep[dropped].any()
        assert plan.macs(keep=keep) == plan.macs(dropped)


def test_bytes_follow_the_types():
    weights = {"a": jnp.ones((2, 4), jnp.bfloat16), "b": jnp.ones((4, 3))}
    plan = prune.analyse(lambda w, x: x @ w["a"] @ w["b"], weights, jnp.ones((1, 2)))
    assert plan.bytes() == 2 * 8 + 4 * 12 and plan.bytes([0]) == 2 * 6 + 4 * 9


def test_groups_are_found_by_name():
    assert PLAN.group("Dense_0") is PLAN.groups[0]
    with pytest.raises(KeyError, match="no group 'dense'; there are"):
        PLAN.group("dense")


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("dropped", "says"),
    [
        ([6], "from 0 to 5"),
        ([-1], "from 0 to 5"),
        ([1, 1], "more than once"),
        ([0.5], "numbers of units"),
        (np.ones(6, bool), "give booleans as keep="),
        (range(6), "would lose all its units"),
    ],
)
def test_wrong_units_are_refused(dropped, says):
    for remove in (PLAN.apply, PLAN.mask):
        with pytest.raises(ValueError, match=says):
            remove(PARAMS, dropped)


@pytest.mark.bad_input
@pytest.mark.parametrize("keep", [np.ones(5, bool), np.ones((6, 1), bool)])
def test_wrong_vectors_are_refused(keep):
    for remove in (PLAN.apply, PLAN.mask):
        with pytest.raises(ValueError, match=r"shape \(6,\)"):
            remove(PARAMS, keep=keep)
    with pytest.raises(ValueError, match="without dropped"):
        PLAN.apply(PARAMS, [0], keep=np.ones(6, bool))


@pytest.mark.bad_input
def test_a_tree_without_the_variables_or_with_others_is_refused():
    with pytest.raises(ValueError, match="nothing with the structure"):
        PLAN.apply({"a": jnp.ones(6)}, DROPPED)
    with pytest.raises(ValueError, match=r"shape \(9,\).*of another network"):
        PLAN.apply(teacher_variables()[0], DROPPED)
    with pytest.raises(ValueError, match="is pruned already"):
        PLAN.apply(PLAN.apply(PARAMS, DROPPED), [0])
    with pytest.raises(ValueError, match="Adafactor"):
        tx = optax.adafactor(1e-2, min_dim_size_to_factor=2)
        PLAN.apply(tx.init(PARAMS), DROPPED)
    with pytest.raises(ValueError, match="one number for each of 1 groups"):
        PLAN.cost([1, 2])
