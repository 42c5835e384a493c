"""The memory: which rows change and how, which are drawn, what stays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import checkpoint
from jaxkd.terms._pairs import added
from jaxkd.terms.crd import Rows, crd, draw, find, rows
from tests.terms import small

# A subset: indices with gaps, in no order; three classes of 6, 5 and 9 examples.
RNG = np.random.default_rng(0)
INDEX = RNG.permutation(500)[:20].astype(np.int32)
LABELS = RNG.permutation(np.repeat([0, 1, 2], [6, 5, 9])).astype(np.int32)
S, T = small.outputs(0, 3), small.outputs(1, 5)
# None of the batch lies in the last row, which a careless write past it would hit.
HERE = np.flatnonzero(rows(INDEX, LABELS).row[np.argsort(np.argsort(INDEX))] < 19)[:6]
B = small.batch(INDEX[HERE], LABELS[HERE])


def term(**knobs):
    settings = {"dims": 4, "negatives": 7, "index": INDEX, "labels": LABELS}
    return crd(**{**settings, **knobs})


def started(**knobs):
    return jax.jit(term(**knobs).init)(jax.random.key(0), S, T, B)


def class_of_row():
    """The class of every row, through the lookup of every example."""
    found, known = find(rows(INDEX, LABELS), jnp.asarray(INDEX))
    assert known.all()
    assert sorted(np.asarray(found)) == list(range(20))  # each has a row of its own
    classes = np.empty(20, int)
    classes[found] = LABELS
    return classes


def test_lookup_knows_who_is_there():
    layout = rows(INDEX, LABELS)
    strangers = jnp.asarray(sorted(set(range(-1, 502)) - set(INDEX.tolist())))
    found, known = find(layout, strangers)
    assert not known.any()
    assert (found == 20).all()  # past the last row, hence written nowhere


@pytest.mark.parametrize("labels", [LABELS, None])
def test_negatives_are_uniform_over_the_other_classes(labels):
    layout = rows(INDEX, labels)
    row, _ = find(layout, jnp.asarray(INDEX))
    drawn = np.asarray(draw(jax.random.key(1), layout, row, 4000))
    classes = np.arange(20) if labels is None else class_of_row()
    for i in range(20):
        allowed = np.flatnonzero(classes != classes[row[i]])
        counts = np.bincount(drawn[i], minlength=20)
        assert counts.sum() == counts[allowed].sum() == 4000
        # Chi-squared with at most 18 degrees of freedom: mean 18, sd 6.
        expected = 4000 / len(allowed)
        assert ((counts[allowed] - expected) ** 2 / expected).sum() < 18 + 5 * 6


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def projected(params, outputs, side):
    layer = {k: np.asarray(v, np.float64) for k, v in params[side].items()}
    return unit(np.asarray(outputs.taps["pooled"]) @ layer["kernel"] + layer["bias"])


def test_the_banks_move_in_the_rows_of_the_batch_only():
    params, state = started(momentum=0.3)
    _, new = jax.jit(term(momentum=0.3).apply)(params, state, S, T, B)
    row = np.asarray(find(Rows(**state["rows"]), B["index"])[0])
    for side, outputs in (("student", S), ("teacher", T)):
        old, now = (np.asarray(z["banks"][side], np.float64) for z in (state, new))
        np.testing.assert_allclose(np.linalg.norm(now, axis=1), 1, rtol=1e-5)
        others = np.setdiff1d(np.arange(20), row)
        np.testing.assert_array_equal(old[others], now[others])
        wanted = unit(0.3 * old[row] + 0.7 * projected(params, outputs, side))
        np.testing.assert_allclose(now[row], wanted, rtol=1e-4, atol=1e-5)
    assert not any(small.unequal(state["rows"], new["rows"]))
    assert (state["seed"] != new["seed"]).any()


def draws(state):
    """The rows that the next step will draw."""
    layout = Rows(**state["rows"])
    row = find(layout, B["index"])[0]
    key = jax.random.wrap_key_data(state["seed"], impl="threefry2x32")
    return np.asarray(row), np.asarray(draw(jax.random.split(key)[1], layout, row, 7))


def by_hand(params, state, z=None, temperature=0.07):
    """Equation and normalisers in probability space and double precision."""
    row, others = draws(state)
    candidates = np.concatenate([row[:, None], others], 1)
    total, fresh = np.zeros(6), []
    sides = (("student", S, "teacher"), ("teacher", T, "student"))
    for i, (side, outputs, bank) in enumerate(sides):
        bank = np.asarray(state["banks"][bank], np.float64)[candidates]
        x = np.einsum("bd,bkd->bk", projected(params, outputs, side), bank)
        x = np.exp(x / temperature)
        fresh.append(20 * x.mean())
        x = x / (fresh[i] if z is None else z[i])
        h = x / (x + 7 / 20)
        total += -np.log(h[:, 0]) - np.log(1 - h[:, 1:]).sum(1)
    return total, fresh


def test_normalisers_are_the_first_batchs_and_stay():
    params, state = started()
    apply = jax.jit(term().apply)
    loss, second = apply(params, state, S, T, B)
    wanted, z = by_hand(params, state)
    np.testing.assert_array_equal(state["normalizers"], 0)
    np.testing.assert_allclose(second["normalizers"], z, rtol=1e-4)
    np.testing.assert_allclose(loss, wanted, rtol=1e-4)
    loss, third = apply(params, second, S, T, B)
    np.testing.assert_array_equal(second["normalizers"], third["normalizers"])
    np.testing.assert_allclose(loss, by_hand(params, second, z)[0], rtol=1e-4)


def test_no_gradient_through_the_normalisers():
    params, state = started()
    total = lambda p, z: term().apply(p, z, S, T, B)[0].sum()
    gradient = jax.jit(jax.grad(total))
    _, second = jax.jit(term().apply)(params, state, S, T, B)
    fixed = {**state, "normalizers": second["normalizers"]}
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    jax.tree.map(close, gradient(params, state), gradient(params, fixed))


@pytest.mark.slow
def test_trains_and_survives_a_checkpoint(tmp_path):
    (before, _), (after, state), loss = small.descend(term(), S, T, B, rate=0.02)
    assert all(small.unequal(before, after))
    assert loss[-5:].mean() < 0.7 * loss[:5].mean()
    checkpoint.save(tmp_path / "state", state)
    loaded = checkpoint.load(tmp_path / "state", like=state)
    again = [term().apply(after, z, S, T, B)[0] for z in (state, loaded)]
    np.testing.assert_array_equal(*again)


def test_seeds_have_banks_of_their_own():
    small.two_seeds_are_two_runs(term(), S, T, B)


def test_an_unknown_example_is_nan_and_is_not_written():
    params, state = started()
    lost = {**B, "index": B["index"].at[2].set(1000)}
    loss, new = jax.jit(term().apply)(params, state, S, T, lost)
    assert np.isnan(loss).tolist() == [False, False, True, False, False, False]
    row = find(Rows(**state["rows"]), B["index"])[0]
    np.testing.assert_array_equal(
        new["banks"]["student"][row[2]], state["banks"]["student"][row[2]]
    )
    assert sum((new["banks"]["student"] != state["banks"]["student"]).any(1)) == 5
    assert 19 not in row
    assert np.isfinite(new["normalizers"]).all()


@pytest.mark.bad_input
def test_errors_name_what_does_not_fit():
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="some occur twice"):
        crd(index=np.array([1, 2, 1]))
    with pytest.raises(ValueError, match="two classes"):
        crd(index=INDEX, labels=np.zeros_like(LABELS))
    with pytest.raises(ValueError, match="labels must have shape"):
        crd(index=INDEX, labels=LABELS[:5])
    with pytest.raises(ValueError, match="negatives must be >= 1"):
        term(negatives=0)
    with pytest.raises(ValueError, match=r'"index" has 1 examples .*\[1000\]'):
        term().init(key, S, T, {**B, "index": B["index"].at[2].set(1000)})
    with pytest.raises(ValueError, match="mixed"):
        term().init(key, S, T, {**B, "label_other": B["label"]})
    with pytest.raises(KeyError, match='"index"'):
        term().init(key, S, T, {"label": B["label"]})
    for odd in (B["index"].astype(jnp.float32), B["index"][:, None]):
        with pytest.raises(ValueError, match='column "index" must hold one whole'):
            jax.eval_shape(term().init, key, S, T, {**B, "index": odd})


@pytest.mark.bad_input
def test_examples_without_a_row_are_refused_unless_a_mask_leaves_them_out():
    columns = {"index": jnp.asarray([*INDEX, 1000, 1001])}
    both = added({"a": term(), "b": term()})
    for check in (term().check, both.check):
        with pytest.raises(ValueError, match=r'"index" has 2 examples .*\[1000 1001\]'):
            check(columns)
        check({**columns, "where": jnp.arange(22) < 20})
