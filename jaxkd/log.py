"""What a run leaves behind while it goes on: JSON lines, and a bar on the terminal."""

import dataclasses
import json
import os
import pathlib
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import Any

import jax
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from jaxkd import store

Row = dict[str, Any]
Log = Callable[[Row], None]


def start(directory: str | os.PathLike, config: Any = None) -> Log:
    """Open a run directory: write `config.json` and `versions.json`.

    Of many processes, which all call it, the first one writes.

    Args:
      directory: made if need be; one that holds a run already is refused, so that no
        run writes over another.
      config: a dataclass or a dict.

    Returns:
      A function that adds a row to `metrics.jsonl`. The file is closed after each, so
      that a run that dies leaves everything it had said.

    Raises:
      ValueError: if there is a `metrics.jsonl` already.
    """
    if jax.process_index() != 0:
        return lambda row: None
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "metrics.jsonl"
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        raise ValueError(f"{directory} holds a run already; name another") from None
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        config = dataclasses.asdict(config)
    for name, content in (("config", config), ("versions", versions())):
        text = json.dumps(content, indent=2, default=str) + "\n"
        store.write_file(directory / f"{name}.json", text.encode())
    return lambda row: store.append_line(path, row)


def versions() -> dict[str, str]:
    """Return what a number was measured with: packages, Python, machine, device."""
    packages = ("jax", "jaxlib", "flax", "optax", "numpy")
    device = jax.devices()[0]
    return {
        **{name: metadata.version(name) for name in packages},
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "device": f"{jax.device_count()} x {device.device_kind} ({device.platform})",
    }


@contextmanager
def bar(name: str, total: int, *, show: bool = True) -> Iterator[Callable[..., None]]:
    """One live line: how far, how long still, the latest numbers. Silent in a pipe.

    Of many processes, the first one shows it.

    Yields:
      A function to call often; with a row of numbers, it goes one unit further.
    """
    console = Console(stderr=True)
    line = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[latest]}"),
        console=console,
        disable=not (show and console.is_terminal and jax.process_index() == 0),
        auto_refresh=False,
    )
    task = line.add_task(name, total=total, latest="compiling")

    def tick(row: Row | None = None) -> None:
        if row is not None:
            line.update(task, advance=1, latest=_summary(row))
        line.refresh()

    with line:
        yield tick


def _summary(row: Row) -> str:
    """Return the numbers of a row in a few characters; several seeds by their mean."""
    shown = {
        name: sum(value) / len(value) if isinstance(value, list) else value
        for name, value in row.items()
        if isinstance(value, float | list) and name not in ("seconds", "norm/grad")
    }
    return "  ".join(f"{name} {value:.4g}" for name, value in shown.items())
