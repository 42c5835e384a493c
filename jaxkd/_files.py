"""Files that survive what may happen to a process: whole, on the disk, one writer."""

import os
import pathlib
import tempfile
from typing import IO

try:
    import fcntl
except ImportError:  # not on Windows: there, nobody keeps two processes apart
    fcntl = None  # type: ignore[assignment]


def write(path: str | os.PathLike, content: bytes) -> None:
    """Writes a file, whole or not at all; what was there stays until it is whole."""
    path = pathlib.Path(path).absolute()
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(name, 0o666 & ~mask)  # a temporary file is its owner's alone
        os.replace(name, path)
    except BaseException:
        pathlib.Path(name).unlink(missing_ok=True)
        raise


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
