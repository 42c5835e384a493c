"""What goes together in networks that nobody wrote for pruning."""

import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from jaxkd import cost
from jaxkd.compress import prune
from jaxkd.models.mlp import mlp
from jaxkd.models.zoo import ZOO
from tests.compress.prune.nets import (
    NETS,
    SHUFFLED,
    Shuffled,
    applied,
    images,
    made,
    randomised,
    some,
)


def widths(plan):
    return {group.name: (len(group.units), group.each) for group in plan.groups}


def reasons(plan, path):
    return {reason for f in plan.frozen if f.path == path for reason in f.reasons}


def assert_prunes_exactly(module, plan):
    """Pruned is masked, removal changes the answer, and all costs are as predicted."""
    variables, x, dropped = made(module), images(), some(plan)
    report = prune.check(applied(module), plan, variables, dropped, x, tolerance=1e-5)
    assert report.difference < 1e-5
    small = plan.apply(variables, dropped)
    assert plan.params(dropped) == cost.parameters(small["params"])
    assert plan.bytes(dropped) == cost.bytes(small["params"])
    assert report.macs == plan.macs(dropped) < plan.macs()  # retraced, predicted


@pytest.mark.parametrize("name", NETS)
def test_groups_are_those_by_hand_and_pruned_is_masked(name):
    make, expected = NETS[name]
    plan = prune.analyse(applied(make()), made(make()), images())
    assert widths(plan) == expected
    assert_prunes_exactly(make(), plan)


def test_removal_changes_the_answer_and_its_undoing_does_not():
    # Else "pruned is masked" would hold of a network that says nothing.
    make, _ = NETS["resnet"]
    variables, x = made(make()), images()
    plan = prune.analyse(applied(make()), variables, x)
    run = jax.jit(applied(make()))
    whole = run(variables, x)
    masked = run(plan.mask(variables, some(plan)), x)
    assert np.abs(masked - whole).max() > 0.01 * np.abs(whole).max() > 0
    np.testing.assert_array_equal(run(plan.mask(variables), x), whole)


def test_shuffles_gates_and_sections_stay_unless_they_may_lose_the_same():
    variables = made(Shuffled())
    frozen = prune.analyse(applied(Shuffled()), variables, images())
    assert set(widths(frozen)) == {"mix"}
    for path, what in {
        "params/stem/kernel": "does not run: in Shuffled: ",
        "params/deep/kernel": "a part of it is cut out (split",
        "params/out/kernel": "a part of it is cut out (slice",
    }.items():
        assert any(what in r for r in reasons(frozen, path)), reasons(frozen, path)
    assert_prunes_exactly(Shuffled(), frozen)
    plan = prune.analyse(applied(Shuffled()), variables, images(), splits="equal")
    assert widths(plan) == SHUFFLED
    assert_prunes_exactly(Shuffled(), plan)


# A few here; all 36 take half a minute.
FEW = ["resnet8", "wrn_16_1", "vgg8", "mobilenet_v1_050", "shufflenet_v2"]


@pytest.mark.parametrize(
    "name",
    [n if n in FEW else pytest.param(n, marks=pytest.mark.slow) for n in ZOO],
)
def test_every_network_of_the_zoo_is_analysed_and_costs_what_it_costs(name):
    # Patches of 14 pixels divide no 32.
    net, shape = ZOO[name](classes=10), (28, 28, 3) if "14" in name else (32, 32, 3)
    x = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    params, state = jax.eval_shape(net.init, jax.random.key(0), x)
    plan = prune.analyse_net(net, params, state, shape)
    assert (plan.params(), plan.macs(), plan.bytes()) == cost.of(net, shape)
    # LayerNorm and GRN reduce over all channels of ConvNeXt V2: none can go.
    assert plan.units > 0 or name == "convnextv2_atto"
    assert {m.path for g in plan.groups for m in g.members} <= {
        leaf.path for leaf in plan.leaves
    }
    assert reasons(plan, "params/head/bias") == {"a result of the network"}


def test_a_resnet_of_the_zoo_is_pruned_exactly():
    net, shape = ZOO["resnet8"](classes=10), (8, 8, 3)
    x = jax.random.normal(jax.random.key(1), (2, *shape))
    params, state = randomised(jax.eval_shape(net.init, jax.random.key(0), x))
    plan = prune.analyse_net(net, params, state, shape)
    # Each block's first convolution alone; the rest by the residual sums.
    assert widths(plan) == {
        "stem_conv": (16, 1),
        "stage1_block1/conv1": (16, 1),
        "stage2_block1/conv1": (32, 1),
        "stage2_block1/conv2": (32, 1),
        "stage3_block1/conv1": (64, 1),
        "stage3_block1/conv2": (64, 1),
    }
    report = prune.check_net(net, plan, params, state, some(plan), x, tolerance=1e-5)
    assert report.difference < 1e-5


def test_a_pruned_network_is_analysed_and_pruned_again():
    make, expected = NETS["inverted_residual"]
    variables, x = made(make()), images()
    plan = prune.analyse(applied(make()), variables, x)
    dropped = some(plan)
    small = plan.apply(variables, dropped)
    run = lambda v, x: prune.resized(make()).apply(v, x, train=False)
    again = prune.analyse(run, small, x)
    assert again.macs() == plan.macs(dropped) and again.params() == plan.params(dropped)
    left = dict(zip(expected, plan.kept(dropped), strict=True))
    assert {g.name: len(g.units) for g in again.groups} == left
    assert prune.check(run, again, small, some(again), x).difference < 1e-5


WEIGHTS = {"a": jnp.ones((3, 8)), "b": jnp.ones((8, 8)), "c": jnp.ones((8, 2))}
X = jnp.ones((4, 3))


@pytest.mark.parametrize(
    ("between", "what"),
    [
        (jax.nn.softmax, "a reduction over it (reduce_max"),
        (lambda h: h - h.mean(-1, keepdims=True), "a reduction over it (reduce_sum"),
        (lambda h: jnp.cumsum(h, 1), "an order along it (cumsum"),
        (lambda h: jnp.sort(h, 1), "an order along it (sort"),
        (lambda h: h + jnp.arange(8.0)[None], "numbered (iota"),
        (lambda h: h * np.linspace(0, 1, 8, dtype="f4")[None], "a constant array"),
        (lambda h: h[:, jnp.array([7, 6, 5, 4, 3, 2, 1, 0])], "it is indexed (gather"),
        (lambda h: jnp.fft.fft(h).real, "an operation without a rule (fft"),
        (
            lambda h: jax.lax.cond(h.sum() > 0, jnp.sin, jnp.cos, h),
            "an operation without a rule (cond",
        ),
        (
            lambda h: (h @ h.T) @ h,
            "a product of two activations sums over it (dot_general",
        ),
        (
            lambda h: h.reshape(4, 2, 4)[:, 0].repeat(2, 1),
            "a part of it is cut out (slice",
        ),
        (lambda h: h.reshape(4, 2, 4).reshape(4, 8), "does not run: in the outermost"),
        (lambda h: 1 / h, "not finite where it is zero (div"),
        (lambda h: h**-2, "not finite where it is zero (integer_pow"),
        (lambda h: jnp.log(h), "not finite where it is zero (log"),
        (
            lambda h: jax.lax.reduce_window(
                h, -jnp.inf, jax.lax.max, (1, 2), (1, 1), "SAME"
            ),
            "pooling along it",
        ),
    ],
)
def test_what_ends_channels_says_so(between, what):
    def apply(w, x):
        return jax.nn.relu(between(x @ w["a"])) @ w["b"] @ w["c"]

    plan = prune.analyse(apply, WEIGHTS, X)
    assert [g.name for g in plan.groups] == ["b"]
    assert any(what in r for r in reasons(plan, "a")), reasons(plan, "a")
    assert what in plan.listing()
    assert prune.check(apply, plan, WEIGHTS, [0, 3, 4], X).difference < 1e-5
    assert plan.macs() == cost.macs(apply, WEIGHTS, X)


@pytest.mark.parametrize(
    "between",
    [
        jax.nn.gelu,
        jax.nn.silu,
        jax.nn.relu6,
        jax.nn.selu,
        lambda h: jnp.where(h > 0, h, 0.1),
        lambda h: jnp.clip(h, -1, 1) + 1,
        lambda h: h[::-1] ** 2,
        lambda h: h + h.mean(0, keepdims=True),
        lambda h: jnp.tile(h, (2, 1))[:4],
        lambda h: jnp.flip(jnp.flip(h, 1), 1),
        lambda h: jnp.roll(h, 1, 0),
        lambda h: h[jnp.array([3, 1, 2, 0])],
        lambda h: jax.lax.dynamic_slice_in_dim(h, 1, 1, 0) + h,
        lambda h: jax.lax.scan(lambda c, _: (jnp.sin(c), None), h, None, length=3)[0],
        lambda h: jax.checkpoint(jnp.sin)(h),
        lambda h: h.T.reshape(-1).reshape(-1, 4).T,
        lambda h: jnp.einsum("bc,bc->bc", h, h),
        lambda h: h / jnp.linalg.norm(h, axis=-1, keepdims=True),
    ],
)
def test_what_treats_channels_alike_leaves_them_free(between):
    def apply(w, x):
        return between(x @ w["a"]) @ w["b"] @ w["c"]

    weights = {
        k: jax.random.normal(jax.random.key(i), v.shape)
        for i, (k, v) in enumerate(WEIGHTS.items())
    }
    plan = prune.analyse(apply, weights, X)
    assert widths(plan) == {"a": (8, 1), "b": (8, 1)}
    assert prune.check(apply, plan, weights, [0, 5, 9], X).difference < 1e-5


def test_a_kernel_that_is_not_zero_when_dropped_keeps_its_channels():
    # sigmoid(0) is 1/2: a's dropped outputs are not zero, and b's rows for them
    # neither; b's outputs are not, but c's rows for them are.
    apply = lambda w, x: x @ jax.nn.sigmoid(w["a"]) @ jax.nn.sigmoid(w["b"]) @ w["c"]
    plan = prune.analyse(apply, WEIGHTS, X)
    assert widths(plan) == {"b": (8, 1)}
    assert "not zero when dropped" in " ".join(reasons(plan, "a"))
    assert prune.check(apply, plan, WEIGHTS, [1], X).difference < 1e-5


def test_variables_that_are_not_used_are_not_pruned():
    plan = prune.analyse(lambda w, x: x @ w["a"], WEIGHTS, X)
    assert not plan.groups and plan.units == 0
    assert "does not use it" in " ".join(reasons(plan, "c"))
    assert plan.params(()) == plan.cost(np.zeros(0, int)).parameters == 24 + 64 + 16


def test_scans_and_unknown_operations_count_as_in_cost():
    def apply(w, x):
        h, _ = jax.lax.scan(lambda h, _: (h @ w["b"], None), x @ w["a"], None, length=5)
        return jax.lax.cond(h.sum() > 0, lambda h: h @ w["c"], lambda h: h[:, :2], h)

    plan = prune.analyse(apply, WEIGHTS, X)
    assert plan.macs() == cost.macs(apply, WEIGHTS, X) == 4 * (24 + 5 * 64 + 16)


@pytest.mark.parametrize(
    ("between", "units"),
    [
        # Sections of two go whole where their number comes from the shape.
        (lambda h: h - h.reshape(4, -1, 2).max(-1).repeat(2, -1), (4, 2)),
        (lambda h: jax.nn.softmax(h.reshape(4, -1, 2)).reshape(4, -1), (4, 2)),
        (lambda h: h.reshape(4, -1, 2).swapaxes(1, 2).reshape(4, -1), (4, 2)),
    ],
)
def test_whole_sections_can_go(between, units):
    apply = lambda w, x: between(x @ w["a"]) @ w["b"] @ w["c"]
    weights = {
        k: jax.random.normal(jax.random.key(i), v.shape)
        for i, (k, v) in enumerate(WEIGHTS.items())
    }
    plan = prune.analyse(apply, weights, X)
    assert widths(plan) == {"a": units, "b": (8, 1)}
    assert prune.check(apply, plan, weights, [0, 2, 5], X).difference < 1e-5


def test_reductions_over_channels_may_be_allowed_and_are_then_reported():
    class Normed(nn.Module):
        @nn.compact
        def __call__(self, x, train: bool = False):
            x = nn.LayerNorm(name="norm")(nn.Dense(16, name="wide")(x.mean((1, 2))))
            return nn.Dense(3, name="head")(nn.relu(x))

    variables, x = made(Normed()), images()
    frozen = prune.analyse(applied(Normed()), variables, x)
    assert not frozen.groups
    assert "in Normed/norm" in " ".join(reasons(frozen, "params/wide/kernel"))
    plan = prune.analyse(applied(Normed()), variables, x, reductions="allow")
    assert widths(plan) == {"wide": (16, 1)}
    assert "in Normed/norm" in plan.inexact[0] and plan.inexact[0] in plan.listing()
    report = prune.check(applied(Normed()), plan, variables, some(plan), x)
    assert report.difference > 1e-3 and report.macs == plan.macs(some(plan))


@given(data=st.data())
@settings(max_examples=5, deadline=None, derandomize=True)
def test_random_programs_prune_exactly(data):
    """Sums, concatenations, gates and flattening in any order."""
    steps = data.draw(
        st.lists(
            st.sampled_from(["dense", "sum", "beside", "gate", "twice"]), max_size=5
        )
    )

    def apply(w, x):
        h = x @ w["in"]
        for i, step in enumerate(steps):
            y = jnp.tanh(h @ w[f"w{i}"] + w[f"b{i}"][None])
            if step == "sum":
                y = h + y
            elif step == "beside":
                y = jnp.concatenate([y, h], -1)
            elif step == "gate":
                y = h * jax.nn.sigmoid(y)
            elif step == "twice":
                y = jnp.stack([y, 2 * y], 1).reshape(len(x), -1)
            h = y
        return h @ w["out"]

    width, rng = 4, np.random.default_rng(0)
    weights = {"in": rng.normal(size=(3, width))}
    for i, step in enumerate(steps):
        out = width if step in ("sum", "gate") else 3
        weights[f"w{i}"] = rng.normal(size=(width, out))
        weights[f"b{i}"] = rng.normal(size=out)
        width = {"beside": width + out, "twice": 2 * out}.get(step, out)
    weights["out"] = rng.normal(size=(width, 2))
    weights = {k: jnp.asarray(v, jnp.float32) for k, v in weights.items()}
    plan = prune.analyse(apply, weights, X)
    assert plan.groups
    dropped = some(plan)
    assert prune.check(apply, plan, weights, dropped, X, tolerance=1e-5)
    assert plan.params(dropped) == cost.parameters(plan.apply(weights, dropped))


@pytest.mark.slow
def test_the_hash_is_the_same_in_another_process_and_another_for_another_plan():
    code = (
        "import jax, jax.numpy as jnp\n"
        "from jaxkd.compress import prune\n"
        "from jaxkd.models.mlp import mlp\n"
        "net = mlp([6, 5], classes=3)\n"
        "v = net.init(jax.random.key(0), jnp.ones((1, 2, 2, 1)))\n"
        "print(prune.analyse_net(net, *v, (2, 2, 1)).hash)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    hashes = []
    for widths_ in ([6, 5], [5, 6]):
        net = mlp(widths_, classes=3)
        variables = net.init(jax.random.key(1), jnp.ones((1, 2, 2, 1)))
        hashes.append(prune.analyse_net(net, *variables, (2, 2, 1)).hash)
    assert out.stdout.strip() == hashes[0] != hashes[1], out.stderr


def test_patterns_choose_groups_by_the_layers_that_make_them():
    make, expected = NETS["unet"]
    analyse = lambda **how: prune.analyse(
        applied(make()), made(make()), images(), **how
    )
    assert set(widths(analyse(include="down*"))) == {"down1", "down2"}
    assert set(widths(analyse(exclude=["params/up2/kernel", "join*"]))) == (
        set(expected) - {"up2", "join1", "join2"}
    )
    plan = analyse(include="down*", exclude="*2/*")
    assert set(widths(plan)) == {"down1"}
    assert reasons(plan, "params/up2/bias") == {"left out by include or exclude"}
    assert_prunes_exactly(make(), plan)


@pytest.mark.bad_input
@pytest.mark.parametrize("knob", ["include", "exclude"])
def test_a_pattern_that_fits_nothing_lists_near_names(knob):
    with pytest.raises(ValueError, match=r"'down3/\*' fits no variable.*down1/"):
        make, _ = NETS["unet"]
        prune.analyse(applied(make()), made(make()), images(), **{knob: "down3/*"})


@pytest.mark.bad_input
def test_wrong_knobs_are_refused():
    apply = lambda w, x: x @ w["a"]
    with pytest.raises(ValueError, match="reductions must be one of"):
        prune.analyse(apply, WEIGHTS, X, reductions="keep")
    with pytest.raises(ValueError, match="splits must be one of"):
        prune.analyse(apply, WEIGHTS, X, splits="freeze")
