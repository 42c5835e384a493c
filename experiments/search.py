"""Architecture search: a cheaper network that is no worse than the usual one.

The space is `search.resnet_space` around a 14-layer ResNet, the base; or Light-NAS' 30
positions around MobileNetV2. Candidates may cost at most `--share` of the base's
multiply-accumulates. Each is trained for a few epochs, by default from the soft labels
of a wide network of the same space, and rewarded by its accuracy on the held-out slice
of the training set. The best few are trained again from several seeds, and the best of
these is chosen. It and the base are then trained from other seeds and tested: with the
search's short training, and with a longer distillation.

    python -m experiments.search --preset short --archives DIR
    python -m experiments.search --dataset cifar100 --controller evolve
    python -m experiments.search --dataset digits --preset short
    python -m experiments.search --preset short --resume runs/search/TIME

Every result is kept as soon as it is there: `--resume` goes on where a run was cut
short, to the same candidates. `--preset short` is for a CPU. Needs the official
archives: in DIR, or from the network; digits needs none.
"""

import pathlib
from collections.abc import Sequence
from functools import partial
from typing import Any

import tyro

from experiments import (
    _pair as pair,
    _search_lab as labs,
    _search_report as reports,
)
from experiments._search_lab import Config, Lab
from jaxkd import log
from jaxkd.compress import search


def worker(config: Config, directory: pathlib.Path, name: str) -> search.Evaluate:
    """The evaluator of a process of its own."""
    return labs.EVALUATORS[name](labs.prepare(config, directory))


def controller(
    config: Config, space: search.Space, start: search.Tokens
) -> search.Controller:
    """The one that the Config names."""
    if config.controller == "random":
        return search.random_search(space.sizes)
    if config.controller == "evolve":
        return search.evolve(space.sizes, population=10, tournament=4, start=start)
    # Nothing here depends on the budget: a resumed search may be given a larger one.
    return search.anneal(space.sizes, start, reduce_rate=0.9)


def evaluated(
    lab: Lab, name: str, proposing: search.Controller, budget: int, **how: Any
) -> list[search.Trial]:
    """Evaluates what a controller proposes, here or in several processes.

    Each result is kept at once, in the journal of this name.
    """
    config = lab.config
    workers = min(config.workers, budget)
    how["settings"] = lab.space.settings | labs.recipe(config) | how.get("settings", {})
    how |= {"budget": budget, "journal": lab.directory / f"{name}.jsonl"}
    how |= {"ahead": workers}
    # Made here even if other processes make theirs: one has to store what the teacher
    # says, and what cannot work is told before they start.
    evaluate = labs.EVALUATORS[name](lab)
    with pair.refusing(f"cannot evaluate ({name})"):
        if workers == 1:
            return search.run(proposing, evaluate, **how)
        make = partial(worker, config, lab.directory, name)
        with search.pool(make, workers) as pool:
            return search.run(proposing, search.in_pool, executor=pool, **how)


def searched(lab: Lab, limit: search.Limit) -> list[search.Trial]:
    """Runs the search."""
    config = lab.config
    start = search.within(limit, labs.base_tokens(lab), lab.space.sizes)
    return evaluated(
        lab,
        "search",
        controller(config, lab.space, start),
        config.budget or 1,
        feasible=limit.feasible,
        seed=config.search_seed,
        settings=limit.settings,
        progress=partial(say, limit.cost),
    )


def say(cost: search.Evaluate, trial: search.Trial) -> None:
    """One line about a candidate."""
    print(
        f"{trial.tokens}: {cost(trial.tokens):,.0f} MACs, reward {trial.reward:.4f}, "
        f"{trial.seconds:.0f} s",
        flush=True,
    )


def ranked(found: Sequence[search.Trial], cost: search.Evaluate) -> list[search.Trial]:
    """The best first; of equally good ones, the cheaper first."""
    return sorted(found, key=lambda trial: (-trial.reward, cost(trial.tokens)))


def listed(lab: Lab, name: str, tokens: Sequence[search.Tokens]) -> list[search.Trial]:
    """Evaluates these networks."""
    different = list(dict.fromkeys(tokens))
    # Without the list in its settings: other networks may join the journal.
    in_order = search.in_order(different)._replace(settings={"controller": "listed"})
    found = evaluated(lab, name, in_order, len(different))
    by_tokens = {trial.tokens: trial for trial in found}
    return [by_tokens[each] for each in tokens]


def facts(lab: Lab, found: reports.Outcome) -> list[str]:
    """What the table does not say."""
    config = lab.config
    seconds = sum(trial.seconds for trial in found.candidates)
    winner = next(t for t in found.candidates if t.tokens == found.chosen)
    return [
        f"{len(found.candidates)} candidates by {config.controller}, rewarded by "
        f"{config.evaluator} on {len(lab.task.train.images):,} images, took "
        f"{seconds:,.0f} s, {config.workers} at a time; the base's reward was "
        f"{found.base.reward:.4f}, the chosen one's {winner.reward:.4f}.",
        f"Chosen: {lab.space.values(found.chosen)}.",
    ]


def main(config: Config) -> dict[str, float]:
    """Runs the experiment; returns MACs and mean accuracies."""
    config = labs.filled(config)
    if config.resume is None:
        directory = pair.run_directory(config.out, "search")
        write = log.start(directory, config)
    else:
        directory, write = pathlib.Path(config.resume), lambda row: None
    lab = labs.prepare(config, directory)
    cost = search.macs(lab.space, lab.task.train.images.shape[1:])
    with pair.refusing("cannot search"):
        base = labs.base_tokens(lab)
        limit = search.limit(
            "MACs", cost, lab.space.sizes, most=config.share * cost(base)
        )
    labs.trained_teacher(lab, write)
    print(f"the space reaches {cost(limit.cheapest):,} to {cost(limit.dearest):,} MACs")

    found = searched(lab, limit)
    first = ranked(found, cost)[: config.finalists]
    finalists = listed(lab, "finalists", [trial.tokens for trial in first])
    chosen = search.best(finalists).tokens
    (reference,) = listed(lab, "base", [base])
    columns = {
        f"test %, {config.candidate_epochs} epochs": listed(
            lab, "short", [base, chosen]
        ),
        f"test %, {config.epochs} epochs distilled": listed(
            lab, "long", [base, chosen]
        ),
    }
    outcome = reports.Outcome(found, finalists, reference, chosen, cost, columns)
    title = f"search: {lab.task.test.name}, {lab.space.name}"
    reports.write_up(directory, title, outcome, facts(lab, outcome))
    brief, long = columns.values()
    return {
        "base MACs": cost(base),
        "chosen MACs": cost(chosen),
        "base, short": brief[0].reward,
        "chosen, short": brief[1].reward,
        "base, long": long[0].reward,
        "chosen, long": long[1].reward,
    }


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
