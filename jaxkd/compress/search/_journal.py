"""The journal of a search: a line for each result, on the disk before the next one."""

import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from jaxkd import store

Line = dict[str, Any]
VERSION = 1


def header(settings: Mapping[str, Any]) -> Line:
    """Return the first line: what identifies the search, and a hash of it.

    Raises:
      ValueError: if JSON cannot hold the settings.
    """
    try:
        text = json.dumps(settings, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"settings must be fit for JSON: {error}") from error
    digest = hashlib.sha256(text.encode()).hexdigest()
    return {"journal": VERSION, "sha256": digest, "settings": json.loads(text)}


def read(path: str | os.PathLike) -> tuple[Line | None, list[Line]]:
    """Return the header and the results of a journal; a torn last line is left out.

    Returns:
      The header, None if the file is empty or holds but a part of one, and the results.

    Raises:
      ValueError: if a line before the last is damaged, or it is no journal.
    """
    lines, _ = _parse(pathlib.Path(path))
    return (lines[0], lines[1:]) if lines else (None, [])


def _parse(path: pathlib.Path) -> tuple[list[Line], int]:
    """Return the complete lines, and how many bytes they are."""
    lines, end = store.read_lines(path)
    for number, line in enumerate(lines, start=1):
        if ("journal" if number == 1 else "tokens") not in line:
            raise ValueError(
                f"{path}, line {number} is not of a journal: {str(line)[:80]}"
            )
    return lines, end


@contextmanager
def opened(
    path: str | os.PathLike | None, settings: Mapping[str, Any]
) -> Iterator[tuple[list[Line], Callable[[Line], None]]]:
    """Open a journal to go on with it, or start it; None keeps none.

    A torn last line, of a search that was killed while it wrote, is cut off.

    Yields:
      The results it holds, and a function that adds one; it returns when the line is on
      the disk.

    Raises:
      ValueError: if it is the journal of another search, naming what differs; if it is
        damaged; if another process is writing it.
    """
    first = header(settings)
    if path is None:
        yield [], lambda line: None
        return
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with store.lock(path):  # which makes the file
        lines, end = _parse(path)
        start = json.dumps(first).encode() + b"\n"
        torn = path.read_bytes()[end:]
        if not lines and not start.startswith(torn):
            raise ValueError(f"{path} is not a journal, it begins with {torn[:40]!r}")
        if lines:
            _same(lines[0], first, path)
        os.truncate(path, end)
        if not lines:
            store.append_line(path, first)
            store.sync(path.parent)
        yield lines[1:], lambda line: store.append_line(path, line)


def _same(found: Line, wanted: Line, path: pathlib.Path) -> None:
    if found.get("journal") != VERSION:
        raise ValueError(
            f"{path} is of version {found.get('journal')}, expected {VERSION}"
        )
    if found.get("sha256") == wanted["sha256"]:
        return
    before, now = found.get("settings"), wanted["settings"]
    differ = store.differences(before if isinstance(before, dict) else {}, now)
    raise ValueError(
        f"{path} is of another search: {differ}; delete it to search anew, or name "
        "another file"
    )
