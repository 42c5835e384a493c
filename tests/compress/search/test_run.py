"""The loop and its journal: resumed sequences, kills, torn lines, processes."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest

from jaxkd.compress import search
from tests.compress.search import tabular

ROOT = pathlib.Path(__file__).parents[3]
TABLE = tabular.table((4, 4, 4), seed=3)
CONTROLLERS = {
    "anneal": search.anneal(TABLE.sizes, (0, 0, 0)),
    "evolve": search.evolve(TABLE.sizes, population=6, tournament=3),
    "random": search.random_search(TABLE.sizes),
}
each = pytest.mark.parametrize("controller", CONTROLLERS.values(), ids=CONTROLLERS)


def cheap(tokens):
    return TABLE.cost(tokens) <= 6


def counted(calls):
    def evaluate(tokens):
        calls.append(tokens)
        return TABLE.reward(tokens)

    return evaluate


def same(one, two):
    strip = lambda trials: [(t.tokens, t.reward, t.info) for t in trials]
    return strip(one) == strip(two)


@each
def test_so_many_different_feasible_candidates_each_evaluated_once(controller):
    calls = []
    found = search.run(controller, counted(calls), budget=25, feasible=cheap)
    assert [trial.tokens for trial in found] == calls
    assert len(set(calls)) == 25 and all(map(cheap, calls))
    assert search.best(found).reward == max(map(TABLE.reward, calls))


@each
def test_a_search_that_is_run_again_evaluates_nothing_and_goes_on(controller, tmp_path):
    path, calls = tmp_path / "deep" / "j.jsonl", []
    how = {"feasible": cheap, "seed": 5}
    whole = search.run(controller, TABLE.reward, budget=20, **how)
    part = search.run(controller, TABLE.reward, budget=8, journal=path, **how)
    assert same(part, whole[:8])
    assert same(search.trials(path), part)
    again = search.run(controller, counted(calls), budget=8, journal=path, **how)
    assert calls == [] and same(again, part)
    rest = search.run(controller, counted(calls), budget=20, journal=path, **how)
    assert same(rest, whole)
    assert calls == [trial.tokens for trial in whole[8:]]
    assert search.best(path).tokens == search.best(whole).tokens


@each
def test_a_journal_cut_off_at_any_byte_resumes_to_the_same(controller, tmp_path):
    path = tmp_path / "j.jsonl"
    how = {"budget": 6, "feasible": cheap, "journal": path}
    whole = search.run(controller, TABLE.reward, **how)
    content = path.read_bytes()
    for cut in [*range(0, len(content), 37), len(content) - 1]:
        path.write_bytes(content[:cut])
        calls = []
        assert same(search.run(controller, counted(calls), **how), whole)
        complete = max(0, content[:cut].count(b"\n") - 1)
        assert calls == [trial.tokens for trial in whole[complete:]]
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [tuple(line["tokens"]) for line in lines[1:]] == [t.tokens for t in whole]


def test_the_journal_of_another_search_is_refused_with_what_differs(tmp_path):
    path = tmp_path / "j.jsonl"
    run = partial(search.run, evaluate=TABLE.reward, budget=3, journal=path)
    run(CONTROLLERS["anneal"], settings={"limit": ["MACs", 0, 10]})
    before = path.read_bytes()
    message = r"another search: limit was \[\"MACs\", 0, 10\], is \[\"MACs\", 0, 9\]"
    with pytest.raises(ValueError, match=message):
        run(CONTROLLERS["anneal"], settings={"limit": ["MACs", 0, 9]})
    with pytest.raises(ValueError, match="seed was 0, is 1"):
        run(CONTROLLERS["anneal"], settings={"limit": ["MACs", 0, 10]}, seed=1)
    with pytest.raises(ValueError, match='controller was "anneal", is "random"'):
        run(CONTROLLERS["random"], settings={"limit": ["MACs", 0, 10]})
    assert path.read_bytes() == before


def test_a_journal_under_another_limit_that_was_not_told_is_refused(tmp_path):
    path = tmp_path / "j.jsonl"
    search.run(CONTROLLERS["random"], TABLE.reward, budget=20, journal=path)
    with pytest.raises(ValueError, match="which is infeasible"):
        search.run(
            CONTROLLERS["random"],
            TABLE.reward,
            budget=20,
            journal=path,
            feasible=lambda tokens: TABLE.cost(tokens) <= 1,
        )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"my diary", "is not a journal, it begins with b'my diary'"),
        (b"dear diary\n", "line 1 is damaged"),
        (b'{"a": 1}\n', "line 1 is not of a journal"),
        (b'{"journal": 1}\n{"tok\n{"tokens": [0]}\n', "line 2 is damaged"),
    ],
)
def test_other_files_are_refused_and_stay_as_they_are(tmp_path, content, message):
    path = tmp_path / "j.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        search.run(CONTROLLERS["random"], TABLE.reward, budget=2, journal=path)
    assert path.read_bytes() == content


def test_two_searches_do_not_write_one_journal(tmp_path):
    path = tmp_path / "j.jsonl"
    how = {"budget": 2, "journal": path}

    def evaluate(tokens):
        with pytest.raises(ValueError, match="another process is working in"):
            search.run(CONTROLLERS["random"], TABLE.reward, **how)
        return 0.0

    assert len(search.run(CONTROLLERS["random"], evaluate, **how)) == 2


def test_what_an_evaluation_says_besides_is_kept(tmp_path):
    path = tmp_path / "j.jsonl"
    says = lambda tokens: {
        "reward": np.float32(0.5),
        "accuracies": np.ones(2),
        "loss": float("nan"),
    }
    search.run(CONTROLLERS["random"], says, budget=1, journal=path)
    (trial,) = search.trials(path)
    assert trial.reward == 0.5 and trial.info["accuracies"] == [1.0, 1.0]
    assert np.isnan(trial.info["loss"])


@pytest.mark.parametrize("ahead", [1, 3])
@each
def test_a_candidate_that_fails_is_recorded_and_the_search_goes_on(
    controller, ahead, tmp_path
):
    path, calls = tmp_path / "j.jsonl", []

    def fragile(tokens):
        calls.append(tokens)
        if tokens[0] == 1:
            raise MemoryError("too large")
        return float("nan") if tokens[1] == 2 else TABLE.reward(tokens)

    how = {"budget": 30, "ahead": ahead}
    found = search.run(controller, fragile, journal=path, **how)
    assert [trial.tokens for trial in found] == calls and len(set(calls)) == 30
    reasons = {trial.tokens: trial.error for trial in found if trial.error}
    assert reasons == {
        tokens: "MemoryError: too large" if tokens[0] == 1 else "the reward is nan"
        for tokens in calls
        if tokens[0] == 1 or tokens[1] == 2
    }
    assert 0 < len(reasons) < 30 and not search.best(found).error
    assert all(t.reward == -np.inf for t in found if t.error)
    # Strict JSON, and nothing is evaluated again; also after a cut in the middle.
    strict = lambda text: json.loads(text, parse_constant=pytest.fail)
    assert len([*map(strict, path.read_text().splitlines())]) == 31
    calls.clear()
    assert search.run(controller, fragile, journal=path, **how) == found
    assert calls == []
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:17]))
    assert same(search.run(controller, fragile, journal=path, **how), found)
    assert calls == [trial.tokens for trial in found[16:]]


def test_if_every_candidate_fails_the_first_reason_is_told(tmp_path):
    path, listed = tmp_path / "j.jsonl", [(0, 0), (0, 1)]

    def broken(tokens):
        raise KeyError(f"no layer {tokens[1]}")

    message = r"all 2 candidates failed; the first, \(0, 0\): KeyError: .*no layer 0.*"
    with pytest.raises(RuntimeError, match=f"{message}delete {path}"):
        search.run(search.in_order(listed), broken, budget=2, journal=path)
    with pytest.raises(RuntimeError, match=message):
        search.run(search.in_order(listed), sum, budget=2, journal=path)
    with pytest.raises(ValueError, match="all 2 trials failed; the first"):
        search.best(path)


def test_an_evaluation_without_a_reward_ends_the_search(tmp_path):
    path, calls = tmp_path / "j.jsonl", []

    def evaluate(tokens):
        calls.append(tokens)
        return {"score": 1.0} if len(calls) == 4 else 1.0

    with pytest.raises(KeyError, match=r"must have 'reward', got \['score'\]"):
        search.run(CONTROLLERS["random"], evaluate, budget=9, journal=path)
    assert [trial.tokens for trial in search.trials(path)] == calls[:3]


def test_a_space_that_is_used_up_ends_the_search():
    controller = search.anneal((2, 2), (0, 0))
    found = search.run(controller, sum, budget=99, repeats=200)
    assert len(found) == 4


def test_a_controller_that_breaks_the_limit_is_caught():
    broken = search.in_order([(0, 0, 0), (3, 3, 3)])
    calls = []
    with pytest.raises(RuntimeError, match=r"proposed \(3, 3, 3\): infeasible"):
        search.run(broken, counted(calls), budget=2, feasible=cheap)
    assert calls == [(0, 0, 0)]


def late_first(tokens):
    """The more it costs, the sooner it is there."""
    time.sleep(0.002 * (9 - TABLE.cost(tokens)))
    return TABLE.reward(tokens)


@each
def test_the_order_of_results_does_not_change_the_sequence(controller, tmp_path):
    how = {"budget": 20, "feasible": cheap, "ahead": 3}
    alone = search.run(controller, TABLE.reward, **how)
    path = tmp_path / "j.jsonl"
    with ThreadPoolExecutor(3) as threads:
        beside = search.run(
            controller, late_first, executor=threads, journal=path, **how
        )
    assert same(beside, alone)
    assert {t.tokens for t in search.trials(path)} == {t.tokens for t in alone}
    calls = []
    assert same(search.run(controller, counted(calls), journal=path, **how), alone)
    assert calls == []


def test_results_beside_a_failure_are_kept(tmp_path):
    path = tmp_path / "j.jsonl"
    listed = [(0, 0, 0), (0, 0, 1), (0, 0, 2)]

    def evaluate(tokens):
        if tokens == listed[0]:
            return {}
        time.sleep(0.05)
        return 1.0

    with ThreadPoolExecutor(3) as threads, pytest.raises(KeyError, match="'reward'"):
        how = {"budget": 3, "journal": path, "executor": threads, "ahead": 3}
        search.run(search.in_order(listed), evaluate, **how)
    assert {trial.tokens for trial in search.trials(path)} == set(listed[1:])


def make_evaluate():
    return TABLE.reward


@pytest.mark.slow
def test_processes_find_what_one_process_finds():
    how = {"budget": 12, "feasible": cheap, "ahead": 2}
    alone = search.run(CONTROLLERS["anneal"], TABLE.reward, **how)
    with search.pool(make_evaluate, 2) as pool:
        found = search.run(CONTROLLERS["anneal"], search.in_pool, executor=pool, **how)
    assert same(found, alone)


VICTIM = """
import sys, time
sys.path.insert(0, {root!r})
from tests.compress.search import test_run as t
from jaxkd.compress import search
def slowly(tokens):
    time.sleep(0.01)
    return t.TABLE.reward(tokens)
print("ready", flush=True)
search.run(t.CONTROLLERS["anneal"], slowly, budget=45, feasible=t.cheap, seed=7,
           journal=sys.argv[1])
print("done", flush=True)
"""


@pytest.mark.slow
def test_a_search_killed_at_random_moments_resumes_to_the_same_sequence(tmp_path):
    path = tmp_path / "j.jsonl"
    how = {"budget": 45, "feasible": cheap, "seed": 7}
    whole = search.run(CONTROLLERS["anneal"], TABLE.reward, **how)
    moments, kills = random.Random(0), 0
    for _ in range(30):
        command = [sys.executable, "-c", VICTIM.format(root=str(ROOT)), str(path)]
        victim = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert victim.stdout.readline() == "ready\n"
        time.sleep(moments.uniform(0.0, 0.2))
        victim.send_signal(signal.SIGKILL)
        rest = victim.communicate()[0]
        if "done" in rest:
            break
        kills += 1
        if path.exists() and path.stat().st_size:
            kept = search.trials(path)
            assert same(kept, whole[: len(kept)])
    assert kills >= 3
    calls = []
    assert same(
        search.run(CONTROLLERS["anneal"], counted(calls), journal=path, **how), whole
    )


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir("/proc"), reason="asks /proc about processes")
def test_workers_end_when_their_parent_is_killed(tmp_path):
    code = """
import os, sys, time
sys.path.insert(0, {root!r})
from tests.compress.search import test_run as t
from jaxkd.compress import search
if __name__ == "__main__":
    with search.pool(t.make_evaluate, 1) as pool:
        pool.submit(search.in_pool, (0, 0, 0)).result()
        print(*pool._processes, flush=True)
        time.sleep(60)
"""
    script = tmp_path / "victim.py"
    script.write_text(code.format(root=str(ROOT)))
    victim = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, text=True
    )
    worker = int(victim.stdout.readline())
    victim.kill()
    victim.communicate()
    for _ in range(200):
        if not pathlib.Path(f"/proc/{worker}").exists():
            return
        time.sleep(0.05)
    raise AssertionError("the worker lives on")


@pytest.mark.bad_input
def test_wrong_arguments_are_refused_before_anything_is_evaluated(tmp_path):
    refuse = partial(search.run, CONTROLLERS["random"], TABLE.reward)
    for name in ("budget", "ahead", "repeats"):
        with pytest.raises(ValueError, match=f"{name} must be >= 1, got 0"):
            refuse(**{"budget": 1, name: 0})
    with pytest.raises(ValueError, match="settings must be fit for JSON"):
        refuse(budget=1, settings={"f": sum})
    with pytest.raises(ValueError, match="none of the 0 trials is feasible"):
        search.best([])
    with pytest.raises(RuntimeError, match="outside of the processes of `pool`"):
        search.in_pool((0,))
