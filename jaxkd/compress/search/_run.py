"""The loop of every search: propose, evaluate, write down, observe."""

import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from typing import Any, NamedTuple

from jaxkd import _check
from jaxkd.compress.search import _journal as journals
from jaxkd.compress.search._controller import Controller, Feasible, Tokens, anything

# The reward, or a mapping with "reward" and whatever else is to be kept, for JSON.
Evaluate = Callable[[Tokens], float | Mapping[str, Any]]


class Trial(NamedTuple):
    """One candidate and its result.

    Attributes:
      tokens: the candidate.
      reward: greater is better; -inf if the evaluation failed.
      seconds: what its evaluation took.
      info: what else the evaluation returned.
      error: why it failed: what it raised, or that its reward was not finite; empty if
        it did not.
    """

    tokens: Tokens
    reward: float
    seconds: float
    info: Mapping[str, Any]
    error: str = ""


def run(
    controller: Controller,
    evaluate: Evaluate,
    *,
    budget: int,
    feasible: Feasible = anything,
    seed: int = 0,
    journal: str | os.PathLike | None = None,
    settings: Mapping[str, Any] | None = None,
    executor: Executor | None = None,
    ahead: int = 1,
    repeats: int = 1000,
    progress: Callable[[Trial], None] = lambda trial: None,
) -> list[Trial]:
    """Search until `budget` different candidates have been evaluated.

    Every result is on the disk before the next candidate is proposed. A search that is
    started again with the same arguments takes the journal's results instead of
    evaluating, and so comes to where it was and goes on to the same sequence; with a
    larger budget it goes on further. Tokens that were proposed before are not evaluated
    again; the controller observes their known reward.

    A candidate whose evaluation raises an exception, or whose reward is not finite, has
    failed: it is one of the `budget`, its reason is in the journal, it is not tried
    again, and the controller does not observe it. To try it again, delete its line.

    Args:
      controller: e.g. `anneal(...)`.
      evaluate: from tokens to a reward, or to a mapping with "reward" and other things
        to keep; called with feasible tokens only. For a search to be resumable it must
        not depend on what was evaluated before.
      budget: how many different candidates are evaluated, those in the journal
        included.
      feasible: the limit, e.g. `limit.feasible`.
      seed: of the controller.
      journal: the file; made if there is none. None keeps nothing.
      settings: what else identifies this search, for JSON: the space, the limit, how
        candidates are trained. Another search's journal is refused.
      executor: where candidates are evaluated, e.g. of `pool`; None is here.
      ahead: how many candidates may be proposed before the result of the first of them
        is observed, e.g. the number of processes. It is part of the sequence: with 2,
        each candidate is chosen without the one before it.
      repeats: a search that proposes known tokens so often in a row ends early.
      progress: called with each newly evaluated trial, failed ones included.

    Returns:
      The different candidates in the order in which they were first proposed, failed
      ones included. They do not depend on the timing of processes or on interruptions.

    Raises:
      ValueError: if the journal is of another search.
      KeyError: if an evaluation returns a mapping without "reward".
      RuntimeError: if the controller finds no feasible candidate, or every candidate
        failed, with the reason of the first.
    """
    for name, value in {"budget": budget, "ahead": ahead, "repeats": repeats}.items():
        _check.whole(1)(name, value)
    identity = {**controller.settings, "seed": seed, "ahead": ahead, **(settings or {})}
    with journals.opened(journal, identity) as (lines, append):
        known = {trial.tokens: trial for trial in map(_trial, lines)}
        _all_feasible(known, feasible, journal)
        desk = _Sequence(evaluate, executor, append, progress, known, {})
        try:
            found = _loop(controller, desk, budget, feasible, seed, ahead, repeats)
        finally:
            desk.wait_for(None)
    if found and all(trial.error for trial in found):
        again = "" if journal is None else f"; to try them again, delete {journal}"
        raise RuntimeError(
            f"all {len(found)} candidates failed; the first, {found[0].tokens}: "
            f"{found[0].error}{again}"
        )
    return found


def _loop(controller, desk, budget, feasible, seed, ahead, repeats) -> list[Trial]:
    state = controller.init(seed)
    order: dict[Tokens, None] = {}  # the different candidates, as first proposed
    waiting: deque[Tokens] = deque()
    idle = 0
    while len(order) < budget and idle < repeats:
        tokens, state = controller.propose(state, feasible)
        if not feasible(tokens):
            raise RuntimeError(f"the controller proposed {tokens}: infeasible")
        idle = idle + 1 if tokens in order else 0
        if tokens not in order:
            order[tokens] = None
            desk.start(tokens)
        waiting.append(tokens)
        if len(waiting) >= ahead:
            first = waiting.popleft()
            trial = desk.wait_for(first)
            if not trial.error:
                state = controller.observe(state, first, trial.reward)
    return [desk.wait_for(tokens) for tokens in order]


class _Sequence(NamedTuple):
    """What is known, and what is under way."""

    evaluate: Evaluate
    executor: Executor | None
    append: Callable[[journals.Line], None]
    progress: Callable[[Trial], None]
    known: dict[Tokens, Trial]
    running: dict[Future, Tokens]

    def start(self, tokens: Tokens) -> None:
        """Has a candidate evaluated, here or elsewhere, unless it is known."""
        if tokens in self.known:
            return
        if self.executor is None:
            self._keep(tokens, timed(self.evaluate, tokens))
        else:
            self.running[self.executor.submit(timed, self.evaluate, tokens)] = tokens

    def wait_for(self, tokens: Tokens | None) -> Any:
        """Return the trial of a candidate; None waits for all that is under way.

        Whatever ends meanwhile is written down at once, also if something else failed.
        """
        failure = None
        while self.running and (tokens is None or tokens not in self.known):
            done, _ = wait(self.running, return_when=FIRST_COMPLETED)
            for future in done:
                ended = self.running.pop(future)
                try:
                    self._keep(ended, future.result())
                except Exception as error:
                    failure = failure or error
            if failure is not None and tokens is not None:
                raise failure
        return None if tokens is None else self.known[tokens]

    def _keep(self, tokens: Tokens, result: tuple[Any, str, float]) -> None:
        found, error, seconds = result
        info = dict(found) if isinstance(found, Mapping) else {"reward": found}
        if "reward" not in info:
            raise KeyError(f"an evaluation must have 'reward', got {sorted(info)}")
        reward = float(info.pop("reward"))
        if not error and not math.isfinite(reward):
            error = f"the reward is {reward}"
        trial = Trial(
            tokens, -math.inf if error else reward, round(seconds, 4), info, error
        )
        self.append({**_line(trial), "at": len(self.known)})
        self.known[tokens] = trial
        self.progress(trial)


def timed(evaluate: Evaluate, tokens: Tokens) -> tuple[Any, str, float]:
    """Evaluate a candidate: the result, what was raised instead, and the seconds.

    The exception becomes text here, where it was raised: not all can be sent from one
    process to another.
    """
    begin = time.perf_counter()
    found: Any = {"reward": math.nan}
    error = ""
    try:
        found = evaluate(tokens)
    except Exception as raised:
        error = f"{type(raised).__name__}: {raised}"
    return found, error, time.perf_counter() - begin


def _line(trial: Trial) -> journals.Line:
    """Return a trial for the journal; JSON has no -inf."""
    line = trial._asdict()
    if not trial.error:
        del line["error"]
        return line
    return {**line, "reward": None}


def _trial(line: journals.Line) -> Trial:
    error = line.get("error", "")
    reward = -math.inf if error else line["reward"]
    return Trial(
        tuple(line["tokens"]), reward, line["seconds"], line.get("info", {}), error
    )


def _all_feasible(known: Iterable[Tokens], feasible: Feasible, path: Any) -> None:
    for tokens in known:
        if not feasible(tokens):
            raise ValueError(
                f"{path} holds {tokens}, which is infeasible: its limit was another one"
            )


def trials(journal: str | os.PathLike) -> list[Trial]:
    """All results of a journal, in the order in which they came.

    Raises:
      ValueError: if it is damaged; a torn last line is not damage.
    """
    return [_trial(line) for line in journals.read(journal)[1]]


def best(
    found: str | os.PathLike | Iterable[Trial], feasible: Feasible = anything
) -> Trial:
    """The trial with the greatest reward; of several, the first. Failed ones never.

    A search evaluates feasible candidates only, so that this is one.

    Args:
      found: what `run` returned, or the path of a journal. In a journal the first is
        the one whose result came first: if several processes wrote it, a matter of
        timing.
      feasible: another limit, to choose under afterwards.

    Raises:
      ValueError: if there is no trial, or none feasible, or each of these failed.

    Example:
      >>> one, two = Trial((0,), 0.5, 1.0, {}), Trial((1,), 0.7, 1.0, {})
      >>> best([one, two]).tokens
      (1,)
      >>> best([one, two], lambda tokens: tokens != (1,)).tokens
      (0,)
    """
    if isinstance(found, str | os.PathLike):
        found = trials(found)
    found = list(found)
    allowed = [trial for trial in found if feasible(trial.tokens)]
    if not allowed:
        raise ValueError(f"none of the {len(found)} trials is feasible")
    sound = [trial for trial in allowed if not trial.error]
    if not sound:
        raise ValueError(
            f"all {len(allowed)} trials failed; the first, {allowed[0].tokens}: "
            f"{allowed[0].error}"
        )
    return max(sound, key=lambda trial: trial.reward)
