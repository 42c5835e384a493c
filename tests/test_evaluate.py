"""Measures of a trained network, against their definitions in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import data, distill, evaluate
from jaxkd.types import Outputs
from tests import toys

logits = np.random.default_rng(0).normal(size=(50, 5)).astype(np.float32) * 2
others = np.random.default_rng(1).normal(size=(50, 5)).astype(np.float32)
labels = np.random.default_rng(2).integers(0, 5, 50).astype(np.int32)
probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)


@pytest.mark.parametrize("batch_size", [1, 7, 40, 64])
def test_predict_is_the_network_on_every_example_in_order(batch_size):
    resident = data.on_device(toys.dataset(40))
    variables = toys.teacher_variables()
    teacher = distill.frozen(toys.teacher)
    got = evaluate.predict(
        teacher, variables, resident, view=toys.view, batch_size=batch_size
    )
    whole = toys.view(jax.random.key(0), resident)
    np.testing.assert_allclose(got, teacher(variables, whole).logits, atol=1e-5)


def test_accuracy_and_agreement_count():
    hits = sum(int(row.argmax() == y) for row, y in zip(logits, labels, strict=True))
    assert float(evaluate.accuracy(logits, labels)) == pytest.approx(hits / 50)
    same = sum(
        int(a.argmax() == b.argmax()) for a, b in zip(logits, others, strict=True)
    )
    assert float(evaluate.agreement(logits, others)) == pytest.approx(same / 50)


def test_nll_is_the_mean_of_minus_log_p():
    wanted = -np.mean(
        [np.log(p[y]) for p, y in zip(probabilities, labels, strict=True)]
    )
    assert float(evaluate.nll(logits, labels)) == pytest.approx(wanted, rel=1e-5)
    far = jnp.array([[0.0, 1e4]])
    assert float(evaluate.nll(far, jnp.array([0]))) == pytest.approx(1e4)
    # Five outputs for ten classes: not a mean over the labels that have an output.
    traced = jax.jit(lambda labels: evaluate.nll(far, labels))
    assert float(traced(jnp.array([2]))) == np.inf
    assert float(traced(jnp.array([-1]))) == 0


@pytest.mark.bad_input
def test_predict_refuses_the_logits_of_several_teachers():
    both = lambda variables, batch: Outputs(jnp.zeros((2, len(batch["image"]), 5)), {})
    with pytest.raises(ValueError, match=r"logits must be .* got \(2, "):
        evaluate.predict(
            both, None, data.on_device(toys.dataset()), view=toys.view, batch_size=10
        )


@pytest.mark.parametrize("bins", [1, 5, 15])
def test_ece_sums_the_gaps_of_its_bins(bins):
    confidence, correct = probabilities.max(-1), logits.argmax(-1) == labels
    wanted = 0.0
    for b in range(bins):
        inside = (confidence > b / bins) & (confidence <= (b + 1) / bins)
        if inside.any():
            gap = abs(correct[inside].mean() - confidence[inside].mean())
            wanted += inside.mean() * gap
    got = evaluate.ece(logits, labels, bins=bins)
    assert float(got) == pytest.approx(wanted, abs=1e-5)


def test_ece_of_certainty_is_the_error():
    certain = 1e3 * jax.nn.one_hot(labels, 5)
    assert float(evaluate.ece(certain, labels)) == 0
    assert float(evaluate.ece(certain, (labels + 1) % 5)) == 1


def test_cka_is_one_up_to_rotation_and_scale_and_zero_for_constants():
    x = np.random.default_rng(3).normal(size=(50, 6)).astype(np.float32)
    rotation, _ = np.linalg.qr(np.random.default_rng(4).normal(size=(6, 6)))
    moved = 3 * x @ rotation.astype(np.float32) + 7
    assert float(evaluate.cka(x, moved)) == pytest.approx(1, abs=1e-4)
    assert float(evaluate.cka(x, np.ones_like(x))) == 0
    kernel = lambda f: (f - f.mean(0)) @ (f - f.mean(0)).T
    a, b = kernel(x), kernel(others)
    wanted = (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())
    assert float(evaluate.cka(x, others)) == pytest.approx(wanted, rel=1e-4)


@pytest.mark.bad_input
def test_wrong_shapes_are_named():
    with pytest.raises(
        ValueError, match=r"labels must have shape \(50,\), got \(49,\)"
    ):
        evaluate.accuracy(logits, labels[:49])
    with pytest.raises(ValueError, match=r"logits \(50, 5\), others \(49, 5\)"):
        evaluate.agreement(logits, others[:49])
    with pytest.raises(ValueError, match="50 and 49"):
        evaluate.cka(logits, others[:49])
