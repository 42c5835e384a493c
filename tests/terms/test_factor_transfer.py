"""The paraphraser learns the teacher's map; its encoder then stays as it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.terms.factor_transfer import Coder, factor_transfer, paraphraser
from tests.terms import small

S, T, B = small.outputs(0, 3), small.outputs(1, 5), small.batch(range(6))


def made(rate=0.5):
    return jax.jit(paraphraser("stage2", rate=rate).init)(jax.random.key(1), S, T, B)[0]


@pytest.mark.slow
def test_paraphraser_reconstructs_with_all_it_has():
    term = paraphraser("stage2")
    (before, state), (after, _), loss = small.descend(term, S, T, B, steps=60)
    assert state == {}
    assert all(small.unequal(before, after))
    assert loss[-1] < 0.6 * loss[0]
    gradient = jax.grad(lambda s: term.apply(after, {}, s, T, B)[0].sum())(S)
    assert not any((g != 0).any() for g in jax.tree.leaves(gradient))


@pytest.mark.parametrize(("rate", "factors"), [(0.5, 3), (0.75, 4), (1.0, 6)])
def test_rate_is_the_share_of_channels(rate, factors):
    shapes = jax.eval_shape(
        paraphraser("stage2", rate=rate).init, jax.random.key(1), S, T, B
    )[0]
    width = lambda side: [
        shapes[side][f"conv{i}"]["kernel"].shape[2:] for i in (1, 2, 3)
    ]
    assert width("encoder") == [(6, 6), (6, factors), (factors, factors)]
    assert width("decoder") == [(factors, factors), (factors, 6), (6, 6)]


def convolved(x, layer):
    """3x3, stride 1, zeros around it, and LeakyReLU(0.1), in numpy."""
    kernel = np.asarray(layer["kernel"], np.float64)
    padded = np.pad(np.asarray(x, np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    height, width = x.shape[1:3]
    total = sum(
        padded[:, i : i + height, j : j + width] @ kernel[i, j]
        for i in range(3)
        for j in range(3)
    )
    return total + (np.asarray(layer["bias"]) if "bias" in layer else 0)


def test_is_the_distance_of_unit_factors():
    trained = made()
    term = factor_transfer({"stage1": "stage2"}, paraphraser=trained)
    params, state = jax.jit(term.init)(jax.random.key(0), S, T, B)
    loss, new = jax.jit(term.apply)(params, state, S, T, B)
    t = np.asarray(T.taps["stage2"])
    s = np.asarray(S.taps["stage1"]).reshape(6, 2, 2, 2, 2, 3).mean((2, 4))
    leaky = lambda x: np.where(x > 0, x, 0.1 * x)
    for i in (1, 2, 3):
        t = leaky(convolved(t, trained["encoder"][f"conv{i}"]))
        x = convolved(s, params[f"conv{i}"])
        s = leaky(small.normalised(x, params[f"norm{i}"]))
    unit = lambda x: (
        x.reshape(6, -1) / np.linalg.norm(x.reshape(6, -1), axis=1)[:, None]
    )
    wanted = np.abs(unit(s) - unit(t)).mean(1)
    np.testing.assert_allclose(loss, wanted, rtol=1e-3)
    assert not any(small.unequal(trained["encoder"], new["encoder"]))
    assert all(small.unequal(state["translator"], new["translator"]))


def test_rehearsal_knows_only_shapes():
    term = factor_transfer("stage2", paraphraser=jax.eval_shape(made))
    params, state = jax.eval_shape(term.init, jax.random.key(0), S, T, B)
    assert params["conv3"]["kernel"].shape == (3, 3, 3, 3)
    assert state["encoder"]["conv1"]["kernel"].shape == (3, 3, 6, 6)


@pytest.mark.bad_input
def test_errors_name_what_does_not_fit():
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="must leave one of 6 channels"):
        paraphraser("stage2", rate=0.1).init(key, S, T, B)
    with pytest.raises(ValueError, match="must be a map"):
        paraphraser("pooled").init(key, S, T, B)
    with pytest.raises(ValueError, match="parameters of a trained"):
        factor_transfer("stage2", paraphraser={"conv1": jnp.ones(3)})
    with pytest.raises(ValueError, match="trained on 6 channels, .*'stage1' has 5"):
        factor_transfer("stage1", paraphraser=jax.eval_shape(made)).init(key, S, T, B)
    with pytest.raises(ValueError, match="must be one pair"):
        factor_transfer(["stage1", "stage2"], paraphraser=jax.eval_shape(made))


def test_coder_keeps_the_size():
    x = jax.ShapeDtypeStruct((2, 5, 3, 4), jnp.float32)
    made = jax.eval_shape(Coder((4, 2)).init_with_output, jax.random.key(0), x)
    assert made[0].shape == (2, 5, 3, 2)
