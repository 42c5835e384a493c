"""Where it comes from: runs, versions, device, git state, configuration."""

import json
from collections.abc import Sequence
from typing import Any

from jaxkd.report.blocks import MISSING, Block, Details, Heading, Table
from jaxkd.report.merging import Group
from jaxkd.report.reading import Run, number


def blocks(group: Group) -> list[Block]:
    """How the runs of one configuration came about."""
    first = group.runs[0]
    made: list[Block] = [
        Heading("How it was made", 3),
        Table(_table(group.runs), "The runs.", 1 + len(group.runs)),
    ]
    data, versions = first.facts.get("data"), first.facts.get("versions")
    if isinstance(data, dict):
        made.append(Details("Data", _lines(data)))
    if isinstance(versions, dict):
        known = {"jaxkd": first.facts.get("jaxkd"), **versions}
        made.append(Details("Versions", _lines(known)))
    other = [run for run in group.runs[1:] if run.facts.get("versions") != versions]
    for run in other:
        text = _lines(run.facts.get("versions") or {})
        made.append(Details(f"Versions of seed {run.seed}, which are others", text))
    if first.config_text:
        seeds = ", ".join(run.seed for run in group.runs)
        more = f" (seeds {seeds})" if group.runs[1:] else ""
        made.append(Details(f"Configuration as resolved{more}", first.config_text))
    return made


def _table(runs: Sequence[Run]) -> list[dict[str, str]]:
    """A row for each fact, a column for each run."""
    columns: dict[str, dict[str, str]] = {}
    for place, run in enumerate(runs, start=1):
        name = f"seed {run.seed}"
        columns[f"{name}, run {place}" if name in columns else name] = _run(run)
    keys = next(iter(columns.values()))
    return [
        {"fact": key, **{name: facts[key] for name, facts in columns.items()}}
        for key in keys
    ]


def _run(run: Run) -> dict[str, str]:
    git = run.facts.get("git")
    state = "none"
    if isinstance(git, dict):
        changed = ", files changed since" if git.get("changed") else ""
        state = f"{str(git.get('commit'))[:10]}{changed}"
    seconds = sum(number(row.get("seconds")) or 0.0 for row in run.rows)
    command = run.facts.get("command")
    words = command if isinstance(command, list) else []
    done = run.results.get("finished")
    return {
        "directory": str(run.path),
        "started": str(run.facts.get("started") or MISSING),
        "state": "finished" if done else "not finished",
        "seconds of work": f"{seconds:,.0f}" if run.rows else MISSING,
        "device": str(run.facts.get("device") or MISSING),
        "git": state,
        "jaxkd": str(run.facts.get("jaxkd") or MISSING),
        "command": " ".join(map(str, words)) or MISSING,
    }


def _lines(values: dict[str, Any]) -> str:
    """One line for each value."""
    said = lambda v: (
        v if isinstance(v, str) else json.dumps(v, default=str, ensure_ascii=False)
    )
    return "\n".join(f"{key}: {said(value)}" for key, value in values.items())
