"""The parts of the experiment, and a small run of it that is cut short and resumed."""

import dataclasses
import json

import pytest

from experiments import (
    _search_lab as labs,
    _search_report as reports,
    search as experiment,
)
from jaxkd.compress import search

TINY = labs.Config(
    dataset="digits",
    preset="short",
    budget=3,
    candidate_epochs=1,
    epochs=2,
    teacher_epochs=1,
    seeds=2,
    train_images=300,
    batch_size=50,
)


def test_the_front_is_what_no_other_point_beats():
    points = [(3, 0.6), (1, 0.5), (2, 0.5), (3, 0.7), (4, 0.7), (1, 0.4)]
    front = reports.front(points)
    assert front == [(1, 0.5), (3, 0.7)]
    beaten = lambda p: any(
        q != p and q[0] <= p[0] and q[1] >= p[1] for q in set(points)
    )
    assert set(front) == {p for p in points if not beaten(p)}


def test_presets_fill_what_is_not_given():
    short = labs.filled(labs.Config(preset="short", epochs=99))
    assert short.epochs == 99
    assert short.budget == labs.PRESETS["short"]["budget"]
    assert None not in (short.stem_strides, short.augmented, short.train_images)
    digits = labs.filled(labs.Config(preset="full", dataset="digits"))
    assert (digits.stem_strides, digits.augmented) == (1, False)


def test_the_base_is_the_usual_network_and_the_teacher_is_wider():
    from jaxkd import cost

    for kind in ("resnet", "mobilenet"):
        config = labs.filled(dataclasses.replace(TINY, space=kind))
        space = search.resnet_space(10)
        if kind == "mobilenet":
            space = search.mobilenet_space(10)
        lab = labs.Lab(config, None, None, None, space, None)
        base = cost.of(space.net(labs.base_tokens(lab)), (32, 32, 3))
        teacher = cost.of(labs.teacher_net(lab), (32, 32, 3))
        assert teacher.macs > 1.4 * base.macs


@pytest.mark.slow
def test_a_small_run_that_is_killed_resumes_and_leaves_its_report(
    tmp_path, monkeypatch, capsys
):
    calls = []
    make = search.short_training

    def counted(*args, **knobs):
        evaluate = make(*args, **knobs)

        def run(tokens):
            if len(calls) == 2:
                calls.append(None)
                raise KeyboardInterrupt
            calls.append(tokens)
            return evaluate(tokens)

        return run

    monkeypatch.setattr(search, "short_training", counted)
    config = dataclasses.replace(TINY, out=str(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        experiment.main(config)
    (folder,) = (tmp_path / "search").iterdir()
    kept = search.trials(folder / "search.jsonl")
    assert [trial.tokens for trial in kept] == calls[:2]

    results = experiment.main(dataclasses.replace(config, resume=str(folder)))
    # Two, the killed one, the third, all three as finalists, the base; both, twice.
    assert len(calls) == 2 + 1 + 1 + 3 + 1 + 2 + 2
    assert results["chosen MACs"] <= 0.83 * results["base MACs"]
    found = search.trials(folder / "search.jsonl")
    assert len(found) == 3
    text = (folder / "report.md").read_text()
    assert "| base |" in text and "| chosen |" in text and text.count("±") >= 4
    assert (folder / "candidates.png").read_bytes().startswith(b"\x89PNG")
    for name in ("short", "long"):
        line = (folder / f"{name}.jsonl").read_text().splitlines()[1]
        assert len(json.loads(line)["info"]["accuracy"]) == 2
    assert "the space reaches" in capsys.readouterr().out


def test_of_equally_good_candidates_the_cheaper_is_trained_again_first():
    found = [
        search.Trial((cost,), reward, 1.0, {})
        for cost, reward in [(7, 0.5), (9, 0.8), (4, 0.8), (1, 0.2), (6, 0.8)]
    ]
    ranked = experiment.ranked(found, lambda tokens: tokens[0])
    assert [trial.tokens[0] for trial in ranked] == [4, 6, 9, 7, 1]


@pytest.mark.slow
def test_two_processes_find_the_same_teacher_and_obey_the_limit(tmp_path):
    config = dataclasses.replace(TINY, workers=2, finalists=1, out=str(tmp_path))
    results = experiment.main(config)
    (folder,) = (tmp_path / "search").iterdir()
    found = search.trials(folder / "search.jsonl")
    assert len(found) == 3
    assert results["chosen MACs"] <= 0.83 * results["base MACs"]
    final = search.trials(folder / "finalists.jsonl")
    assert len(final) == 1
    # The journal is in the order in which results came: two may be equally good.
    most = max(trial.reward for trial in found)
    assert final[0].tokens in [t.tokens for t in found if t.reward == most]


@pytest.mark.slow
@pytest.mark.bad_input
def test_an_impossible_limit_is_refused_with_the_range(tmp_path):
    config = dataclasses.replace(TINY, share=0.001, out=str(tmp_path))
    with pytest.raises(SystemExit, match="cannot be met: the space reaches"):
        experiment.main(config)
