"""Files that survive what may happen to a process: whole, on the disk, one writer."""

import os
import pathlib
import tempfile
from collections.abc import Callable
from typing import IO

try:
    import fcntl
except ImportError:  # not on Windows: there, nobody keeps two processes apart
    fcntl = None  # type: ignore[assignment]


# Names of files that are not whole yet: hidden, and no other program's.
PARTIAL = ".jaxkd-partial"


def write(
    path: str | os.PathLike,
    content: bytes,
    check: Callable[[pathlib.Path], None] | None = None,
) -> None:
    """Writes a file, whole or not at all; what was there stays until it is whole.

    It is written beside its place, as `.NAME.RANDOM.jaxkd-partial`, and renamed. Such
    files of processes that were killed are removed from the folder.

    Args:
      path: of the file.
      content: of the file.
      check: called with the path of the file that is written beside; if it raises,
        nothing is left of it.
    """
    path = pathlib.Path(path).absolute()
    remove_partial(path.parent)
    handle, name = _partial(path)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            mask = os.umask(0)
            os.umask(mask)
            os.chmod(name, 0o666 & ~mask)  # a temporary file is its owner's alone
            if fcntl is None:
                file.close()  # Windows renames no open file
            if check is not None:
                check(pathlib.Path(name))
            os.replace(name, path)
    except BaseException:
        pathlib.Path(name).unlink(missing_ok=True)
        raise


def _partial(path: pathlib.Path) -> tuple[int, str]:
    """A new file beside `path`, locked for as long as it is open."""
    while True:
        handle, name = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name}.", suffix=PARTIAL
        )
        # Before it was locked, another process may have taken it for a leftover.
        if lock(handle) and os.path.exists(name):
            return handle, name
        os.close(handle)


def remove_partial(folder: pathlib.Path) -> None:
    """Removes files that processes which are dead had begun to write in a folder."""
    if fcntl is None:  # nothing says who still lives
        return
    for path in folder.glob(f".*{PARTIAL}"):
        try:
            with open(path, "rb") as file:
                if lock(file):  # a living writer holds the lock
                    path.unlink(missing_ok=True)
        except OSError:  # gone meanwhile, or not ours to open
            continue


def sync(path: str | os.PathLike) -> None:
    """Flushes a file or directory; a new name is on the disk once its directory is."""
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock(file: IO | int) -> bool:
    """Locks an open file until it is closed or the process dies; False if another has.

    Where the system has no such locks, nobody is kept out.
    """
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
