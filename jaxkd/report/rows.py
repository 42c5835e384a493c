"""What the files of a run directory hold: `jaxkd.pipeline` writes it, reports read it.

The meaning of each field is in the docstring of `jaxkd.pipeline`.
"""

import json
import os
import pathlib
from typing import Any, Literal, TypeVar

import msgspec

RowOf = TypeVar("RowOf", bound=msgspec.Struct)


class ExportedFile(msgspec.Struct, kw_only=True):
    """An exported file, in the row of its stage."""

    path: str
    format: str
    bytes: int
    milliseconds: float | None = None
    difference: float | None = None
    accuracy: float | None = None
    nll: float | None = None


class ResultRow(msgspec.Struct, kw_only=True):
    """A row of results.json: a model after a stage."""

    index: int
    stage: str
    kind: str
    model: str
    directory: str
    accuracy: float
    nll: float
    ece: float
    agreement: float | None
    parameters: int
    macs: int
    bytes: int
    seconds: float = 0.0
    images_per_second: float | None = msgspec.field(default=None, name="images/s")
    files: list[ExportedFile] = []
    logits_sha256: str | None = None


class RunResults(msgspec.Struct, kw_only=True):
    """results.json."""

    format: Literal[1]
    name: str = ""
    seed: int | None = None
    teacher: str | None = None
    finished: bool = False
    rows: list[ResultRow] = []


class GitState(msgspec.Struct, kw_only=True):
    """The commit that a run was started from."""

    commit: str
    changed: bool = False


class RunFacts(msgspec.Struct, kw_only=True):
    """run.json: where a run comes from."""

    format: Literal[1]
    name: str = ""
    seed: int | None = None
    started: str = ""
    jaxkd: str = ""
    versions: dict[str, Any] = {}
    device: str = ""
    git: GitState | None = None
    command: list[str] = []
    data: dict[str, Any] = {}
    sha256: dict[str, str] = {}


class TrialRow(msgspec.Struct, kw_only=True):
    """A row of metrics.jsonl: a candidate of a search."""

    stage: str
    trial: int
    reward: float | None = None
    tokens: list[int] = []
    values: dict[str, Any] = {}
    macs: int | None = None
    parameters: int | None = None


class PruneRow(msgspec.Struct, kw_only=True):
    """A row of metrics.jsonl: the units that a prune stage removed, by group."""

    stage: str
    dropped: dict[str, list[int]]


class Sensitivities(msgspec.Struct, kw_only=True):
    """sensitivities.json: the metric by group and by how many units are kept."""

    whole: float | None = None
    points: dict[str, dict[int, float | None]] = {}
    settings: dict[str, Any] = {}


def read(path: str | os.PathLike, kind: type[RowOf]) -> RowOf:
    """Read a JSON file.

    Raises:
      FileNotFoundError: if there is no file.
      ValueError: if it is damaged or of another version, naming the file, the value
        and the remedy.
    """
    path = pathlib.Path(path)
    try:
        # NaN and Infinity are no JSON, but Python writes and reads them.
        return msgspec.convert(json.loads(path.read_bytes()), kind, strict=False)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is damaged or of another version: {error}; python -m jaxkd resume "
            f"{path.parent} writes it again"
        ) from error
