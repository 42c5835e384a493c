"""The run directory: what lies where; see `jaxkd.pipeline` for the whole of it."""

import contextlib
import datetime
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

import jaxkd
from jaxkd import _files, data, log
from jaxkd.pipeline import toml
from jaxkd.pipeline.config import Config
from jaxkd.pipeline.world import World

FORMAT = 1
CONFIG, RUN, METRICS, RESULTS = (
    "config.toml",
    "run.json",
    "metrics.jsonl",
    "results.json",
)
Row = dict[str, Any]


def create(config: Config, path: str | os.PathLike | None = None) -> pathlib.Path:
    """Makes the directory of a new run and writes its configuration.

    Args:
      config: as resolved.
      path: of the directory; by default `out/name/TIME`.

    Raises:
      ValueError: if there is a run already.
      OSError: if it cannot be made or written.
    """
    now = datetime.datetime.now().strftime("%Y-%m-%d-%H-%M-%S")
    run = pathlib.Path(path or pathlib.Path(config.out) / config.name / now).absolute()
    for extra in range(1, 1000):
        if path is not None or not run.exists():
            break
        run = run.with_name(f"{now}-{extra}")
    if (run / CONFIG).exists():
        raise ValueError(f"{run} holds a run already; resume it, or name another")
    run.mkdir(parents=True, exist_ok=True)
    _files.write(run / CONFIG, toml.dumps(config).encode())
    return run


@contextlib.contextmanager
def locked(run: pathlib.Path) -> Iterator[None]:
    """Keeps a second process out of the directory.

    Raises:
      ValueError: if there is one.
    """
    with (run / "lock").open("ab") as file:
        if not _files.lock(file):
            raise ValueError(f"another process is working in {run}")
        yield


def write_json(path: pathlib.Path, content: Any) -> None:
    """Writes JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=1, allow_nan=False)
    _files.write(path, text.encode() + b"\n")


def write_array(path: pathlib.Path, array: np.ndarray) -> None:
    """Writes an array in numpy's format, whole or not at all."""
    import io

    path.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    np.save(content, array)
    _files.write(path, content.getvalue())


def describe(run: pathlib.Path, config: Config, world: World) -> None:
    """Writes run.json and the test images, if they are not there.

    Raises:
      ValueError: if they are, but of other data.
    """
    fingerprint = data.fingerprint(world.train) + data.fingerprint(world.test)
    if (run / RUN).exists():
        before = json.loads((run / RUN).read_text())
        if before["data"]["fingerprint"] != fingerprint:
            raise ValueError(f"{config.data.name} is no longer what {run} began with")
        return
    test = world.test
    write_array(run / "test" / "labels.npy", test.labels)
    write_array(run / "test" / "index.npy", test.index)
    write_array(run / "test" / "images.npy", np.asarray(test.images[:1000]))
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
            "name": config.data.name,
            "classes": list(test.classes),
            "image_shape": list(world.image_shape),
            "train": len(world.train.labels),
            "validation": len(world.validation.labels),
            "test": len(test.labels),
            "fingerprint": fingerprint,
        },
    }
    write_json(run / RUN, facts)


def git() -> dict[str, Any] | None:
    """The commit of the working directory, and whether files were changed since."""
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
    """The rows of a run. One that was torn by a kill vanishes with `reset`."""
    path = run / METRICS

    def add(row: Row) -> None:
        try:
            with path.open("a") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:  # of a full disk, which names no file
            raise OSError(error.errno, error.strerror, str(path)) from error

    def reset(rows: list[Row]) -> None:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        if not path.exists() or path.read_text() != text:
            _files.write(path, text.encode())

    return Metrics(add, reset)
