"""The classes of the target task are new, and a small run."""

import dataclasses

import pytest

from experiments import transfer
from jaxkd.data import classes

WAYS = ("teacher", "from scratch", "fine-tuned", "distilled", "fused")


@pytest.mark.slow
def test_all_ways_learn(tmp_path):
    config = transfer.Config(
        sizes=(50, 100), seeds=1, steps=100, source_epochs=4, out=str(tmp_path)
    )
    results = transfer.main(config)
    learnt = {f"{way}, {n}" for way in WAYS for n in config.sizes}
    assert set(results) == learnt | {"source, large", "source, small"}
    assert min(results[name] for name in learnt) > 0.5  # chance is 0.2
    (directory,) = (tmp_path / "transfer").iterdir()
    text = (directory / "report.md").read_text()
    assert "| target images | teacher | from scratch |" in text
    assert "fused - fine-tuned" in text


def test_the_new_classes_are_new():
    names = transfer.NEW_IN_CIFAR100
    assert len(set(names)) == 10 and set(names) <= set(classes.CIFAR100)
    assert not set(names) & set(classes.CIFAR10)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"sizes": (10, 9999)}, "images: n must be at most the 646 examples"),
        ({"sizes": (10,), "batch_size": 50}, "batch_size must be at most n = 20"),
        ({"temperature": 0.0}, "temperature must be finite and > 0, got 0.0"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_trained(
    tmp_path, wrong, message
):
    config = dataclasses.replace(
        transfer.Config(source_epochs=10**9, out=str(tmp_path)), **wrong
    )
    with pytest.raises(SystemExit, match=message):
        transfer.main(config)
