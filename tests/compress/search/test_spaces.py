"""Spaces, limits, blocks and latency tables."""

import itertools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import cost, models
from jaxkd.compress import search
from jaxkd.compress.search import _blocks

IMAGE = (32, 32, 3)
RESNETS = search.resnet_space(10)
MOBILENETS = search.mobilenet_space(10)
spaces = pytest.mark.parametrize(
    "space", [RESNETS, MOBILENETS], ids=["resnet", "mobilenet"]
)


def ends(space):
    """Two networks that differ at every position: the first and the last choices."""
    return tuple(0 for _ in space.sizes), tuple(n - 1 for n in space.sizes)


@spaces
def test_what_a_candidate_costs_is_what_its_network_costs(space):
    macs, parameters = search.macs(space, IMAGE), search.parameters(space, IMAGE)
    for tokens in (ends(space)[0], *search.sample(space.sizes, 1, seed=4)):
        whole = cost.of(space.net(tokens), IMAGE)
        assert (macs(tokens), parameters(tokens)) == (whole.macs, whole.parameters)


@spaces
def test_networks_have_their_taps(space):
    net, tokens = space.net(ends(space)[0]), ends(space)[0]
    x = jnp.zeros((2, *IMAGE))
    params, state = jax.eval_shape(net.init, jax.random.key(0), x)
    run = lambda p, s, x: net.apply(p, s, x, train=True)
    outputs, after = jax.eval_shape(run, params, state, x)
    assert outputs.logits.shape == (2, 10)
    stages = sorted({name.split("_")[0] for name in space.choices} - {"stem"})
    assert outputs.taps.keys() == {"stem", *stages, "pooled"}
    assert outputs.tap("pooled").ndim == 2
    assert jax.tree.structure(after) == jax.tree.structure(state)
    values = space.values(tokens)
    assert outputs.tap("stage2").shape[-1] == values["stage2_width"]


def test_each_token_of_the_mobilenets_does_something():
    middle = MOBILENETS.tokens(**search.mobilenet_base())
    costs = search.macs(MOBILENETS, IMAGE)
    ends_of_the_net = ("stage1_", "stage5_")
    for place, name in enumerate(MOBILENETS.choices):
        if not name.startswith(ends_of_the_net):
            continue
        other = 0 if middle[place] else 1
        changed = (*middle[:place], other, *middle[place + 1 :])
        if name.endswith("shortcut"):  # an addition costs no multiplication
            adds = [_adds(MOBILENETS.net(t)) for t in (middle, changed)]
            assert adds[0] > adds[1], name
        else:
            assert costs(changed) != costs(middle), name


def _adds(net):
    """Additions of feature maps of equal shape: the shortcuts."""
    x = jnp.zeros((1, *IMAGE))
    params, state = jax.eval_shape(net.init, jax.random.key(0), x)
    text = jax.make_jaxpr(lambda p, s: net.apply(p, s, x, train=False)[0].logits)(
        params, state
    )
    return sum(
        equation.primitive.name == "add"
        and len({v.aval.shape for v in equation.invars}) == 1
        and len(equation.outvars[0].aval.shape) == 4
        for equation in text.eqns
    )


def test_squeeze_and_excite_scales_channels():
    from jaxkd.compress.search._mobilenet_space import SqueezeExcite

    x = np.random.default_rng(0).normal(size=(2, 3, 3, 8)).astype(np.float32)
    out, variables = SqueezeExcite().init_with_output(jax.random.key(0), x)
    p = variables["params"]
    hidden = np.maximum(x.mean((1, 2)) @ p["squeeze"]["kernel"], 0)
    scale = 1 / (1 + np.exp(-hidden @ p["excite"]["kernel"]))
    np.testing.assert_allclose(out, x * scale[:, None, None, :], rtol=1e-5, atol=1e-6)


def test_a_stem_of_stride_two_takes_a_quarter_of_the_convolutions():
    for make, base in (
        (search.resnet_space, search.resnet_base),
        (search.mobilenet_space, lambda s: search.mobilenet_base()),
    ):
        whole, quarter = make(10), make(10, stem_strides=2)
        tokens = whole.tokens(**base(whole))
        a, b = (search.macs(s, IMAGE)(tokens) for s in (whole, quarter))
        dense = _head(whole.net(tokens))
        assert a - dense == 4 * (b - dense)
        assert whole.settings != quarter.settings


def _head(net):
    """The multiply-accumulates of the classifier."""
    x = jax.ShapeDtypeStruct((1, *IMAGE), np.float32)
    params, _ = jax.eval_shape(net.init, jax.random.key(0), x)
    return params["head"]["kernel"].size


def test_values_and_tokens_are_inverse():
    for tokens in search.sample(RESNETS.sizes, 5):
        assert RESNETS.tokens(**RESNETS.values(tokens)) == tokens
    json.dumps(RESNETS.settings)


class Mine(nn.Module):
    """Parameters of its own, a module called twice, and products between them."""

    width: int

    @nn.compact
    def __call__(self, x, train):
        x = x.reshape(len(x), -1)
        x = nn.Dense(self.width, name="first")(x)
        again = nn.Dense(self.width, name="again")
        x = again(again(x))
        x = x @ self.param("own", nn.initializers.normal(), (self.width, 3))
        return x, {}


def test_a_space_of_ones_own_is_counted_exactly():
    space = search.Space(
        "mine", {"width": (4, 8)}, lambda width: models.from_linen(Mine(width))
    )
    macs, parameters = (
        search.macs(space, (2, 2, 1)),
        search.parameters(space, (2, 2, 1)),
    )
    # 4 w + 2 w^2 + 3 w products; 4 w + w + w^2 + w + 3 w numbers.
    for token, w in enumerate((4, 8)):
        assert macs((token,)) == 4 * w + 2 * w * w + 3 * w
        assert parameters((token,)) == 4 * w + w + w * w + w + 3 * w
        whole = cost.of(space.net((token,)), (2, 2, 1))
        assert (macs((token,)), parameters((token,))) == (whole.macs, whole.parameters)


def test_a_network_without_modules_is_counted_too():
    net = models.Net(
        lambda key, x: ({"w": x.reshape(1, -1).T @ jnp.ones((1, 3))}, {}),
        lambda params, state, x, *, train, key=None: ((x, {}), state),
    )
    assert _blocks.taken_apart(net, (2, 2, 1), {}) == _blocks.Whole((), 12, 12)


def test_blocks_are_traced_once_for_all_candidates():
    blocks = {}
    one = _blocks.taken_apart(RESNETS.net(ends(RESNETS)[0]), IMAGE, blocks)
    known = set(blocks)
    two = _blocks.taken_apart(RESNETS.net(ends(RESNETS)[0]), IMAGE, blocks)
    assert one == two and set(blocks) == known == set(one.keys)
    assert not any("0x" in key for key in known)


@pytest.mark.parametrize("seed", range(5))
def test_the_reachable_range_is_exact_where_costs_are_monotone(seed):
    rng = np.random.default_rng(seed)
    steps = [np.sort(rng.uniform(1, 9, n)) for n in (3, 4, 2)]

    # Width times width before it, as in convolutions.
    def cost(t):
        w = [s[i] for s, i in zip(steps, t, strict=True)]
        return float(w[0] * w[1] + w[1] * w[2])

    everything = [cost(t) for t in itertools.product(range(3), range(4), range(2))]
    made = search.limit("products", cost, (3, 4, 2))
    assert cost(made.cheapest) == min(everything)
    assert cost(made.dearest) == max(everything)


def test_a_start_is_found_within_a_band():
    made = search.limit("sum", sum, (5, 5, 5), least=5, most=6)
    for tokens in itertools.product(range(5), repeat=3):
        found = search.within(made, tokens, (5, 5, 5))
        assert 5 <= sum(found) <= 6
        if 5 <= sum(tokens) <= 6:
            assert found == tokens
    bumpy = search.limit("bumps", lambda t: [3, 9, 1][t[0]], (3,), least=5, most=9)
    assert search.within(bumpy, (0,), (3,)) == (1,)


def measure_in_table(f, image_shape):
    """A stopwatch that needs no clock: a millisecond for each of a block's outputs."""
    x = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    return float(np.prod(jax.eval_shape(f, x).shape))


def small_space():
    return search.Space(
        "small",
        {"widths": ((4, 4, 4, 4), (4, 4, 8, 8), (8, 8, 8, 8))},
        lambda widths: models.resnet(8, widths=widths, classes=3),
    )


def test_a_latency_is_the_sum_of_blocks_each_measured_once(tmp_path):
    shapes = []

    def measure(f, image_shape):
        shapes.append(image_shape)
        return measure_in_table(f, image_shape)

    path = tmp_path / "deep" / "table.jsonl"
    time = search.latency(small_space(), (8, 8, 3), measure=measure, file=path)
    # Stem convolution and norm, three blocks of 8, 4 and 2 pixels, the head.
    wanted = 2 * 64 * 4 + 64 * 4 + 16 * 4 + 4 * 4 + 3
    assert time((0,)) == wanted
    assert len(shapes) == 6 and shapes[0] == (8, 8, 3) and shapes[-1] == (4,)
    time((1,))
    assert len(shapes) == 6 + 3  # two blocks and the head are new
    time((1,))
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"block": "to')

    def refuse(f, image_shape):
        raise AssertionError("measured twice")

    again = search.latency(small_space(), (8, 8, 3), measure=refuse, file=path)
    assert (again((0,)), again((1,))) == (time((0,)), time((1,)))
    assert path.read_bytes() == whole


def test_the_error_of_a_table_against_whole_networks():
    space = small_space()
    time = search.latency(space, (8, 8, 3), measure=lambda f, shape: 2.0)
    whole = iter([10.0, 16.0, 12.0])
    found = search.table_errors(
        space, time, [(0,), (1,), (2,)], (8, 8, 3), measure=lambda f, shape: next(whole)
    )
    np.testing.assert_allclose(found.sums, 12)
    np.testing.assert_allclose(found.relative, [0.2, -0.25, 0.0])
    assert found.order == 0  # equal sums put nothing in an order


@pytest.mark.slow
def test_a_table_measured_by_xla_is_near_the_whole_network():
    time = search.latency(RESNETS, IMAGE)
    candidates = [*ends(RESNETS), *search.sample(RESNETS.sizes, 2)]
    found = search.table_errors(RESNETS, time, candidates, IMAGE)
    assert (found.sums > 0).all() and (found.wholes > 0).all()
    assert found.sums[1] > found.sums[0]  # 50 times the products


@pytest.mark.bad_input
def test_what_cannot_be_is_refused():
    macs = search.macs(small_space(), (8, 8, 3))
    reach = f"cannot be met: the space reaches {macs((0,)):,} to {macs((2,)):,}"
    with pytest.raises(ValueError, match=reach):
        search.limit("MACs", macs, (3,), most=macs((0,)) - 1)
    with pytest.raises(ValueError, match=reach):
        search.limit("MACs", macs, (3,), least=macs((2,)) + 1)
    with pytest.raises(ValueError, match="least must be <= most, got 3 and 2"):
        search.limit("sum", sum, (4,), least=3, most=2)
    with pytest.raises(RuntimeError, match=r"^\(1,\) costs .* no nearer"):
        search.within(search.Limit(sum, "sum", 0.5, 0.6, (0,), (2,)), (0,), (2,))
    with pytest.raises(KeyError, match=r"unknown \['stm'\], missing \['stem'\]"):
        base = search.resnet_base(RESNETS)
        RESNETS.tokens(stm=base.pop("stem"), **base)
    with pytest.raises(ValueError, match=r"stem must be one of \(8, 12, 16, 20, 24\)"):
        RESNETS.tokens(**{**search.resnet_base(RESNETS), "stem": 17})
    with pytest.raises(ValueError, match=r"blocks must be one of \(1, 2\), got 3"):
        search.resnet_base(RESNETS, blocks=3)
    with pytest.raises(ValueError, match="widths must be 4 numbers"):
        search.resnet_space(10, widths=(16, 32))
    with pytest.raises(ValueError, match="classes must be >= 1"):
        search.mobilenet_space(0)
    with pytest.raises(ValueError, match="image_shape must be >= 1"):
        search.macs(RESNETS, (0, 32, 3))


@pytest.mark.bad_input
def test_what_cannot_be_measured_is_refused(tmp_path):
    flat = search.Space("flat", {"n": (1, 2)}, lambda n: models.Net(*(2 * [None])))
    bare = models.Net(lambda key, x: ({}, {}), None)
    flat = flat._replace(build=lambda n: bare)
    with pytest.raises(ValueError, match="calls no modules that could be measured"):
        search.latency(flat, (8, 8, 3))((0,))
    path = tmp_path / "table"
    path.write_text("no table\n")
    with pytest.raises(ValueError, match="is no table of latencies"):
        search.latency(small_space(), (8, 8, 3), file=path)
