"""Architecture search, run small on the digits in the package, and extended."""

import dataclasses

import pytest

from experiments import search as experiment
from jaxkd.compress import search

TINY = experiment.Config(
    dataset="digits",
    budget=2,
    candidate_epochs=1,
    epochs=1,
    teacher_epochs=1,
    seeds=2,
    train_images=300,
    batch_size=50,
    stem_strides=1,
)


@pytest.mark.slow
def test_what_is_chosen_obeys_the_limit_and_a_search_can_go_on(tmp_path):
    config = dataclasses.replace(TINY, out=str(tmp_path))
    base, chosen = experiment.main(config)
    assert chosen["macs"] <= 0.83 * base["macs"]
    assert len(base["accuracy"]) == len(chosen["accuracy"]) == 2
    (directory,) = (tmp_path / "search").iterdir()
    first = search.trials(directory / "search.jsonl")
    assert len(first) == 2
    assert len(search.trials(directory / "finalists.jsonl")) == 2
    text = (directory / "report.md").read_text()
    assert "| base |" in text and "| chosen |" in text

    more = dataclasses.replace(config, budget=3, resume=str(directory))
    experiment.main(more)
    found = search.trials(directory / "search.jsonl")
    assert found[:2] == first and len(found) == 3


@pytest.mark.bad_input
def test_an_impossible_limit_is_refused_before_training(tmp_path):
    config = dataclasses.replace(TINY, share=0.001, out=str(tmp_path))
    with pytest.raises(SystemExit, match="cannot be met: the space reaches"):
        experiment.main(config)
    assert not list(tmp_path.iterdir())
