"""Runs that differ in the seed alone, as one."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxkd.report.blocks import MISSING
from jaxkd.report.reading import Row, Run, number

_NUMBERS = ("accuracy", "nll", "ece", "agreement", "parameters", "macs", "bytes")


class Group(NamedTuple):
    """Runs of one configuration.

    Attributes:
      name: what it is called in the report; no other group has the same.
      runs: its runs, by seed.
      notes: what is in doubt, in sentences.
    """

    name: str
    runs: tuple[Run, ...]
    notes: tuple[str, ...] = ()

    @property
    def teacher(self) -> str | None:
        """The model the others are compared with."""
        names = [run.results.get("teacher") for run in self.runs]
        return next((str(name) for name in names if name is not None), None)


class Merged(NamedTuple):
    """A row of results.json, of all runs that have it.

    Attributes:
      place: of the stage in the configuration.
      stage: its name.
      kind: of the stage.
      model: which model.
      runs: (run, row) of each.
      values: the numbers, an array with one for each run that has it.
      files: the exported files.
    """

    place: int
    stage: str
    kind: str
    model: str
    runs: tuple[tuple[Run, Row], ...]
    values: dict[str, np.ndarray]
    files: tuple["File", ...]

    @property
    def title(self) -> str:
        """The stage, with its kind where the name does not tell."""
        kind = "" if self.kind in self.stage else f" ({self.kind})"
        return f"{self.stage}{kind}"


class File(NamedTuple):
    """An exported file, of all runs that have it."""

    path: str
    format: str
    values: dict[str, np.ndarray]

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition("/")[2]


def grouped(runs: Sequence[Run]) -> list[Group]:
    """Groups of runs, in the order of their first ones."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(_identity(run), []).append(run)
    groups = []
    names = [members[0].name for members in found.values()]
    for place, members in enumerate(found.values()):
        name = names[place]
        if names.count(name) > 1:
            name = f"{name} {_letter(names[:place].count(name))}"
        members = sorted(members, key=lambda run: (len(run.seed), run.seed))
        seeds = [run.seed for run in members]
        twice = sorted({seed for seed in seeds if seeds.count(seed) > 1})
        notes = tuple(
            f"{name}: the seed {seed} is there more than once, so the deviation over "
            "seeds is too small."
            for seed in twice
        )
        groups.append(Group(name, tuple(members), notes))
    return groups


def merged(group: Group) -> list[Merged]:
    """The rows of results.json, in the order of the stages."""
    found: dict[tuple[int, str, str, str], list[tuple[Run, Row]]] = {}
    for run in group.runs:
        for row in run.rows:
            stage, kind, model = (str(row.get(k)) for k in ("stage", "kind", "model"))
            key = (int(number(row.get("index")) or 0), stage, kind, model)
            found.setdefault(key, []).append((run, row))
    return [
        Merged(*key, tuple(pairs), _values([row for _, row in pairs]), _files(pairs))
        for key, pairs in sorted(found.items(), key=lambda item: item[0][0])
    ]


def student(group: Group, rows: Sequence[Merged]) -> str | None:
    """The model that the run is about: the last one changed, if not the teacher."""
    others = [row.model for row in rows if row.model != group.teacher]
    return others[-1] if others else None


def last(rows: Sequence[Merged], model: str | None) -> Merged | None:
    """The last row of a model."""
    return next((row for row in reversed(rows) if row.model == model), None)


def differences(groups: Sequence[Group]) -> list[dict[str, str]]:
    """The keys that configurations differ in, one row each."""
    flat = [dict(_flat(group.runs[0].config or {})) for group in groups]
    parts = [_parts(config) for config in flat]
    common = set.intersection(*map(set, parts))
    # A stage or a model that some do not have is one row, with its kind.
    flat = [
        {key: value for key, value in config.items() if _part(key) in common}
        | {key: value for key, value in part.items() if key not in common}
        for config, part in zip(flat, parts, strict=True)
    ]
    keys = dict.fromkeys(key for config in flat for key in config)
    for key in ("seed", "out", "name"):
        keys.pop(key, None)
    rows = []
    for key in keys:
        values = [_said(config[key]) if key in config else MISSING for config in flat]
        if len(set(values)) > 1:
            names = [group.name for group in groups]
            rows.append({"key": key, **dict(zip(names, values, strict=True))})
    return rows


def _values(rows: Sequence[Row]) -> dict[str, np.ndarray]:
    return {key: _column(rows, key) for key in (*_NUMBERS, "images/s")}


def _column(rows: Sequence[Row], key: str) -> np.ndarray:
    values = [number(row.get(key)) for row in rows]
    return np.asarray([value for value in values if value is not None], float)


def _files(pairs: Sequence[tuple[Run, Row]]) -> tuple[File, ...]:
    found: dict[tuple[str, str], list[Row]] = {}
    for _, row in pairs:
        files = row.get("files")
        for file in files if isinstance(files, list) else ():
            if isinstance(file, dict):
                key = (str(file.get("path")), str(file.get("format")))
                found.setdefault(key, []).append(file)
    keys = ("bytes", "milliseconds", "difference", "accuracy", "nll")
    return tuple(
        File(*key, {name: _column(files, name) for name in keys})
        for key, files in found.items()
    )


def _identity(run: Run) -> str:
    """The same for runs that differ in the seed alone."""
    if run.config is None:
        return f"path {run.path.resolve()}"
    config = {k: v for k, v in run.config.items() if k not in ("seed", "out")}
    data = run.facts.get("data")
    seen = data.get("fingerprint") if isinstance(data, Mapping) else None
    return json.dumps([config, seen], sort_keys=True, default=str)


def _letter(place: int) -> str:
    return chr(ord("A") + place) if place < 26 else str(place + 1)


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a configuration; a stage is called by its name."""
    if isinstance(value, dict) and value:
        for name, item in value.items():
            yield from _flat(item, f"{key}.{name}" if key else name)
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for place, item in enumerate(value):
            name = item.get("name", place) if isinstance(item, dict) else place
            yield from _flat(item, f"{key}.{name}")
    else:
        yield key, value


def _parts(config: Mapping[str, Any]) -> dict[str, Any]:
    """The stages and models, each with its first value, which is the kind."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        found.setdefault(_part(key), value)
    return found


def _part(key: str) -> str:
    """The stage or model a key is of."""
    return ".".join(key.split(".")[:2])


def _said(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
