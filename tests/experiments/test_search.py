"""Architecture search, run small on the digits in the package, and extended."""

import dataclasses

import pytest

from experiments import search as experiment
from jaxkd import cost
from jaxkd.compress import search

TINY = experiment.Config(
    dataset="digits",
    preset="short",
    budget=2,
    candidate_epochs=1,
    epochs=1,
    teacher_epochs=1,
    seeds=2,
    train_images=300,
    batch_size=50,
)


@pytest.mark.parametrize("kind", ["resnet", "mobilenet"])
def test_the_teacher_is_wider_than_the_base(kind):
    space, base = experiment.space_of(dataclasses.replace(TINY, space=kind), 10)
    macs = lambda net: cost.of(net, (32, 32, 3)).macs
    assert macs(experiment.teacher(space, base)) > 1.4 * macs(space.net(base))


@pytest.mark.slow
def test_what_is_chosen_obeys_the_limit_and_a_search_can_go_on(tmp_path):
    config = dataclasses.replace(TINY, workers=2, out=str(tmp_path))
    results = experiment.main(config)
    assert results["chosen MACs"] <= 0.83 * results["base MACs"]
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
    for name in ("short", "long"):
        tested = search.trials(directory / f"{name}.jsonl")
        assert all(len(trial.info["accuracy"]) == 2 for trial in tested)


@pytest.mark.bad_input
def test_an_impossible_limit_is_refused_before_training(tmp_path):
    config = dataclasses.replace(TINY, share=0.001, out=str(tmp_path))
    with pytest.raises(SystemExit, match="cannot be met: the space reaches"):
        experiment.main(config)
    assert not list(tmp_path.iterdir())
