"""What is made of a search: table, sentences, the picture of all candidates."""

import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from jaxkd import log, report
from jaxkd.compress import search


class Outcome(NamedTuple):
    """What a search has found.

    Attributes:
      candidates: all that were evaluated, in order.
      finalists: the best of them, trained again from several seeds.
      base: the usual network with the reward of a candidate.
      chosen: one of the candidates.
      cost: the multiply-accumulates of a network.
      columns: by title, the base and the chosen network trained and tested.
    """

    candidates: list[search.Trial]
    finalists: list[search.Trial]
    base: search.Trial
    chosen: search.Tokens
    cost: Callable[[search.Tokens], float]
    columns: dict[str, list[search.Trial]]


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other one beats: none is cheaper and at least as good.

    >>> front([(1, 0.5), (2, 0.4), (3, 0.7)])
    [(1, 0.5), (3, 0.7)]
    """
    kept: list[tuple[float, float]] = []
    for cost, worth in sorted(points, key=lambda p: (p[0], -p[1])):
        if not kept or worth > kept[-1][1]:
            kept.append((cost, worth))
    return kept


def draw(
    path: pathlib.Path,
    points: Sequence[tuple[float, float]],
    marked: dict[str, tuple[float, float]],
    y_label: str,
) -> bool:
    """All candidates by cost and reward, the front, the marked ones; needs plots."""
    pyplot = report.pyplot()
    if pyplot is None:
        return False

    figure, axis = pyplot.subplots(figsize=(6, 4))
    axis.plot(*zip(*points, strict=True), ".", color="0.6", label="candidates")
    axis.step(*zip(*front(points), strict=True), where="post", label="Pareto front")
    for label, point in marked.items():
        axis.plot(*point, "o", label=label)
    axis.set(xlabel="MACs of one image", ylabel=y_label)
    axis.grid(alpha=0.3)
    axis.legend()
    report.save(figure, path)
    return True


def rows(found: Outcome) -> list[dict[str, str]]:
    """The table of the base and the chosen network."""
    whole = found.cost(found.base.tokens)
    both = {"base": found.base.tokens, "chosen": found.chosen}
    return [
        {
            "network": name,
            "MACs": f"{found.cost(tokens):,.0f}",
            "of the base": f"{found.cost(tokens) / whole:.1%}",
            **{
                title: report.mean_sd(trials[i].info["accuracy"], scale=100)
                for title, trials in found.columns.items()
            },
        }
        for i, (name, tokens) in enumerate(both.items())
    ]


def paired(found: list[search.Trial], label: str) -> str:
    """The chosen network's accuracy less the base's, seed by seed."""
    base, chosen = (np.asarray(trial.info["accuracy"]) for trial in found)
    gain = 100 * (chosen - base)
    if len(gain) == 1:
        return (
            f"{label}: the chosen network has {gain[0]:+.2f} points against the base "
            "(one seed)."
        )
    error = gain.std(ddof=1) / np.sqrt(len(gain))
    return (
        f"{label}: the chosen network has {gain.mean():+.2f} ± {error:.2f} points "
        f"against the base (mean over {len(gain)} seeds ± standard error)."
    )


def write_up(
    directory: pathlib.Path, title: str, found: Outcome, facts: list[str]
) -> None:
    """Prints the table; writes it with all candidates and a picture to `report.md`.

    Args:
      directory: of the run.
      title: of the report.
      found: what there is to tell.
      facts: sentences about the run.
    """
    cost = found.cost
    winner = next(t for t in found.candidates if t.tokens == found.chosen)
    table = rows(found)
    sentences = [*(paired(t, name) for name, t in found.columns.items()), *facts]
    report.show(table, title)
    print(*sentences, sep="\n")
    points = [(cost(trial.tokens), trial.reward) for trial in found.candidates]
    marked = {
        "base": (cost(found.base.tokens), found.base.reward),
        "chosen": (cost(found.chosen), winner.reward),
    }
    drawn = draw(directory / "candidates.png", points, marked, "reward")
    picture = "![Candidates by cost](candidates.png)\n\n" if drawn else ""
    notes = "".join(f"* {sentence}\n" for sentence in sentences)
    made = report.listed(log.versions())
    (directory / "report.md").write_text(
        f"# {title}\n\n{report.markdown(table)}\nAccuracy after the last epoch, mean ± "
        f"standard deviation over seeds.\n\n{notes}\n{picture}"
        "Finalists, from new seeds, on the held-out images:\n\n"
        f"{report.markdown(finals(found))}\nAll candidates:\n\n"
        f"{report.markdown(listing(found))}\n{made}"
    )
    print(f"report: {directory / 'report.md'}")


def finals(found: Outcome) -> list[dict[str, str]]:
    """The table of the finalists, the best first."""
    return [
        {
            "finalist": " ".join(map(str, trial.tokens)),
            "MACs": f"{found.cost(trial.tokens):,.0f}",
            "accuracy %": report.mean_sd(trial.info["accuracy"], scale=100),
        }
        for trial in sorted(found.finalists, key=lambda trial: -trial.reward)
    ]


def listing(found: Outcome) -> list[dict[str, str]]:
    """The table of all candidates."""
    price = lambda trial: (found.cost(trial.tokens), trial.reward)
    best = set(front([price(trial) for trial in found.candidates]))
    return [
        {
            "candidate": " ".join(map(str, trial.tokens)),
            "MACs": f"{found.cost(trial.tokens):,.0f}",
            "reward": f"{trial.reward:.4f}",
            "seconds": f"{trial.seconds:.1f}",
            "front": "yes" if price(trial) in best else "",
        }
        for trial in found.candidates
    ]
