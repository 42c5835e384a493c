"""Weights that change networks: what is copied, what is named, what moves."""

import functools

import flax.linen as nn
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkd import _tree, checkpoint, data, distill, report, train, transfer
from jaxkd.models import mlp
from jaxkd.models.net import from_linen
from tests import toys

X = np.zeros((2, 4, 4, 3), np.float32)
OTHER_HEAD = from_linen(toys.Toy(6, classes=7))


@functools.cache
def made(net, seed=0):
    """Variables in which no leaf is what another seed has."""
    variables = jax.jit(net.init)(jax.random.key(seed), X)
    return jax.tree.map(lambda a: np.asarray(a) + np.float32(0.1 * seed), variables)


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def bits(tree):
    """The bits of every leaf, so that 0.0 and -0.0 differ."""
    return jax.tree.map(lambda a: np.asarray(a).view(np.uint32), tree)


def flat(variables):
    return _tree.flatten(variables[0]) | _tree.flatten(variables[1])


# What is copied, and what is said of it.


def test_a_copy_to_itself_is_the_identity():
    variables = made(toys.student)
    found, told = transfer.copy(variables, variables, strict=True)
    assert jax.tree.structure(found) == jax.tree.structure(variables)
    same(found, variables)
    assert told.complete and set(told.copied) == set(flat(variables))


def test_parameters_and_statistics_go_together():
    source = made(toys.student, 1)
    found, told = transfer.copy(source, made(toys.student, 2))
    same(found, source)
    assert "batch_stats/BatchNorm_0/mean" in told.copied


def test_a_new_head_is_the_targets_own():
    source, target = made(toys.student, 1), made(OTHER_HEAD, 2)
    found, told = transfer.copy(source, target, exclude="Dense_1/*", strict=True)
    same(found[0]["Dense_1"], target[0]["Dense_1"])
    same(found[0]["Dense_0"], source[0]["Dense_0"])
    assert told.excluded == ("Dense_1/bias", "Dense_1/kernel")
    # Also where the shapes would have allowed a copy.
    target = made(toys.student, 2)
    found, _ = transfer.copy(source, target, exclude=["Dense_1/*"])
    same(found[0]["Dense_1"], target[0]["Dense_1"])


names = st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=2).map("/".join)
shapes = st.sampled_from([(), (1,), (2,), (2, 3), (3, 2), (1, 2), (6,)])
# A leaf cannot also be a folder: single letters are leaves, pairs are under capitals.
networks = st.dictionaries(names.map(lambda n: n.replace("/", "X/")), shapes)


@hypothesis.given(networks, networks, st.sampled_from([(), "*a", ["b", "*X/c"]]))
@hypothesis.settings(deadline=None, max_examples=100)
def test_the_report_names_every_leaf_once_and_nothing_of_another_shape(
    source, target, exclude
):
    tree = lambda net, value: {
        name: np.full(shape, value, np.float32) for name, shape in net.items()
    }
    every = {**source, **target}
    patterns = [exclude] if isinstance(exclude, str) else exclude
    hypothesis.assume(all(any(_tree.matches(n, p) for n in every) for p in patterns))
    old, new = (tree(source, 1.0), {}), (tree(target, 2.0), {})
    told = transfer.match(old, new, exclude=exclude)
    named = [row["leaf"] for row in told.rows()]
    assert sorted(named) == sorted(every)
    excluded = {name for name in every if _tree.matches(name, patterns)}
    both = set(source) & set(target) - excluded
    assert set(told.excluded) == excluded
    assert set(told.missing) == set(target) - set(source) - excluded
    assert set(told.unused) == set(source) - set(target) - excluded
    assert set(told.copied) == {n for n in both if source[n] == target[n]}
    assert set(told.mismatched) == {
        (n, source[n], target[n]) for n in both if source[n] != target[n]
    }


@pytest.mark.parametrize("odd", ["source", "target"])
def test_strict_refuses_what_only_one_of_the_two_has(odd):
    pair = {"source": {"a": jnp.ones(1)}, "target": {"a": jnp.ones(1)}}
    source, target = (pair["source"], {}), (pair["target"], {})
    assert transfer.copy(source, target, strict=True)[1].complete
    pair[odd]["b"] = jnp.ones(1)
    with pytest.raises(ValueError, match=r"not complete:(.|\n)*(unused|missing) 1: b"):
        transfer.copy(source, target, strict=True)
    assert transfer.copy(source, target, strict=True, exclude="b")[1].complete


def test_what_is_not_copied_stays_the_targets():
    source = {"square": jnp.ones((2, 3)), "row": jnp.ones((1, 2)), "own": jnp.ones(2)}
    target = {"square": jnp.zeros((3, 2)), "row": jnp.zeros(2), "new": jnp.zeros(())}
    (found, _), told = transfer.copy((source, {}), (target, {}))
    same(found, target)
    assert told.copied == () and not told.complete
    assert told.mismatched == (
        ("row", (1, 2), (2,)),
        ("square", (2, 3), (3, 2)),
    )
    assert str(told).splitlines() == [
        "* missing 1: new",
        "* unused 1: own",
        "* mismatched 2: row (1, 2) to (2,), square (2, 3) to (3, 2)",
    ]
    assert "| square | mismatched | (2, 3) to (3, 2) |" in report.markdown(told.rows())


@pytest.mark.parametrize(
    "rename",
    [
        {"hidden1": "hidden2", "hidden2": "hidden1"},
        lambda path: path.translate(str.maketrans("12", "21")),
    ],
    ids=["dict", "function"],
)
def test_renamed_layers_go_where_they_are_sent(rename):
    net = mlp([48, 48], classes=2)
    source, target = made(net, 1), made(net, 2)
    found, told = transfer.copy(source, target, rename=rename)
    same(found[0]["hidden1"], source[0]["hidden2"])
    same(found[0]["hidden2"], source[0]["hidden1"])
    same(found[0]["head"], source[0]["head"])
    assert told.complete


def test_the_longest_beginning_is_renamed_and_the_unused_keep_their_names():
    source = {"a": {"b": jnp.ones(1), "bc": jnp.ones(2), "d": jnp.ones(3)}}
    told = transfer.match(
        (source, {}),
        ({"x": {"d": jnp.zeros(3)}, "y": jnp.zeros(1)}, {}),
        rename={"a": "x", "a/b": "y"},
    )
    assert set(told.copied) == {"x/d", "y"} and told.unused == ("a/bc",)


def test_floats_are_cast_to_the_targets_type():
    source = {"w": jnp.asarray([1.0, 1 / 3], jnp.float32)}
    target = {"w": jnp.zeros(2, jnp.bfloat16)}
    (found, _), _ = transfer.copy((source, {}), (target, {}), strict=True)
    assert found["w"].dtype == jnp.bfloat16
    same(found["w"], source["w"].astype(jnp.bfloat16))


def test_a_copy_for_every_seed_and_for_shapes_alone():
    source, keys = made(toys.student, 1), jax.random.split(jax.random.key(0), 3)
    fresh = jax.jit(jax.vmap(OTHER_HEAD.init, in_axes=(0, None)))(keys, X)
    one = lambda own: transfer.copy(source, own, exclude="Dense_1/*")[0]
    found = jax.jit(jax.vmap(one))(fresh)
    same(found[0]["Dense_1"], fresh[0]["Dense_1"])
    for kernel in found[0]["Dense_0"]["kernel"]:
        same(kernel, source[0]["Dense_0"]["kernel"])
    abstract = jax.eval_shape(OTHER_HEAD.init, keys[0], X)
    told = transfer.match(source, abstract)
    assert [path for path, *_ in told.mismatched] == ["Dense_1/bias", "Dense_1/kernel"]


# Warm starts: training from copied weights.


@pytest.fixture(scope="module")
def world():
    resident = data.on_device(toys.dataset())
    return resident, train.example(resident, toys.view, 8)


def test_fine_tuning_and_distilling_at_once(world):
    """The copied weights, the terms' fresh ones: a state like any other."""
    resident, batch = world
    tx, variables = optax.adamw(0.01), toys.teacher_variables()
    teacher = distill.frozen(toys.teacher)
    d = distill.distiller(toys.student, teacher, toys.spec, tx)
    fresh = jax.jit(d.init)(jax.random.key(0), variables, batch)
    source = jax.tree.map(jnp.array, made(toys.student, 3))
    state = transfer.warm_start(fresh, source, tx)
    same((state.params["student"], state.state["student"]), source)
    same(state.params["terms"], fresh.params["terms"])
    assert state.key == fresh.key and state.step == fresh.step == 0
    assert jax.tree.structure(state) == jax.tree.structure(fresh)
    epoch = train.make_epoch(d, view=toys.view, batch_size=8)
    key = jax.random.key(1)
    done = train.fit(epoch, state, variables, resident, key=key, epochs=20)
    losses = [row["loss/ce"] for row in done.history]
    assert losses[-1] < 0.8 * losses[0]
    # `fit` donated the warm state, not the weights that it was made of.
    kept = (source, fresh.params["student"], fresh.state["student"])
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(kept))


def test_a_copy_survives_the_training_of_what_was_made_from_it():
    variables = jax.tree.map(jnp.array, made(toys.student, 1))
    found, _ = transfer.copy(variables, variables, exclude="Dense_1/*")
    jax.jit(lambda tree: jax.tree.map(lambda a: a + 1, tree), donate_argnums=0)(found)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(variables))


def test_a_warm_start_of_several_seeds(world):
    _, batch = world
    tx = optax.ema(0.9)  # any state will do
    d = distill.distiller(toys.student, distill.no_teacher, toys.labels_only, tx)
    keys = jax.random.split(jax.random.key(0), 3)
    init = jax.jit(jax.vmap(d.init, in_axes=(0, None, None)))
    fresh = init(keys, None, batch)
    source = made(toys.student, 3)
    stacked = jax.tree.map(lambda a: jnp.stack([a, a, a]), source)
    for variables in (source, stacked):
        state = transfer.warm_start(fresh, variables, tx)
        same((state.params["student"], state.state["student"]), stacked)
        jax.tree.map(
            lambda a, b: np.testing.assert_array_equal(a.shape, b.shape), state, fresh
        )


def test_the_optimiser_of_a_warm_start_starts_from_the_new_weights(world):
    """An optimiser that keeps the first weights must keep the copied ones."""
    _, batch = world
    remembers = optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.array, params), lambda g, s, p=None: (g, s)
    )
    d = distill.distiller(toys.student, distill.no_teacher, toys.labels_only, remembers)
    fresh = jax.jit(d.init)(jax.random.key(0), None, batch)
    source = made(toys.student, 3)
    state = transfer.warm_start(fresh, source, remembers)
    same(state.opt_state["student"], source[0])


# Which leaves move.


@pytest.fixture(scope="module")
def descent(world):
    """A start, and three steps of a real training that any optimiser can take.

    Returns:
      The parameters, the gradients there, and `tx -> (parameters, state) after`.
    """
    _, batch = world
    variables, teacher = toys.teacher_variables(), distill.frozen(toys.teacher)
    unit = distill.distiller(toys.student, teacher, toys.spec, optax.sgd(1.0))
    start = jax.jit(unit.init)(jax.random.key(0), variables, batch)
    zero = lambda a: a.at[(0,) * a.ndim].set(-0.0)  # a bit that adding 0.0 would lose
    start = start._replace(params=jax.tree.map(zero, start.params))

    @jax.jit
    def gradients(params):
        moved, _ = unit.step(start._replace(params=params), variables, batch)
        return jax.tree.map(jnp.subtract, params, moved.params)

    def after(tx, steps=3):
        params, state = start.params, tx.init(start.params)
        update = jax.jit(tx.update)
        for _ in range(steps):
            updates, state = update(gradients(params), state, params)
            params = optax.apply_updates(params, updates)
        return params, state

    return start.params, gradients(start.params), after


@pytest.mark.parametrize(
    "part",
    [
        lambda tx: transfer.freeze(tx, ["student/Dense_0/*", "*/bias"]),
        lambda tx: transfer.train_only(
            tx, ["student/Dense_1/kernel", "*/scale", "terms/hint/kernel"]
        ),
    ],
    ids=["freeze", "train_only"],
)
def test_frozen_leaves_keep_their_bits_and_the_rest_moves(part, descent):
    start, _, after = descent
    end, state = after(part(optax.adamw(0.01, weight_decay=0.1)))
    moving = {
        "student/Dense_1/kernel",
        "student/BatchNorm_0/scale",
        "terms/hint/kernel",
    }
    before, now = (_tree.flatten(bits(params)) for params in (start, end))
    assert {path for path in before if (before[path] != now[path]).any()} == moving
    # Adam's two moments of what moves, and nothing of what does not.
    sizes = sum(before[path].size for path in moving)
    moments = [a.size for a in jax.tree.leaves(state) if a.ndim]
    assert sum(moments) == 2 * sizes


def test_a_distiller_trains_the_head_alone(world):
    """The whole way: a scanned epoch over seeds; only the head moves."""
    resident, batch = world
    tx = transfer.train_only(optax.adamw(0.1), "student/Dense_1/*")
    still = transfer.frozen_statistics(toys.student)
    d = distill.distiller(still, distill.no_teacher, toys.labels_only, tx)
    keys = jax.random.split(jax.random.key(0), 2)
    init = jax.jit(jax.vmap(d.init, in_axes=(0, None, None)))
    states = transfer.warm_start(init(keys, None, batch), made(toys.student, 3), tx)
    before = jax.tree.map(np.asarray, (states.params["student"], states.state))
    epoch = train.over_seeds(train.make_epoch(d, view=toys.view, batch_size=8))
    done = train.fit(epoch, states, None, resident, key=keys, epochs=2).state
    same(done.state, before[1])
    was, now = before[0], done.params["student"]
    assert (was["Dense_1"]["kernel"] != now["Dense_1"]["kernel"]).all()
    for name in ("Dense_0", "BatchNorm_0"):
        same(bits(now[name]), bits(was[name]))


def test_a_global_norm_inside_is_that_of_the_moving_leaves():
    params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    tx = transfer.freeze(
        optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1.0)), "b"
    )
    grads = {"a": jnp.asarray([0.5]), "b": jnp.asarray([jnp.inf])}
    updates, _ = tx.update(grads, tx.init(params), params)
    same(updates, {"a": jnp.asarray([-0.5]), "b": jnp.asarray([0.0])})


def test_freezing_everything_is_standing_still(descent):
    start, _, after = descent
    end, _ = after(transfer.freeze(optax.adamw(0.1), "*"))
    same(bits(end), bits(start))


def test_rates_by_layer_are_those_of_sgd_by_hand(descent):
    start, gradient, after = descent
    rates = {
        "student/Dense_0/*": 0.5,
        "student/*/bias": optax.linear_schedule(0.2, 0.0, 4),
        "student/Dense*": 0.0,
    }
    end, _ = after(transfer.layer_wise(optax.sgd, rates, default=0.1), steps=1)
    wanted = {
        "student/Dense_0/kernel": 0.5,
        "student/Dense_0/bias": 0.5,  # the first pattern wins
        "student/Dense_1/bias": 0.2,
        "student/BatchNorm_0/bias": 0.2,
        "student/Dense_1/kernel": 0.0,
        "student/BatchNorm_0/scale": 0.1,
        "terms/hint/kernel": 0.1,
        "terms/hint/bias": 0.1,
    }
    before, now, grads = map(_tree.flatten, (start, end, gradient))
    assert set(wanted) == set(before)
    for path, rate in wanted.items():
        hand = np.asarray(before[path]) - rate * np.asarray(grads[path])
        np.testing.assert_allclose(now[path], hand, rtol=1e-5, atol=1e-7)


def test_a_schedule_advances_in_every_group():
    params = {"slow": jnp.zeros(()), "fast": jnp.zeros(())}
    ones = jax.tree.map(jnp.ones_like, params)
    fall = lambda step: 1.0 - 0.25 * step
    rates = transfer.by_depth(fall, ["slow", "fast"], decay=0.5)
    tx = transfer.layer_wise(optax.sgd, rates, default=0.0)
    state = tx.init(params)
    for step in range(3):
        updates, state = tx.update(ones, state, params)
        size = 1.0 - 0.25 * step
        np.testing.assert_allclose(updates["fast"], -size, rtol=1e-6)
        np.testing.assert_allclose(updates["slow"], -size / 2, rtol=1e-6)


def test_freezing_and_rates_by_layer_together(descent):
    start, _, after = descent
    rates = transfer.layer_wise(optax.adam, {"student/Dense_1/*": 0.1}, default=0.01)
    end, _ = after(transfer.freeze(rates, "student/Dense_0/*"))
    same(bits(end["student"]["Dense_0"]), bits(start["student"]["Dense_0"]))
    assert (end["terms"]["hint"]["bias"] != 0).all()


def test_one_rate_for_all_is_the_plain_optimiser(descent):
    *_, after = descent
    tx = transfer.layer_wise(optax.adam, {"student/Dense_1/*": 0.01}, default=0.01)
    (parts, _), (whole, _) = after(tx), after(optax.adam(0.01))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        parts,
        whole,
    )


def test_the_states_of_these_optimisers_go_to_disk_and_back(tmp_path):
    params = {"student": {"head": jnp.ones(2), "stem": jnp.ones(3)}, "terms": {}}
    tx = transfer.layer_wise(optax.adam, {"student/head": 0.1}, default=0.01)
    for each in (tx, transfer.freeze(optax.adam(0.1), "student/stem")):
        _, state = each.update(params, each.init(params), params)
        checkpoint.save(tmp_path / "state", state)
        same(checkpoint.load(tmp_path / "state", state), state)


# BatchNorm on stored statistics.


class Norms(nn.Module):
    """Two BatchNorms that are told in the two ways there are, and dropout."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(6)(x.reshape(len(x), -1))
        x = nn.BatchNorm(use_running_average=not train, name="first")(x)
        x = nn.BatchNorm(name="second")(x, not train)
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return x, {}


@pytest.fixture(scope="module")
def norms():
    net = from_linen(Norms())
    x = jax.random.normal(jax.random.key(1), (8, 4, 4, 3))
    params, state = jax.jit(net.init)(jax.random.key(0), x)
    state = jax.tree.map(lambda a: a + 0.5, state)  # not what these images have
    return net, params, state, x


def test_stored_statistics_make_training_inference_but_for_dropout(norms):
    net, params, state, x = norms
    still, key = transfer.frozen_statistics(net), jax.random.key(2)
    assert still.init is net.init
    out, new = still.apply(params, state, x, train=True, key=key)
    same(new, state)
    expected = net.apply(params, state, x, train=False)[0].logits
    kept = np.asarray(out.logits != 0)
    assert 0 < kept.mean() < 1  # dropout is drawn, and doubles what it keeps
    np.testing.assert_allclose(
        out.logits, jnp.where(kept, 2 * expected, 0.0), rtol=1e-5
    )
    same(still.apply(params, state, x, train=False)[0].logits, expected)
    # The network itself is as it was.
    _, moved = net.apply(params, state, x, train=True, key=key)
    changed = jax.tree.map(lambda a, b: bool((a != b).all()), moved, state)
    assert all(jax.tree.leaves(changed))


def test_only_the_named_batch_norms_stand_still(norms):
    net, params, state, x = norms
    still = transfer.frozen_statistics(net, "sec*")
    _, new = still.apply(params, state, x, train=True, key=jax.random.key(2))
    now, then = new["batch_stats"], state["batch_stats"]
    same(now["second"], then["second"])
    assert (now["first"]["mean"] != then["first"]["mean"]).all()


# Bad input.


@pytest.mark.bad_input
def test_errors_name_what_does_not_fit(world):
    source, target = made(toys.student, 1), made(OTHER_HEAD, 2)
    with pytest.raises(
        ValueError, match=r"mismatched 2: Dense_1/bias \(5,\) to \(7,\)"
    ):
        transfer.copy(source, target, strict=True)
    with pytest.raises(ValueError, match=r"'Dense1/\*' fits no .*Dense_1/bias,"):
        transfer.copy(source, target, exclude="Dense1/*")
    with pytest.raises(ValueError, match="rename names 'Dense', but the source has"):
        transfer.copy(source, target, rename={"Dense": "Dense_0"})
    with pytest.raises(ValueError, match=r"rename makes 'x' of both .*bias"):
        transfer.copy(source, target, rename=lambda path: "x")
    whole, real = ({"n": jnp.ones(2, int)}, {}), ({"n": jnp.ones(2)}, {})
    with pytest.raises(
        ValueError, match="n must have the target's type float32, got i"
    ):
        transfer.copy(whole, real)
    with pytest.raises(ValueError, match=r"got \['n'\] in both"):
        transfer.copy((real[0], real[0]), real)


@pytest.mark.bad_input
def test_a_warm_start_of_another_network_is_refused(world):
    _, batch = world
    tx = optax.sgd(0.1)
    d = distill.distiller(toys.student, distill.no_teacher, toys.labels_only, tx)
    state = jax.jit(d.init)(jax.random.key(0), None, batch)
    with pytest.raises(ValueError, match=r"Dense_1/bias must be float32 \(5,\), got f"):
        transfer.warm_start(state, made(OTHER_HEAD), tx)
    with pytest.raises(ValueError, match="not in both: .*batch_stats/BatchNorm_0/mean"):
        transfer.warm_start(state, (made(toys.student)[0], {}), tx)
    half = jax.tree.map(lambda a: a.astype(jnp.float16), made(toys.student))
    with pytest.raises(ValueError, match="must be float32 .* got float16"):
        transfer.warm_start(state, half, tx)


@pytest.mark.bad_input
def test_patterns_that_fit_nothing_are_refused(norms):
    params = {"student": {"head": {"bias": jnp.zeros(1)}}, "terms": {}}
    for make in (transfer.freeze, transfer.train_only):
        with pytest.raises(ValueError, match=r"'head/\*' fits .*student/head/bias"):
            make(optax.sgd(0.1), ["student/*", "head/*"]).init(params)
    rates = {"student/hed/*": 0.1}
    with pytest.raises(ValueError, match="did you mean student/head/bias"):
        transfer.layer_wise(optax.sgd, rates, default=0.1).init(params)
    rates = {"student/*": 0.1, "*/bias": 0.2}
    with pytest.raises(ValueError, match=r"'\*/bias' fits only parameters that an ear"):
        transfer.layer_wise(optax.sgd, rates, default=0.1).init(params)
    with pytest.raises(ValueError, match="decay must be finite and > 0, got 0"):
        transfer.by_depth(0.1, ["a"], decay=0.0)
    net, params, state, x = norms
    still = transfer.frozen_statistics(net, ["first", "third"])
    with pytest.raises(
        ValueError, match=r"'third' fits no BatchNorm; there are \['first', 'second'\]"
    ):
        still.apply(params, state, x, train=False)
