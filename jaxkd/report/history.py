"""How a run went: trainings, searches and prunings, and where it comes from."""

import json
import re
from typing import Any

import msgspec
import numpy as np

from jaxkd.report import charts, rows
from jaxkd.report.merging import MISSING, RunGroup
from jaxkd.report.reading import RunRecord

_TOP = 10  # candidates in the table of a search


def sections(group: RunGroup) -> dict[str, Any]:
    """Return what the template shows of the course of runs, and their facts."""
    first = group.runs[0]
    of = lambda key: [s for s in group.stages if first.stage_metrics(s, key)]
    return {
        "trainings": [t for stage in group.stages if (t := training(group, stage))],
        "searches": [search(first, stage) for stage in of("trial")],
        "prunings": [pruning(first, stage) for stage in of("dropped")],
        "facts": facts(group.runs),
        "details": details(group.runs),
    }


def curve(run: RunRecord, stage: str, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Return (epochs, values) of a number in a training; the last row of one counts."""
    found = {
        row["epoch"]: row[key]
        for row in run.stage_metrics(stage, "epoch")
        if row.get(key) is not None
    }
    epochs = sorted(found)
    return np.asarray(epochs), np.asarray([found[epoch] for epoch in epochs], float)


def training(group: RunGroup, stage: str) -> dict[str, Any] | None:
    """Return the curves of a training stage: loss, terms, validation metrics."""
    panels, ends, epochs = [], [], 0
    for key, title in _keys(group, stage).items():
        each = [curve(run, stage, key) for run in group.runs]
        each = [(x, y) for x, y in each if len(x)]
        if not each:
            continue
        x = each[0][0]
        if all(np.array_equal(x, other) for other, _ in each):
            series = [charts.average("", [y for _, y in each], x)]
        else:  # some have stopped early
            series = [charts.Series("", x, y) for x, y in each]
        panels.append(
            charts.Panel(series, title, "epoch", log_y=None, width=190, height=120)
        )
        epochs = max(epochs, *(int(x[-1]) for x, _ in each))
        ends.append(f"{title} ends at {each[-1][1][-1]:.4g}")
    if not panels:
        return None
    alt = f"Curves of {stage} over {epochs} epochs: {', '.join(ends)}"
    svg = charts.chart(panels, alt, 5 if len(panels) == 5 else 4)
    return {"stage": stage, "epochs": epochs, "svg": svg}


def search(run: RunRecord, stage: str) -> dict[str, Any]:
    """Return the best candidates of a search as a table, and all as a chart."""
    trials = [
        trial
        for row in run.stage_metrics(stage, "trial")
        if (trial := msgspec.convert(row, rows.TrialRow)).reward is not None
    ]
    if not trials:
        return {"stage": stage, "table": []}
    rewards = np.array([trial.reward for trial in trials])
    order = np.argsort(-np.nan_to_num(rewards, nan=-np.inf), kind="stable")
    macs = np.array([np.nan if t.macs is None else t.macs for t in trials], float)
    number, top = np.arange(1, len(trials) + 1), np.fmax.accumulate(rewards)
    panel = lambda x, label, *more: charts.Panel(
        [charts.Series("candidate" if x is number else "", x, rewards, draw="points",
                       marker="dot"), *more],
        "", label, "reward", width=300,
    )  # fmt: skip
    best = order[:1]
    star = charts.Series(
        "", macs[best], rewards[best], draw="points", marker="star", color=1
    )
    steps = charts.Series("best so far", number, top, draw="steps", color=1)
    svg = charts.chart(
        [panel(macs, "MACs of one image", star), panel(number, "candidate", steps)],
        f"{len(trials)} candidates; the best reward is {rewards[order[0]]:.4f}",
    )
    table = [_candidate(trials[i]) for i in order[:_TOP]]
    caption = f"The best {len(table)} of {len(trials)} candidates."
    # Choices that all of them share are in the caption.
    same = [k for k in trials[0].values if len({row.get(k) for row in table}) == 1]
    if same and table[1:]:
        shared = ", ".join(f"{key} {table[0][key]}" for key in same)
        caption = f"{caption[:-1]}; all have {shared}."
        table = [{k: v for k, v in row.items() if k not in same} for row in table]
    return {"stage": stage, "svg": svg, "table": table, "caption": caption}


def pruning(run: RunRecord, stage: str) -> dict[str, Any]:
    """Return what a prune stage removed as a table, and sensitivities as a chart."""
    row = msgspec.convert(run.stage_metrics(stage, "dropped")[-1], rows.PruneRow)
    result = next((r for r in run.results.rows if r.stage == stage), None)
    listing, found = "", None
    if result:
        folder = run.path / result.directory
        if (folder / "groups.txt").is_file():
            listing = (folder / "groups.txt").read_text(errors="replace")
        if (folder / "sensitivities.json").is_file():
            found = rows.read(folder / "sensitivities.json", rows.Sensitivities)
    units = {k: int(n) for k, n in re.findall(r"^(\S.*): (\d+) units$", listing, re.M)}
    table = []
    for name, gone in row.dropped.items():
        n = units.get(name, 0)
        table.append(
            {
                "group": name,
                "removed": f"{len(gone):,}",
                "left": f"{n - len(gone):,}" if n else "",
                "removed %": f"{100 * len(gone) / n:.0f}" if n else "",
            }
        )
    svg = _sensitivities(found, units) if found else None
    return {"stage": stage, "table": table, "svg": svg, "listing": listing}


def facts(runs: list[RunRecord]) -> list[dict[str, str]]:
    """Return a row for each fact, with a column for each run."""
    columns: dict[str, dict[str, str]] = {}
    for place, run in enumerate(runs, start=1):
        name = f"seed {run.seed}"
        git, seconds = run.facts.git, sum(row.seconds for row in run.results.rows)
        changed = ", files changed since" if git and git.changed else ""
        columns[f"{name}, run {place}" if name in columns else name] = {
            "directory": str(run.path),
            "started": run.facts.started,
            "state": "finished" if run.results.finished else "not finished",
            "seconds of work": f"{seconds:,.0f}" if run.results.rows else "",
            "device": run.facts.device,
            "git": f"{git.commit[:10]}{changed}" if git else "none",
            "jaxkd": run.facts.jaxkd,
            "command": " ".join(run.facts.command),
        }
    return [
        {"fact": key, **{name: run[key] or MISSING for name, run in columns.items()}}
        for key in next(iter(columns.values()))
    ]


def details(runs: list[RunRecord]) -> dict[str, str]:
    """Return texts to be folded away, by title: data, versions, configuration."""
    first = runs[0]
    made = {"Data": _lines(first.facts.data)}
    made["Versions"] = _lines({"jaxkd": first.facts.jaxkd, **first.facts.versions})
    for run in runs[1:]:
        if run.facts.versions != first.facts.versions:
            title = f"Versions of seed {run.seed}, which are others"
            made[title] = _lines(run.facts.versions)
    seeds = f" (seeds {', '.join(run.seed for run in runs)})" if runs[1:] else ""
    made[f"Configuration as resolved{seeds}"] = first.config_text
    return {title: text for title, text in made.items() if text}


def _keys(group: RunGroup, stage: str) -> dict[str, str]:
    """Return what is drawn of a training stage, and the title of each."""
    found = [r for run in group.runs for r in run.stage_metrics(stage, "epoch")]
    seen = dict.fromkeys(key for row in found for key in row)
    terms = [key for key in seen if key.startswith("loss/")]
    # The loss of one term without a weight is that term.
    alone = len(terms) == 1 and all(r.get("loss") == r.get(terms[0]) for r in found)
    keys = {} if alone or "loss" not in seen else {"loss": "loss"}
    keys |= {key: key.removeprefix("loss/") + " (term)" for key in terms}
    ends = {"accuracy": "validation accuracy", "nll": "validation NLL"}
    return keys | {key: title for key, title in ends.items() if key in seen}


def _candidate(trial: rows.TrialRow) -> dict[str, str]:
    counted = lambda n: "" if n is None else f"{n:,}"
    choices = trial.values or {"tokens": trial.tokens}
    return {
        "candidate": str(trial.trial),
        "reward": f"{trial.reward:.4f}",
        "MACs": counted(trial.macs),
        "parameters": counted(trial.parameters),
        **{key: str(value) for key, value in choices.items()},
    }


def _sensitivities(found: rows.Sensitivities, units: dict[str, int]) -> Any:
    """Return the metric against the share that is removed from one group alone."""
    series = []
    for place, (name, points) in enumerate(found.points.items()):
        n = units.get(name, 0)
        xy = [(100 * (1 - k / n), y) for k, y in points.items() if 0 < k < n]
        xy = sorted((x, y) for x, y in [(0.0, found.whole), *xy] if y is not None)
        if n and xy:
            x, y = zip(*xy, strict=True)
            marker = charts.MARKERS[place // 7 % len(charts.MARKERS)]
            series.append(charts.Series(name, x, y, marker=marker, color=place))
    if not series:
        return None
    metric = str(found.settings.get("metric") or "metric")
    panel = charts.Panel(
        series, "", "removed from this group alone, %", f"validation {metric}",
        level=found.whole, height=max(220, 17 * len(series)),
    )  # fmt: skip
    ends = [f"{s.label}: {s.y[-1]:.3f} at {s.x[-1]:.0f} %" for s in series]
    return charts.chart([panel], f"Sensitivities. {'; '.join(ends)}")


def _lines(values: dict[str, Any]) -> str:
    text = lambda v: v if isinstance(v, str) else json.dumps(v, ensure_ascii=False)
    return "\n".join(f"{key}: {text(value)}" for key, value in values.items())
