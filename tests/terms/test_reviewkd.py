"""ReviewKD's fusions: what reaches which level, and how a map is mixed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses, terms
from jaxkd.types import Outputs

close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
B, LEVELS = 4, ["stage1", "stage2", "pooled"]


def outputs(seed, widths=(3, 4, 4), size=4):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=(B, *shape)), jnp.float32)
    one, two, three = widths
    maps = draw(size, size, one), draw(size // 2, size // 2, two), draw(three)
    return Outputs(draw(5), dict(zip(LEVELS, maps, strict=True)))


S, T = outputs(0), outputs(1, (5, 6, 7), size=8)
TERM = terms.reviewkd(LEVELS)


@functools.cache
def made():
    return jax.jit(TERM.init)(jax.random.key(0, impl="unsafe_rbg"), S, T, {})


def gated(params, own, deeper):
    """The parameters with the attention stuck at these logits everywhere."""
    changed = jax.tree.map(lambda a: a, params)
    for level in ("level1", "level2"):
        attention = changed[level]["attention"]
        attention["kernel"] = jnp.zeros_like(attention["kernel"])
        attention["bias"] = jnp.array([own, deeper])
    return changed


@jax.jit
def slopes(params, state):
    """How much each of the student's taps matters."""
    loss = lambda s: TERM.apply(params, state, s, T, {})[0].mean()
    return {name: jnp.abs(g).max() for name, g in jax.grad(loss)(S).taps.items()}


def test_a_deep_level_reaches_the_shallow_ones_through_the_attention():
    params, state = made()
    closed = slopes(gated(params, 40.0, -40.0), state)
    assert all(closed[name] > 1e-5 for name in LEVELS)  # each level sees its own stage
    passing = slopes(gated(params, -40.0, 40.0), state)
    assert passing["pooled"] > 1e-5
    assert passing["stage1"] < 1e-9 and passing["stage2"] < 1e-9


def conv(x, layer):
    """A convolution of stride 1 by hand: the sum over the window's places."""
    kernel = layer["kernel"]
    reach = kernel.shape[0] // 2
    padded = jnp.pad(x, ((0, 0), (reach, reach), (reach, reach), (0, 0)))
    height, width = x.shape[1:3]
    return sum(
        padded[:, i : i + height, j : j + width] @ kernel[i, j]
        for i in range(kernel.shape[0])
        for j in range(kernel.shape[1])
    ) + layer.get("bias", jnp.zeros(1)).reshape(1, 1, 1, -1)


def norm(x):
    """BatchNorm at its start."""
    mean, var = x.mean((0, 1, 2), keepdims=True), x.var((0, 1, 2), keepdims=True)
    return (x - mean) / jnp.sqrt(var + 1e-5)


def by_hand(params, s, t):
    deeper, total = None, 0
    for level, name in ((3, "pooled"), (2, "stage2"), (1, "stage1")):
        layers = params[f"level{level}"]
        here, there = s.taps[name], t.taps[name]
        if name == "pooled":
            here, there = here[:, None, None], there[:, None, None]
        x = norm(conv(here, layers["reduce"]))
        if deeper is not None:
            times = x.shape[1] // deeper.shape[1]
            deeper = deeper.repeat(times, 1).repeat(times, 2)
            logits = conv(jnp.concatenate([x, deeper], -1), layers["attention"])
            gate = 1 / (1 + jnp.exp(-logits))
            x = x * gate[..., 0][..., None] + deeper * gate[..., 1][..., None]
        times = there.shape[1] // x.shape[1]
        deeper = x = x.repeat(times, 1).repeat(times, 2)
        total += losses.hcl(norm(conv(x, layers["expand"])), there)
    return total


def test_is_its_definition():
    params, state = made()
    loss, _ = jax.jit(TERM.apply)(params, state, S, T, {})
    close(loss, jax.jit(by_hand)(params, S, T))


def test_every_norm_keeps_the_batch_statistics_in_the_state():
    params, state = made()
    _, new = jax.jit(TERM.apply)(params, state, S, T, {})
    assert set(state) == {"batch_stats"}
    reduced = conv(S.taps["stage1"], params["level1"]["reduce"])
    statistics = new["batch_stats"]["level1"]["reduce_norm"]
    old = state["batch_stats"]["level1"]["reduce_norm"]
    close(statistics["mean"], 0.9 * old["mean"] + 0.1 * reduced.mean((0, 1, 2)))
    for level in ("level1", "level2", "level3"):
        assert set(new["batch_stats"][level]) == {"reduce_norm", "expand_norm"}


def widths(term, s, t):
    params, _ = jax.eval_shape(term.init, jax.random.key(0), s, t, {})
    return {name: level["reduce"]["kernel"].shape[-1] for name, level in params.items()}


def test_the_mixture_is_as_wide_as_the_deepest_tap_up_to_512():
    assert set(widths(TERM, S, T).values()) == {4}
    wide = outputs(0, (3, 4, 600))
    assert set(widths(TERM, wide, T).values()) == {512}
    assert set(widths(terms.reviewkd(LEVELS, width=9), wide, T).values()) == {9}


def test_the_deepest_level_has_no_attention_and_one_level_is_enough():
    params, _ = made()
    assert "attention" not in params["level3"]
    assert params["level1"]["attention"]["kernel"].shape == (1, 1, 8, 2)
    assert params["level1"]["expand"]["kernel"].shape == (3, 3, 4, 5)
    assert widths(terms.reviewkd({"stage2": "stage1"}), S, T) == {"level1": 4}


@pytest.mark.bad_input
def test_refuses():
    with pytest.raises(ValueError, match="from shallow to deep.*'stage2'.*'stage1'"):
        widths(terms.reviewkd(["stage2", "stage1"]), S, T)
    with pytest.raises(ValueError, match="width must be >= 1"):
        terms.reviewkd(LEVELS, width=0)
    tokens = Outputs(S.logits, {"stage1": jnp.zeros((B, 5, 3))})
    with pytest.raises(ValueError, match=r"stage1 must be a map.*\(4, 5, 3\)"):
        widths(terms.reviewkd("stage1"), tokens, tokens)
    with pytest.raises(ValueError, match="levels must be a tuple"):
        widths(terms.reviewkd(LEVELS, levels=[4, 2]), S, T)
