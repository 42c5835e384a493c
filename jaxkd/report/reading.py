"""Read a run directory, finished or not."""

import dataclasses
import functools
import json
import os
import pathlib
import tomllib
from typing import Any

import msgspec
import numpy as np

from jaxkd import store
from jaxkd.report import rows


@dataclasses.dataclass(frozen=True, eq=False)
class RunRecord:
    """What a run directory holds.

    Attributes:
      path: the directory.
      facts: run.json.
      config: config.toml, or None if it is missing or damaged.
      config_text: the same as it is written.
      metrics: the rows of metrics.jsonl.
      results: results.json.
      notes: what is missing or damaged, in sentences.
    """

    path: pathlib.Path
    facts: rows.RunFacts
    config: dict[str, Any] | None
    config_text: str
    metrics: list[dict[str, Any]]
    results: rows.RunResults
    notes: list[str]

    @property
    def name(self) -> str:
        """The configuration's name, or the directory's."""
        named = (self.config or {}).get("name")
        return str(self.results.name or self.facts.name or named or self.path.name)

    @property
    def seed(self) -> str:
        """The seed, or a question mark."""
        found = (self.results.seed, self.facts.seed, (self.config or {}).get("seed"))
        return str(next((seed for seed in found if seed is not None), "?"))

    @functools.cached_property
    def labels(self) -> np.ndarray | None:
        """The labels of the test images, int `[n]`, or None."""
        return self.array("test/labels.npy")

    @functools.cached_property
    def images(self) -> np.ndarray | None:
        """The first of the test images, uint8 `[n, h, w, c]`, or None."""
        found = self.array("test/images.npy")
        # Only pictures can be shown: not sequences, and not images of other types.
        fits = found is not None and found.ndim == 4 and found.dtype == np.uint8
        return found if fits else None

    def logits(self, row: rows.ResultRow | None) -> np.ndarray | None:
        """Return the logits after a stage, float `[n, classes]`, or None."""
        if row is None or self.labels is None:
            return None
        found = self.array(f"{row.directory}/logits.npy")
        if found is None or found.ndim != 2 or len(found) != len(self.labels):
            return None
        return found.astype(np.float64)

    def array(self, name: str) -> np.ndarray | None:
        """Return an array of the directory; None if it is missing or damaged."""
        sha256 = self.checksums.get(name)
        try:
            if sha256 is not None and store.sha256(self.path / name) != sha256:
                return None
            return np.load(self.path / name, allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None

    @property
    def checksums(self) -> dict[str, str]:
        """The recorded SHA-256 of arrays, by name."""
        logits = {
            f"{row.directory}/logits.npy": row.logits_sha256
            for row in self.results.rows
            if row.logits_sha256 is not None
        }
        return {**self.facts.sha256, **logits}

    def stage_metrics(self, stage: str, key: str) -> list[dict[str, Any]]:
        """Return the rows of metrics.jsonl of a stage that have a key."""
        return [r for r in self.metrics if r.get("stage") == stage and key in r]

    def pending(self) -> dict[str, str]:
        """Return the stages that have no results yet, with a sentence for each."""
        if self.results.finished:
            return {}
        done = {row.stage for row in self.results.rows}
        begun = {row.get("stage") for row in self.metrics}
        names = [str(stage.get("name")) for stage in (self.config or {})["stages"]]
        state = lambda name: "not finished" if name in begun else "not run"
        return {
            name: f"This stage has {state(name)} yet."
            for name in names
            if name not in done
        }


def read(path: str | os.PathLike) -> RunRecord:
    """Read a run directory; what is missing or damaged becomes a note.

    Raises:
      ValueError: if it is not a run directory, or if run.json or results.json is
        damaged or of another version.
    """
    path = pathlib.Path(path)
    wanted = ("config.toml", "run.json", "results.json")
    if not any((path / name).is_file() for name in wanted):
        raise ValueError(
            f"{path} is not a run directory: it has none of {', '.join(wanted)}"
        )
    notes: list[str] = []
    text, config = _config(path / "config.toml", notes)
    run = RunRecord(
        path,
        _optional(path / "run.json", rows.RunFacts),
        config,
        text,
        _metrics(path / "metrics.jsonl", notes),
        _optional(path / "results.json", rows.RunResults),
        notes,
    )
    notes += _problems(run)
    return dataclasses.replace(run, notes=[f"{path}: {note}" for note in notes])


def _optional(path: pathlib.Path, kind: type[rows.RowOf]) -> rows.RowOf:
    """Return a file, or an empty one if the run has not come to write it."""
    try:
        return rows.read(path, kind)
    except FileNotFoundError:
        return kind(format=1)


def _config(path: pathlib.Path, notes: list[str]) -> tuple[str, dict[str, Any] | None]:
    try:
        text = path.read_text()
        config = tomllib.loads(text)
        config.setdefault("stages", [])
        return text, config
    except FileNotFoundError:
        notes.append(
            "config.toml is missing, so the run is not merged with other seeds."
        )
    except ValueError as error:
        notes.append(f"config.toml is damaged: {error}.")
    return "", None


def _metrics(path: pathlib.Path, notes: list[str]) -> list[dict[str, Any]]:
    if not path.is_file():
        notes.append("metrics.jsonl is missing, so there are no curves.")
        return []
    found = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            row = json.loads(line)
            kind = next((k for key, k in _KINDS.items() if key in row), dict[str, Any])
            msgspec.convert(row, kind)
            found.append(row)
        except ValueError as error:
            notes.append(
                f"line {number} of metrics.jsonl is damaged and left out: {error}."
            )
    return found


_KINDS = {
    "epoch": dict[str, float | str | None],
    "trial": rows.TrialRow,
    "dropped": rows.PruneRow,
}


def _problems(run: RunRecord) -> list[str]:
    """Return what is unfinished, damaged or contradictory, in sentences."""
    notes = []
    if not run.results.finished:
        done = len({row.index for row in run.results.rows if row.index >= 0})
        total = f" of its {len(run.config['stages'])}" if run.config else ""
        notes.append(
            f"the run has not finished: it has results of {done}{total} stages."
        )
    if run.results.rows and run.labels is None:
        notes.append("there are no test labels, so predictions are not shown.")
    notes += [
        f"{name} is damaged and left out; resume the run, which writes it again."
        for name in run.checksums
        if (run.path / name).is_file() and run.array(name) is None
    ]
    for row in run.results.rows:
        logits = run.logits(row)
        if logits is None:
            continue
        accuracy = float(np.mean(logits.argmax(-1) == run.labels))
        if abs(accuracy - row.accuracy) > 1e-5:
            notes.append(
                f"the accuracy after {row.stage} is {row.accuracy:.4f} by results.json,"
                f" but {accuracy:.4f} by its logits.npy."
            )
    return notes
