"""Merge runs that differ in the seed alone."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import numpy as np

from jaxkd.report.reading import RunRecord
from jaxkd.report.rows import ResultRow

MISSING = "\u2013"  # in the place of a number


@dataclasses.dataclass(frozen=True)
class MergedFile:
    """An exported file, of all runs that have it; `values` as in `MergedRow`."""

    name: str
    format: str
    values: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class MergedRow:
    """A row of results.json, of all runs that have it.

    Attributes:
      stage: the stage's name.
      kind: of the stage.
      model: the model's name.
      runs: the row of each run, by the run's place in the group.
      values: each number of the row, for the runs where it is known.
      files: the exported files.
    """

    stage: str
    kind: str
    model: str
    runs: dict[int, ResultRow]
    values: dict[str, np.ndarray]
    files: list[MergedFile]


@dataclasses.dataclass(frozen=True)
class RunGroup:
    """Runs of one configuration.

    Attributes:
      name: its heading; no other group has the same.
      runs: by seed.
      rows: of results.json, in the order of the stages.
    """

    name: str
    runs: list[RunRecord]
    rows: list[MergedRow]

    @property
    def teacher(self) -> MergedRow | None:
        """The teacher at the end, or None."""
        names = {run.results.teacher for run in self.runs}
        return next((row for row in reversed(self.rows) if row.model in names), None)

    @property
    def student(self) -> MergedRow | None:
        """The model that was changed last, if possible not the teacher."""
        names = {run.results.teacher for run in self.runs}
        others = [row for row in self.rows if row.model not in names]
        return next(reversed(others or self.rows), None)

    @property
    def whose(self) -> str:
        """What to add to the heading of a part that shows the first run alone."""
        return f" (seed {self.runs[0].seed})" if len(self.runs) > 1 else ""

    @property
    def stages(self) -> list[str]:
        """The stages with rows in metrics.jsonl, in order."""
        found = (str(row.get("stage")) for run in self.runs for row in run.metrics)
        return list(dict.fromkeys(found))


def group_runs(runs: Sequence[RunRecord]) -> tuple[list[RunGroup], list[str]]:
    """Return groups in the order of their first runs, and what is doubtful of them."""
    found: dict[str, list[RunRecord]] = {}
    for run in runs:
        found.setdefault(_identity(run), []).append(run)
    names = [members[0].name for members in found.values()]
    groups, notes = [], []
    for place, members in enumerate(found.values()):
        name = names[place]
        if names.count(name) > 1:
            name = f"{name} {_letter(names[:place].count(name))}"
        members = sorted(members, key=lambda run: (len(run.seed), run.seed))
        seeds = [run.seed for run in members]
        notes += [
            f"{name}: the seed {seed} is there more than once, so the deviation over "
            "seeds is too small."
            for seed in sorted(set(seeds))
            if seeds.count(seed) > 1
        ]
        groups.append(RunGroup(name, members, merge_rows(members)))
    return groups, notes


def merge_rows(runs: Sequence[RunRecord]) -> list[MergedRow]:
    """Return the rows of results.json of runs of one configuration."""
    found: dict[tuple[int, str, str, str], dict[int, ResultRow]] = {}
    for place, run in enumerate(runs):
        for row in run.results.rows:
            key = (row.index, row.stage, row.kind, row.model)
            found.setdefault(key, {})[place] = row
    return [
        MergedRow(*key[1:], rows, _values(list(rows.values())), _files(rows.values()))
        for key, rows in sorted(found.items(), key=lambda item: item[0][0])
    ]


def differences(groups: Sequence[RunGroup]) -> list[dict[str, str]]:
    """Return a row for each key that the configurations differ in.

    A stage or model that some do not have is one row, with its kind.
    """
    flat = [dict(_flatten(group.runs[0].config or {})) for group in groups]
    part = lambda key: ".".join(key.split(".")[:2])
    common = set.intersection(*({part(key) for key in config} for config in flat))
    short: list[dict[str, Any]] = []
    for config in flat:
        short.append({})
        for key, value in config.items():
            short[-1].setdefault(key if part(key) in common else part(key), value)
    keys = dict.fromkeys(key for config in short for key in config)
    table = []
    for key in keys.keys() - {"seed", "out", "name"}:
        text = lambda value: (
            value if isinstance(value, str) else json.dumps(value, default=str)
        )
        cells = [text(config[key]) if key in config else MISSING for config in short]
        if len(set(cells)) > 1:
            names = [group.name for group in groups]
            table.append({"key": key, **dict(zip(names, cells, strict=True))})
    return sorted(table, key=lambda row: list(keys).index(row["key"]))


def _values(rows: Sequence[msgspec.Struct]) -> dict[str, np.ndarray]:
    """Each number of some rows, for those where it is known."""
    columns = {}
    for field in rows[0].__struct_fields__:
        values = [getattr(row, field) for row in rows]
        numbers = [v for v in values if isinstance(v, int | float)]
        columns[field] = np.asarray(numbers, float)
    return columns


def _files(rows: Any) -> list[MergedFile]:
    found: dict[tuple[str, str], list[msgspec.Struct]] = {}
    for row in rows:
        for file in row.files:
            found.setdefault((file.path, file.format), []).append(file)
    return [
        MergedFile(path.rpartition("/")[2], format, _values(files))
        for (path, format), files in found.items()
    ]


def _identity(run: RunRecord) -> str:
    """Return the same for runs that differ in the seed alone."""
    if run.config is None:
        return f"path {run.path.resolve()}"
    config = {k: v for k, v in run.config.items() if k not in ("seed", "out")}
    return json.dumps(
        [config, run.facts.data.get("fingerprint")], sort_keys=True, default=str
    )


def _letter(place: int) -> str:
    return chr(ord("A") + place) if place < 26 else str(place + 1)


def _flatten(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Return the leaves of a configuration, in whose keys a stage has its name."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        value = {stage.get("name", i): stage for i, stage in enumerate(value)}
    if isinstance(value, dict) and value:
        for name, item in value.items():
            yield from _flatten(item, f"{key}.{name}" if key else str(name))
    else:
        yield key, value
