"""How it went: the curves of the trainings, the searches, the prunings."""

import re
from collections.abc import Sequence

import numpy as np

from jaxkd.report import charts
from jaxkd.report.blocks import Block, Details, Heading, Picture, Table, Text
from jaxkd.report.merging import Group
from jaxkd.report.reading import Row, Run, json_file, number

_TOP = 10  # candidates in the table of a search


def blocks(group: Group, name: str) -> list[Block]:
    """The courses of runs of one configuration."""
    trained = _trainings(group, name)
    made: list[Block] = []
    if trained:
        over = " Mean and standard deviation over the seeds." if group.runs[1:] else ""
        made += [Heading("Training", 3), Text(_TRAINING + over), *trained]
    first = group.runs[0]
    whose = f" (seed {first.seed})" if group.runs[1:] else ""
    for stage in _stages(group.runs, "trial"):
        made.append(Heading(f"{_titled('Search', stage)}{whose}", 3))
        made += _search(first, stage, f"{name}-search-{_place(group, stage)}")
    for stage in _stages(group.runs, "dropped"):
        made.append(Heading(f"{_titled('Pruning', stage)}{whose}", 3))
        made += _pruning(first, stage, f"{name}-prune-{_place(group, stage)}")
    return made


_TRAINING = (
    "The loss and each of its terms before weighting, as means over the training "
    "images; accuracy and NLL on the validation images."
)


def curve(run: Run, stage: str, key: str) -> tuple[np.ndarray, np.ndarray]:
    """(epochs, values) of a number in the training of a stage; the last row counts."""
    found = {}
    for row in run.metrics:
        epoch, value = number(row.get("epoch")), number(row.get(key))
        if str(row.get("stage")) == stage and epoch is not None and value is not None:
            found[epoch] = value
    epochs = sorted(found)
    return np.asarray(epochs), np.asarray([found[epoch] for epoch in epochs], float)


def _trainings(group: Group, name: str) -> list[Block]:
    made: list[Block] = []
    for stage in _stages(group.runs, "epoch"):
        keys = _keys(group.runs, stage)
        curves = {}
        for key, title in keys.items():
            each = [curve(run, stage, key) for run in group.runs]
            curves[title] = [(x, y) for x, y in each if len(x)]
        svg = charts.panels(curves, "epoch") if curves else None
        ends = {title: lines[-1][1][-1] for title, lines in curves.items()}
        said = ", ".join(f"{title} ends at {end:.4g}" for title, end in ends.items())
        if svg is not None:
            epochs = int(max(x[-1] for lines in curves.values() for x, _ in lines))
            made.append(Heading(f"{stage}, {epochs} epochs", 4))
            made.append(
                Picture(
                    f"{name}-curves-{_place(group, stage)}",
                    svg,
                    f"Curves of {stage} over {epochs} epochs: {said}",
                    "",
                )
            )
        elif curves:
            made.append(Text(f"{stage}: {said}."))
    return made


def _keys(runs: Sequence[Run], stage: str) -> dict[str, str]:
    """What is drawn of a stage, and how it is called."""
    rows = [r for run in runs for r in run.metrics if str(r.get("stage")) == stage]
    seen = dict.fromkeys(key for row in rows if "epoch" in row for key in row)
    terms = [key for key in seen if key.startswith("loss/")]
    # Of one term without a weight, the loss is that term.
    alone = len(terms) == 1 and all(r.get("loss") == r.get(terms[0]) for r in rows)
    keys = {} if alone or "loss" not in seen else {"loss": "loss"}
    keys |= {key: key.removeprefix("loss/") + " (term)" for key in terms}
    ends = {"accuracy": "validation accuracy", "nll": "validation NLL"}
    return keys | {key: title for key, title in ends.items() if key in seen}


def _stages(runs: Sequence[Run], key: str) -> list[str]:
    """Stages with rows that have a key, in their order."""
    return list(
        dict.fromkeys(
            str(row.get("stage")) for run in runs for row in run.metrics if key in row
        )
    )


def _place(group: Group, stage: str) -> int:
    """A number for the name of a file."""
    seen = dict.fromkeys(
        str(row.get("stage")) for run in group.runs for row in run.metrics
    )
    return list(seen).index(stage)


def _titled(what: str, stage: str) -> str:
    return what if stage in ("search", "prune") else f"{what}: {stage}"


def _search(run: Run, stage: str, name: str) -> list[Block]:
    rows = [r for r in run.metrics if str(r.get("stage")) == stage and "trial" in r]
    rows = [r for r in rows if number(r.get("reward")) is not None]
    if not rows:
        return [Text("This run has not come here.")]
    rewards = np.asarray([r["reward"] for r in rows], float)
    order = np.argsort(-np.nan_to_num(rewards, nan=-np.inf), kind="stable")
    made: list[Block] = []
    costs = np.asarray([number(r.get("macs")) or np.nan for r in rows])
    svg = charts.scatter(
        costs,
        rewards,
        best=int(order[0]),
        x_label="multiply-accumulates of one image",
        y_label="reward",
    )
    if svg is not None:
        alt = f"{len(rows)} candidates; the best reward is {rewards[order[0]]:.4f}"
        caption = "The reward of each candidate against its cost, and in their order."
        made.append(Picture(name, svg, alt, caption))
    table = [_candidate(rows[i]) for i in order[:_TOP]]
    caption = f"The best {len(table)} of {len(rows)} candidates."
    # Choices that all of them share are said once.
    same = [k for k in table[0] if all(r.get(k) == table[0][k] for r in table[1:])]
    same = [k for k in same if k in (rows[0].get("values") or ()) and table[1:]]
    if same:
        shared = ", ".join(f"{key} {table[0][key]}" for key in same)
        caption = f"{caption[:-1]}; all have {shared}."
    table = [{k: v for k, v in row.items() if k not in same} for row in table]
    made.append(Table(table, caption, kinds=["best", *[""] * (len(table) - 1)]))
    return made


def _candidate(row: Row) -> dict[str, str]:
    values = row.get("values")
    if isinstance(values, dict):
        chosen = {str(key): str(value) for key, value in values.items()}
    else:
        chosen = {"tokens": str(row.get("tokens"))}
    count = lambda key: "" if (n := number(row.get(key))) is None else f"{n:,.0f}"
    return {
        "candidate": str(row["trial"]),
        "reward": f"{row['reward']:.4f}",
        "MACs": count("macs"),
        "parameters": count("parameters"),
        **chosen,
    }


def _pruning(run: Run, stage: str, name: str) -> list[Block]:
    rows = [r for r in run.metrics if str(r.get("stage")) == stage]
    dropped = rows[-1].get("dropped") if rows else None
    folder = next(
        (f"{r.get('directory')}" for r in run.rows if r.get("stage") == stage), ""
    )
    listing = _text(run, f"{folder}/groups.txt")
    units = {
        name: int(n) for name, n in re.findall(r"^(\S.*): (\d+) units$", listing, re.M)
    }
    made: list[Block] = []
    if isinstance(dropped, dict) and dropped:
        table = []
        for key, gone in dropped.items():
            lost, all_ = len(gone) if isinstance(gone, list) else 0, units.get(key)
            share = "" if not all_ else f"{100 * lost / all_:.0f}"
            left = "" if all_ is None else f"{all_ - lost:,}"
            table.append(
                {"group": key, "removed": f"{lost:,}", "left": left, "removed %": share}
            )
        made.append(Table(table, "Channels (units) removed from each group."))
    made += _sensitivities(run, folder, units, name)
    if listing:
        made.append(Details("Groups of channels that leave together", listing))
    return made


def _sensitivities(
    run: Run, folder: str, units: dict[str, int], name: str
) -> list[Block]:
    found = json_file(run, f"{folder}/sensitivities.json")
    points, whole = found.get("points"), number(found.get("whole"))
    if not isinstance(points, dict):
        return []
    curves = {}
    for group, values in points.items():
        if not isinstance(values, dict) or not units.get(group):
            continue
        kept = sorted((int(k) for k in values if k.isdigit()), reverse=True)
        n = units[group]
        each = [(100 * (1 - k / n), number(values[str(k)])) for k in kept if k < n]
        known = [(0.0, whole), *each]
        xy = np.asarray([(x, y) for x, y in known if y is not None], float)
        if len(xy):
            curves[group] = (xy[:, 0], xy[:, 1])
    svg = None
    if curves:
        settings = found.get("settings")
        named = settings.get("metric") if isinstance(settings, dict) else None
        metric = "metric" if named is None else str(named)
        svg = charts.lines(
            curves,
            x_label="removed from this group alone, %",
            y_label=f"validation {metric}",
            level=whole,
        )
    if svg is None:
        return []
    said = "; ".join(
        f"{g}: {y[-1]:.3f} at {x[-1]:.0f} %" for g, (x, y) in curves.items()
    )
    caption = (
        "What removing channels from one group alone does, without training. "
        "Dashed: nothing removed."
    )
    return [Picture(f"{name}-sensitivity", svg, f"Sensitivities. {said}", caption)]


def _text(run: Run, name: str) -> str:
    path = run.path / name
    try:
        inside = path.resolve().is_relative_to(run.path.resolve())
        return path.read_text() if inside else ""
    except (OSError, ValueError):
        return ""
