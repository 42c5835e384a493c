"""Temporary directories that the next process removes if theirs was killed."""

import contextlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

from jaxkd import _files


@contextlib.contextmanager
def directory(parent: pathlib.Path, prefix: str) -> Iterator[pathlib.Path]:
    """Make a temporary directory, after removing those that dead processes left.

    Each is locked by the process that made it for as long as it lives, so that what is
    not locked has no owner.

    Args:
      parent: where it is made.
      prefix: of its name, and of the names of those that are removed.
    """
    for left in parent.glob(f"{prefix}*"):
        _remove_unowned(left)
    work, descriptor = _make(parent, prefix)
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)
        if descriptor is not None:
            os.close(descriptor)


def _make(parent: pathlib.Path, prefix: str) -> tuple[pathlib.Path, int | None]:
    """A new directory and the descriptor that holds its lock."""
    while True:
        work = pathlib.Path(tempfile.mkdtemp(dir=parent, prefix=prefix))
        # Until it is locked, another process may take it for a leftover.
        with contextlib.suppress(FileNotFoundError):
            descriptor = _open(work)
            if descriptor is None or (_files.lock(descriptor) and work.exists()):
                return work, descriptor
            os.close(descriptor)


def _open(folder: pathlib.Path) -> int | None:
    """A descriptor of a directory, to lock it by; None on systems without them."""
    return os.open(folder, os.O_RDONLY) if os.name == "posix" else None


def _remove_unowned(folder: pathlib.Path) -> None:
    """Remove a directory unless the process that made it is alive."""
    with contextlib.suppress(OSError):  # another process was quicker
        descriptor = _open(folder)
        if descriptor is None:  # nothing tells the living from the dead here
            return
        try:
            if _files.lock(descriptor):
                shutil.rmtree(folder)
        finally:
            os.close(descriptor)
