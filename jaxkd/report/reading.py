"""Read a run directory, finished or not."""

import json
import os
import pathlib
import tomllib
from typing import Any, NamedTuple

import numpy as np

from jaxkd import store

FORMAT = 1
Row = dict[str, Any]


class Run(NamedTuple):
    """A run.

    Attributes:
      path: its directory.
      facts: run.json, or {}.
      config: config.toml, or None.
      config_text: the same as it is written, or "".
      metrics: the rows of metrics.jsonl that are whole.
      results: results.json, or {}.
      notes: what is missing or in doubt, in sentences.
    """

    path: pathlib.Path
    facts: Row
    config: Row | None
    config_text: str
    metrics: list[Row]
    results: Row
    notes: tuple[str, ...]

    @property
    def name(self) -> str:
        """The configuration's name, or the directory's."""
        name = self.results.get("name") or self.facts.get("name")
        return str(name or (self.config or {}).get("name") or self.path.name)

    @property
    def seed(self) -> str:
        """The seed, or a question mark."""
        found = [x.get("seed") for x in (self.results, self.facts, self.config or {})]
        return str(next((seed for seed in found if seed is not None), "?"))

    @property
    def rows(self) -> list[Row]:
        """The rows of results.json."""
        return _objects(self.results.get("rows"))

    @property
    def stages(self) -> list[Row]:
        """The stages of the configuration, done or not."""
        return _objects((self.config or {}).get("stages"))


def read(path: str | os.PathLike) -> Run:
    """Reads a run directory; what is missing or torn becomes a note.

    Raises:
      ValueError: if it is not a run directory, if run.json or results.json is damaged,
        or if it is of another format.
    """
    path = pathlib.Path(path)
    names = ("config.toml", "run.json", "results.json")
    if not any((path / name).is_file() for name in names):
        wanted = ", ".join(names)
        raise ValueError(f"{path} is not a run directory: it has none of {wanted}")
    notes: list[str] = []
    facts, results = _json(path / "run.json"), _json(path / "results.json")
    text, config = _config(path / "config.toml", notes)
    run = Run(
        path, facts, config, text, _metrics(path / "metrics.jsonl", notes), results, ()
    )
    _completeness(run, notes)
    notes += _doubts(run)
    return run._replace(notes=tuple(f"{path}: {note}" for note in notes))


def labels(run: Run) -> np.ndarray | None:
    """Return the labels of the test images, int `[n]`, or None."""
    found = _known(run, "test/labels.npy")
    return found if found is not None and found.ndim == 1 and _whole(found) else None


def images(run: Run) -> np.ndarray | None:
    """Return the first of the test images, uint8 `[n, h, w, c]`, or None."""
    found = _known(run, "test/images.npy")
    fits = found is not None and found.ndim == 4 and found.dtype == np.uint8
    return found if fits else None


def logits(run: Run, row: Row) -> np.ndarray | None:
    """Return the logits of a row of results.json, float `[n, classes]`, or None."""
    found = array(run, f"{row.get('directory')}/logits.npy", row.get("logits_sha256"))
    known = labels(run)
    if found is None or known is None or found.ndim != 2 or found.dtype.kind != "f":
        return None
    # A label without a class would be a wrong index further on.
    fits = len(found) == len(known) > 0 <= known.min() and known.max() < found.shape[1]
    return found.astype(np.float64) if fits else None


def classes(run: Run, number: int) -> list[str]:
    """The names of so many classes; numbers where there are no names."""
    data = run.facts.get("data")
    names = data.get("classes") if isinstance(data, dict) else None
    if not isinstance(names, list) or len(names) != number:
        return [str(i) for i in range(number)]
    return [str(name) for name in names]


def array(run: Run, name: str, sha256: Any = None) -> np.ndarray | None:
    """Return an array of the directory; None if it is missing or damaged.

    Args:
      run: the run.
      name: of the file, relative to its directory.
      sha256: the checksum that the run recorded; None is not compared.
    """
    path = run.path / name
    try:
        if not path.resolve().is_relative_to(run.path.resolve()):
            return None
        if sha256 is not None and store.sha256(path) != sha256:
            return None
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None


def _known(run: Run, name: str) -> np.ndarray | None:
    """An array whose checksum run.json records."""
    return array(run, name, _sums(run).get(name))


def _sums(run: Run) -> Row:
    sums = run.facts.get("sha256")
    return sums if isinstance(sums, dict) else {}


def json_file(run: Run, name: str) -> Row:
    """A JSON object of the directory; {} if it is not there or not whole."""
    try:
        return _json(run.path / name)
    except (OSError, ValueError):
        return {}


def number(value: Any) -> float | None:
    """Return a number as a float; None for all else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:  # a whole number of more than 308 digits
        return None


def _objects(value: Any) -> list[Row]:
    items = value if isinstance(value, list) else []
    return [item for item in items if isinstance(item, dict)]


def _whole(array: np.ndarray) -> bool:
    return bool(np.issubdtype(array.dtype, np.integer))


def _json(path: pathlib.Path) -> Row:
    """A JSON file of this format; {} if there is none."""
    try:
        found = store.read_json(path, "python -m jaxkd resume RUN writes it again")
    except FileNotFoundError:
        return {}
    if path.name in ("run.json", "results.json") and found.get("format") != FORMAT:
        got = found.get("format")
        raise ValueError(f"{path} is of format {got!r}, and this reads {FORMAT}")
    return found


def _config(path: pathlib.Path, notes: list[str]) -> tuple[str, Row | None]:
    try:
        text = path.read_text()
    except (OSError, ValueError):
        notes.append("there is no config.toml, so it is not merged with other seeds.")
        return "", None
    try:
        return text, tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        notes.append(f"config.toml is damaged: {error}.")
        return text, None


def _metrics(path: pathlib.Path, notes: list[str]) -> list[Row]:
    """The rows that are whole."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError:
        notes.append("there is no metrics.jsonl, so it has no curves.")
        return []
    rows = []
    for place, line in enumerate(lines, start=1):
        try:
            row = json.loads(line) if line.strip() else None
        except ValueError:
            notes.append(f"line {place} of metrics.jsonl is damaged and left out.")
            continue
        rows += [row] if isinstance(row, dict) else []
    return rows


def _completeness(run: Run, notes: list[str]) -> None:
    done = len({str(row.get("index")) for row in run.rows if row.get("index") != -1})
    if not run.results.get("finished"):
        total = f" of its {len(run.stages)}" if run.stages else ""
        notes.append(
            f"the run has not finished: it has results of {done}{total} stages."
        )
    if run.rows and labels(run) is None:
        notes.append("there are no test labels, so its predictions are not shown.")


def _doubts(run: Run) -> list[str]:
    """Damaged arrays, and rows whose accuracy is not that of their logits."""
    sums = dict(_sums(run))
    for row in run.rows:
        if row.get("logits_sha256") is not None:
            sums[f"{row.get('directory')}/logits.npy"] = row["logits_sha256"]
    notes = [
        f"{name} is damaged and left out; resume the run, which writes it again."
        for name, sha256 in sums.items()
        if os.path.isfile(run.path / name) and array(run, name, sha256) is None
    ]
    known = labels(run)
    for row in run.rows if known is not None else ():
        said, found = number(row.get("accuracy")), logits(run, row)
        if found is None or said is None:
            continue
        seen = float(np.mean(found.argmax(-1) == known))
        if abs(seen - said) > 1e-5:
            notes.append(
                f"results.json says {said:.4f} is the accuracy after "
                f"{row.get('stage')}, its logits.npy says {seen:.4f}."
            )
    return notes
