"""The run directory: what lies where; see `jaxkd.pipeline` for the whole of it."""

import contextlib
import datetime
import hashlib
import io
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

import jaxkd
from jaxkd import data, log, store
from jaxkd.pipeline import toml
from jaxkd.pipeline.config import Config
from jaxkd.pipeline.run_data import RunData

FORMAT = 1
CONFIG, RUN, METRICS, RESULTS, LOCK = (
    "config.toml",
    "run.json",
    "metrics.jsonl",
    "results.json",
    "lock",
)
Row = dict[str, Any]
Warn = Callable[[str], None]


def is_run(path: str | os.PathLike) -> bool:
    """Return whether a directory is that of a run, finished or not."""
    return all((pathlib.Path(path) / name).is_file() for name in (CONFIG, LOCK))


def require_free(path: str | os.PathLike | None) -> None:
    """Refuse a directory that a new run would share with something else.

    Raises:
      ValueError: if there is a run, or anything else but an empty directory.
    """
    if path is None or not os.path.lexists(path):
        return
    run = pathlib.Path(path)
    if is_run(run):
        raise ValueError(f"{run} holds a run already; resume it, or name another")
    if not run.is_dir():
        raise ValueError(f"{run} is not a directory; name a new one for the run")
    own = lambda name: name == LOCK or name.startswith(store.PREFIX)
    if others := sorted(p.name for p in run.iterdir() if not own(p.name)):
        raise ValueError(
            f"{run} is not empty, and no run: it holds {others[0]!r}; name a new or an "
            "empty directory"
        )


@contextlib.contextmanager
def create(
    config: Config, path: str | os.PathLike | None = None
) -> Iterator[pathlib.Path]:
    """Make the directory of a new run, and keep other processes out of it.

    Args:
      config: as resolved; it is written.
      path: of the directory, new or empty; by default `out/name/TIME`.

    Yields:
      The directory.

    Raises:
      ValueError: if the directory is not empty, or another process works in it.
      OSError: if it cannot be made or written.
    """
    require_free(path)
    run = _fresh(config) if path is None else pathlib.Path(path).absolute()
    run.mkdir(parents=True, exist_ok=True)
    with locked(run):
        require_free(run)  # another process may have been quicker
        store.write_file(run / CONFIG, toml.dumps(config).encode())
        yield run


def _fresh(config: Config) -> pathlib.Path:
    """Return a directory that was not there before: nobody else has it."""
    now = datetime.datetime.now().strftime("%Y-%m-%d-%H-%M-%S")
    above = (pathlib.Path(config.out) / config.name).absolute()
    above.mkdir(parents=True, exist_ok=True)
    for extra in range(10_000):
        run = above / (f"{now}-{extra}" if extra else now)
        with contextlib.suppress(FileExistsError):
            run.mkdir()
            return run
    raise ValueError(f"{above} is full of runs of this second; name a directory")


def locked(run: pathlib.Path) -> contextlib.AbstractContextManager[None]:
    """Keep a second process out of the directory.

    Raises:
      ValueError: if there is one.
    """
    return store.lock(run / LOCK, run)


def clean(run: pathlib.Path) -> None:
    """Remove the temporary files of killed processes from all folders of a run."""
    for folder, _, _ in os.walk(run):
        store.clean(folder)


def write_json(path: pathlib.Path, content: Any) -> None:
    """Write JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    store.write_json(path, content)


def write_array(path: pathlib.Path, array: np.ndarray) -> str:
    """Write an array in numpy's format, whole or not at all; return its SHA-256.

    A file that has this content already is left as it is.
    """
    buffer = io.BytesIO()
    np.save(buffer, array)
    content = buffer.getvalue()
    if not (path.is_file() and path.read_bytes() == content):
        path.parent.mkdir(parents=True, exist_ok=True)
        store.write_file(path, content)
    return hashlib.sha256(content).hexdigest()


def read_array(path: pathlib.Path, sha256: str | None) -> np.ndarray:
    """Read what `write_array` wrote.

    Raises:
      FileNotFoundError: if there is no file.
      ValueError: if it is not what was written, naming it.
    """
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError(f"{path} is damaged: its checksum differs")
    return np.load(io.BytesIO(content), allow_pickle=False)


def fingerprint(splits: RunData) -> str:
    """Return what tells the data of a run from others."""
    return data.fingerprint(splits.train) + data.fingerprint(splits.test)


def describe(run: pathlib.Path, config: Config, splits: RunData, warn: Warn) -> None:
    """Write run.json and the test images, where they are missing or damaged.

    Args:
      run: the directory.
      config: of the run.
      splits: its data.
      warn: told of what was damaged.

    Raises:
      ValueError: if the run began with other data.
    """
    found, before = fingerprint(splits), _fingerprint_in(run / RUN, warn)
    if before not in (None, found):
        raise ValueError(
            f"{config.data.title} is no longer the data that {run / RUN} names; start "
            f"a new run, or delete {RUN}: the stages are then done again"
        )
    test = splits.test
    arrays = {
        "test/labels.npy": test.labels,
        "test/index.npy": test.index,
        "test/images.npy": np.asarray(test.images[:1000]),
    }
    sums = {name: write_array(run / name, array) for name, array in arrays.items()}
    if before is not None:
        return
    versions = log.versions()
    facts = {
        "format": FORMAT,
        "name": config.name,
        "seed": config.seed,
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "jaxkd": jaxkd.__version__,
        "versions": versions,
        "device": versions["device"],
        "git": git(),
        "command": sys.argv,
        "data": {
            "name": config.data.title,
            "kind": config.data.kind,
            "classes": list(test.classes),
            "image_shape": list(splits.image_shape),
            "train": len(splits.train.labels),
            "validation": len(splits.validation.labels),
            "test": len(test.labels),
            "fingerprint": found,
            "preprocessing": splits.preprocessing.to_json(),
        },
        "sha256": sums,
    }
    write_json(run / RUN, {**facts, "checksum": _checksum(facts)})


def _fingerprint_in(file: pathlib.Path, warn: Warn) -> str | None:
    """Return the data that a run began with; None if that is not known."""
    remedy = "it is written again"
    try:
        facts = store.read_json(file, remedy)
        if facts.pop("checksum") == _checksum(facts):
            return str(facts["data"]["fingerprint"])
        warn(f"{file} is damaged: its checksum is of another content; {remedy}")
    except FileNotFoundError:
        return None
    except ValueError as error:
        warn(str(error))
    except (KeyError, TypeError):
        warn(f"{file} is damaged: it has no checksum or names no data; {remedy}")
    return None


def _checksum(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def git() -> dict[str, Any] | None:
    """Return the commit of the working directory, and whether files were changed."""
    ask = lambda *what: (
        subprocess.run(
            ["git", *what], capture_output=True, text=True, timeout=20, check=True
        ).stdout
    )
    try:
        commit = ask("rev-parse", "HEAD").strip()
        return {"commit": commit, "changed": bool(ask("status", "--porcelain").strip())}
    except (OSError, subprocess.SubprocessError):
        return None


class Metrics(NamedTuple):
    """metrics.jsonl.

    Attributes:
      add: `row -> None`.
      reset: `rows -> None`: the file has exactly these from then on.
    """

    add: Callable[[Row], None]
    reset: Callable[[list[Row]], None]


def metrics(run: pathlib.Path) -> Metrics:
    """Return the rows of a run. One that was torn by a kill vanishes with `reset`."""
    path = run / METRICS

    def reset(rows: list[Row]) -> None:
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()
        if not path.exists() or path.read_bytes() != content:
            store.write_file(path, content)

    return Metrics(lambda row: store.append_line(path, row), reset)
