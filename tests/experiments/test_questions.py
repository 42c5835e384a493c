"""What the questions change, and one of them run small and resumed."""

import dataclasses
import json
import typing

import jax
import numpy as np
import pytest

from experiments import questions
from jaxkd.data import augment

TINY = questions.Config(
    question="cost",
    dataset="digits",
    seeds=2,
    student_images=200,
    teacher_images=1000,
    epochs=3,
    teacher_epochs=3,
    batch_size=20,
    teacher_batch_size=50,
)


def test_a_question_is_answered_by_a_table_and_resumed(tmp_path):
    results = questions.main(dataclasses.replace(TINY, out=str(tmp_path)))
    assert [*results] == ["teacher, 3 epochs", "plain", "distilled"]
    assert results["teacher, 3 epochs"]["accuracy"][0] > 0.8  # chance is 0.1
    (directory,) = (tmp_path / "questions" / "cost").iterdir()
    assert json.loads((directory / "results.json").read_text()) == results
    gain = 100 * np.subtract(
        *(results[name]["accuracy"] for name in ("distilled", "plain"))
    )
    text = (directory / "report.md").read_text()
    assert f"| distilled | {gain.mean():+.2f} ± {np.ptp(gain) / 2:.2f} |" in text
    assert "has seen 1,000 images, the students 200" in text

    (directory / "distilled").rename(tmp_path / "away")
    before = (directory / "metrics.jsonl").read_text().splitlines()
    again = dataclasses.replace(TINY, out=str(tmp_path), resume=str(directory))
    assert questions.main(again) == results
    added = (directory / "metrics.jsonl").read_text().splitlines()[len(before) :]
    assert {json.loads(row)["run"] for row in added} == {"distilled"}


@pytest.mark.parametrize("question", typing.get_args(questions.Question))
@pytest.mark.parametrize("dataset", ["digits", "fashion_mnist"])
def test_every_arm_changes_what_it_names(question, dataset):
    config = questions.Config(question=question, dataset=dataset)
    arms = questions.arms(config, augment.to_float())
    keys = {"spec", "net", "view", "epochs", "teacher_epochs"}
    assert set().union(*arms.values()) <= keys
    size = 8 if dataset == "digits" else 28
    batch = {"image": np.zeros((4, size, size, 1), np.uint8), "label": np.arange(4)}
    for arm in arms.values():
        if "view" in arm:
            seen = jax.eval_shape(arm["view"].apply, jax.random.key(0), batch)["image"]
            assert seen.shape == batch["image"].shape and seen.dtype == np.float32
        if "net" in arm:
            image = np.zeros((1, size, size, 1), np.float32)
            jax.eval_shape(arm["net"].init, jax.random.key(0), image)
    if question == "weights":
        weights = [
            [weight for weight, _ in arm["spec"].values()] for arm in arms.values()
        ]
        np.testing.assert_allclose(np.sum(weights, 1), 1)
        assert [f"{hard:g} / {soft:.3g}" for hard, soft in weights] == [*arms]


@pytest.mark.slow
@pytest.mark.parametrize("question", ["capacity", "augmentation", "teacher", "epochs"])
def test_a_question_runs(question, tmp_path):
    config = dataclasses.replace(TINY, question=question, out=str(tmp_path))
    results = questions.main(config)
    assert all(np.isfinite(found["nll"]).all() for found in results.values())
    plain = {name.removeprefix("plain, ") for name in results if "plain, " in name}
    assert plain and plain <= set(results)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"seeds": 1}, "seeds must be >= 2, got 1"),
        ({"temperature": -2.0}, "temperature must be finite and > 0, got -2"),
        ({"student_images": 10**6}, "n must be at most the 1297 examples"),
        ({"batch_size": 500}, "batch_size must be at most n = 200 examples, got 500"),
    ],
)
def test_what_cannot_work_is_refused_before_a_teacher_is_trained(
    tmp_path, wrong, message
):
    config = dataclasses.replace(TINY, **wrong, teacher_epochs=10**9)
    with pytest.raises(SystemExit, match=message):
        questions.main(dataclasses.replace(config, out=str(tmp_path)))
    assert not list(tmp_path.iterdir())
