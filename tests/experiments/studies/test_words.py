"""The arithmetic and the sentences of the studies, checked by hand."""

import numpy as np
import pytest

from experiments.studies import (
    _finding as f,
    _study,
    augmentation,
    capacity,
    cost,
    epochs,
)


def metrics(*accuracy, **others):
    """Measurements of several seeds of which only the accuracy matters."""
    n = len(accuracy)
    rest = {name: np.zeros(n) for name in ("agreement", "nll", "ece", "cka")}
    return {"accuracy": np.array(accuracy), **rest, **others}


def arm(label, *accuracy, plain=(0.5, 0.5, 0.5)):
    return f.Arm(label, metrics(*accuracy), metrics(*plain))


def test_gains_are_paired_by_seed():
    # Differences of 1, 2 and 3 points: mean 2, sd 1, standard error 1 / sqrt(3).
    mean, error = f.paired([0.51, 0.72, 0.33], [0.50, 0.70, 0.30])
    assert mean == pytest.approx(2)
    assert error == pytest.approx(3**-0.5)


@pytest.mark.parametrize(
    ("difference", "words"),
    [
        ((0.5, 0.1), "a gain of 0.50 ± 0.10 points"),
        ((-0.5, 0.1), "a loss of 0.50 ± 0.10 points"),
        ((0.1, 0.1), "no difference (+0.10 ± 0.10 points)"),
        ((-0.05, 0.1), "no difference (-0.05 ± 0.10 points)"),
        ((float("nan"), 0.1), "no difference (+nan ± 0.10 points)"),
    ],
)
def test_within_one_standard_error_is_no_difference(difference, words):
    assert f.changes(difference) == words


def test_the_best_is_named_with_its_lead():
    low, high = arm("low", 0.5, 0.5, 0.5), arm("high", 0.51, 0.52, 0.53)
    assert f.best_of([low, high], low) == (
        "high is best of 2, by 2.00 ± 0.58 points over low"
    )


def test_arms_as_good_as_the_best_are_named():
    low, high = arm("low", 0.5, 0.5, 0.5), arm("high", 0.60, 0.62, 0.64)
    close, far = arm("close", 0.61, 0.61, 0.63), arm("far", 0.55, 0.57, 0.59)
    # High is ahead of close by -1, 1 and 1 points: 0.33 ± 0.67; of far by 5 each time.
    assert f.best_of([low, close, high, far], low) == (
        "high is best of 4, by 12.00 ± 1.15 points over low (no different: close)"
    )


def test_if_the_reference_is_best_the_next_one_is_named():
    ref, worse = arm("ref", 0.6, 0.6, 0.6), arm("worse", 0.4, 0.4, 0.4)
    bad, middle = ref, arm("middle", 0.55, 0.56, 0.54)
    assert "over the next, middle" in f.best_of([worse, bad, middle], ref)


def test_no_winner_is_named_within_one_standard_error():
    a, b = arm("a", 0.50, 0.52, 0.54), arm("b", 0.56, 0.50, 0.52)
    sentence = f.best_of([a, b], a)
    assert sentence.startswith("none of 2 stands out") and "b" in sentence


def test_a_shared_plain_row_stands_once_and_own_ones_beside_each():
    teacher, plain = metrics(0.9), metrics(0.5, 0.6)
    a, b = (f.Arm(name, metrics(0.6, 0.7), plain) for name in "ab")
    labels = lambda lines: [line.arm.label for line in lines]
    assert labels(_study.table([a, b], [teacher, teacher])) == [
        "teacher",
        "plain",
        "a",
        "b",
    ]
    b = b._replace(plain=metrics(0.5, 0.6))
    assert labels(_study.table([a, b], [teacher, metrics(0.8)])) == [
        "a, teacher",
        "a, plain",
        "a",
        "b, teacher",
        "b, plain",
        "b",
    ]


def test_the_columns_of_a_row():
    row = f.columns("kind", arm("x", 0.52, 0.54, 0.56))
    assert row["kind"] == "x"
    assert row["test accuracy %"] == "54.00 ± 2.00"
    assert row["gain, points"] == "+4.00 ± 1.15"  # sd 2 over sqrt(3)
    assert f.columns("kind", f.Arm("plain", metrics(0.5, 0.5)))["gain, points"] == ""
    taught = f.teacher_row("kind", f.Arm("teacher", metrics(0.9)))
    assert taught["test accuracy %"] == "90.00"
    assert taught["agreement %"] == taught["CKA"] == ""


def test_the_augmentations_sentence_compares_the_plain_students_too():
    none = f.Arm("none", metrics(0.6, 0.62), metrics(0.5, 0.52))
    flip = f.Arm("flip", metrics(0.7, 0.72), metrics(0.53, 0.56))
    first, second = augmentation.sentences([none, flip])
    assert "flip is best of 2, by 10.00 ± 0.00 points over none" in first
    assert "a gain of 3.50 ± 0.50 points" in first
    assert "none +10.00 ± 0.00, flip +16.50 ± 0.50" in second


def test_the_epochs_sentences_let_the_plain_students_stop_early():
    early = f.Arm("5 epochs", metrics(0.5, 0.52), metrics(0.55, 0.57))
    late = f.Arm("9 epochs", metrics(0.6, 0.62), metrics(0.4, 0.44))
    first, second = epochs.sentences([early, late])
    assert "gains -5.00 ± 0.00 after 5 epochs, +19.00 ± 1.00 after 9 epochs" in first
    assert "makes a gain of 9.00 ± 1.00 points against the plain one" in first
    assert "9 epochs distilled and 5 epochs plain" in second
    assert "a gain of 5.00 ± 0.00 points" in second


def test_the_capacity_sentence_counts_whom_it_helps_and_harms():
    arms = [
        arm("big", 0.60, 0.62, 0.64),
        arm("second", 0.55, 0.56, 0.57),
        arm("middle", 0.49, 0.51, 0.50),
        arm("small", 0.30, 0.32, 0.34),
    ]
    said = capacity.sentence(arms)
    assert said.startswith("Distillation helps 2 and harms 1 of 4 students;")
    assert ": big has a gain of 12.00 ± 1.15 points; small has a loss of 18.00" in said
    assert said.count("small has") == 1 and "middle" not in said


def test_the_cost_sentence_has_the_ratios():
    large = {"parameters": 90, "macs": 80, "ms": 4.0}
    small = {"parameters": 30, "macs": 20, "ms": 2.0}
    numbers = {"teacher": large, "distilled student": small}
    said = cost.sentence(numbers, arm("d", 0.6, 0.6, 0.6), 0.7)
    assert "3.0 times fewer parameters and 4.0 times fewer MACs" in said
    assert "in 2.000 ms (the teacher: 4.000)" in said
    assert "a loss of 10.00 ± 0.00 points against the teacher" in said
