"""The moved biases against their definition, and a small run of the experiment."""

import dataclasses

import numpy as np
import pytest

from experiments import hinton_missing


@pytest.fixture
def logits():
    return np.random.default_rng(1).normal(size=(3, 1000, 10)).astype(np.float32)


def won(logits, classes):
    return np.isin(logits.argmax(-1), classes).mean(-1)


@pytest.mark.parametrize("classes", [(3,), (7, 8)])
@pytest.mark.parametrize("share", [0.01, 0.1, 0.6])
def test_with_its_bias_the_classes_win_their_share(logits, classes, share):
    bias = hinton_missing.bias_for(logits, classes, share)
    assert bias.shape == (3,) and len(set(bias)) == 3  # each seed has its own
    found = won(hinton_missing.move(logits, classes, bias), classes)
    np.testing.assert_allclose(found, share, atol=1.5 / 1000)


def test_moving_a_bias_back_restores_it_and_touches_no_other_class(logits):
    there = hinton_missing.move(logits, (7, 8), [1.0, 2.0, 3.0])
    others = [0, 1, 2, 3, 4, 5, 6, 9]
    np.testing.assert_array_equal(there[..., others], logits[..., others])
    for seed, bias in enumerate((1.0, 2.0, 3.0)):
        raised = there[seed][:, [7, 8]] - logits[seed][:, [7, 8]]
        np.testing.assert_allclose(raised, bias, rtol=1e-5)


def test_the_best_bias_undoes_a_shift():
    # Logits that are right by a margin of 1, then the 3s lowered by 2.5: every bias
    # from 1.5 (excluded) to 3.5 (excluded) makes them right, 1.6 is the smallest.
    labels = np.arange(10).repeat(4)
    right = np.broadcast_to(np.eye(10)[labels], (2, 40, 10))
    lowered = hinton_missing.move(right, (3,), np.array([-2.5, 0.0]))
    assert hinton_missing.errors(lowered, labels).tolist() == [4, 0]
    best = hinton_missing.best_bias(lowered, labels, (3,))
    assert best.tolist() == [1.6, 0.0]
    again = hinton_missing.move(lowered, (3,), best)
    assert hinton_missing.errors(again, labels).tolist() == [0, 0]


@pytest.mark.slow
def test_students_that_saw_no_3s_miss_them_and_a_bias_brings_them_back(tmp_path):
    config = hinton_missing.Config(
        dataset="digits",
        teacher_units=200,
        units=64,
        jitter=1,
        teacher_epochs=25,
        teacher_batch_size=50,
        batch_size=50,
        epochs=10,
        seeds=2,
        learning_rate=3e-3,
        out=str(tmp_path),
    )
    results = hinton_missing.main(config)
    before = results["no 3s, as it is"]
    after = results["no 3s, bias for its share of the images"]
    assert np.mean(after["on 3s"]) < 0.6 * np.mean(before["on 3s"])
    assert np.mean(after["errors"]) < np.mean(before["errors"])
    again = hinton_missing.main(
        dataclasses.replace(
            config, resume=str(next((tmp_path / "hinton_missing").iterdir()))
        )
    )
    assert again == results


@pytest.mark.bad_input
def test_a_batch_larger_than_the_transfer_set_is_refused(tmp_path):
    config = hinton_missing.Config(dataset="digits", batch_size=600, out=str(tmp_path))
    with pytest.raises(SystemExit, match="batch_size must be at most n"):
        hinton_missing.main(config)
    assert not list(tmp_path.iterdir())
