"""What the library keeps on disk, so that it survives whatever ends a process.

Three rules, which hold for every file and directory written through this module:

* A name is given to what is whole and flushed to the disk, and to nothing else. What
  had the name before stays until then. A process killed at any moment loses neither.
* A directory is replaced or removed only if it holds `MANIFEST`, which nothing but
  this module writes: the checksums of its files, or the identity of what fills it.
  Other people's directories are refused, and so are ours with files of others, which
  the checksums do not name.
* Work in progress lies in a directory `.jaxkd-new-NAME-XXXXXXXX` beside NAME, locked
  while its process lives. The next writer of NAME, or `clean`, removes what is left of
  killed processes.
"""

import contextlib
import errno
import hashlib
import json
import os
import pathlib
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any

import numpy as np

try:
    import fcntl
except ImportError:  # Windows: no locks, and leftovers are not removed
    fcntl = None  # type: ignore[assignment]

MANIFEST, KEYS = "jaxkd.json", {"sha256", "identity"}
PREFIX, SUFFIX = ".jaxkd-new-", 9  # "-" and eight random digits
LOCK, OLD = ".lock", ".old"  # in a workspace; what is replaced lies in OLD meanwhile
Path = str | os.PathLike


def digest(tree: Any) -> str:
    """Return the SHA-256 of the paths, types, shapes and values of a tree of arrays.

    The same in every process and on every machine. PRNG keys count by their data, None
    and empty containers not at all.

    Example:
      >>> digest(np.zeros(2)) == digest(np.zeros(2)) != digest(np.float32([0, 0]))
      True
    """
    import jax  # takes a second, and most of this module does without

    from jaxkd import _tree

    found = hashlib.sha256()
    leaves = _tree.flatten(tree)
    for path in sorted(leaves):
        leaf = leaves[path]
        if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(
            leaf.dtype, jax.dtypes.prng_key
        ):
            leaf = jax.random.key_data(leaf)
        array = np.asarray(leaf)
        found.update(f"{path} {array.dtype} {array.shape}\0".encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def identity(**facts: Any) -> dict[str, Any]:
    """Return facts as they come back from a JSON file, to be compared with it.

    Args:
      **facts: what a result depends on: JSON values, or arrays, which become their
        `digest`.

    Raises:
      ValueError: if a fact is neither, or a number is not finite.

    Example:
      >>> identity(steps=(1, 2), name="a")
      {'steps': [1, 2], 'name': 'a'}
    """
    try:
        return json.loads(json.dumps(facts, default=_as_fact, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"an identity must be fit for JSON: {error}") from error


def _as_fact(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if hasattr(value, "dtype"):
        return digest(value)
    raise TypeError(f"got {type(value).__name__} {value!r}")


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Return what differs between two identities in words, "" if nothing does.

    Example:
      >>> differences({"seed": 0, "epochs": 3}, {"seed": 1, "epochs": 3})
      'seed was 0, is 1'
    """
    missing = object()
    return "; ".join(
        f"{key} was {_short(found, key)}, is {_short(wanted, key)}"
        for key in dict.fromkeys([*wanted, *found])
        if found.get(key, missing) != wanted.get(key, missing)
    )


def _short(values: Mapping[str, Any], key: str) -> str:
    text = json.dumps(values[key], default=repr) if key in values else "not recorded"
    return text if len(text) <= 80 else f"{text[:77]}..."


def require_same(
    path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]
) -> None:
    """Refuse a file of another run.

    Args:
      path: of the file or directory, for the message.
      found: the identity in it.
      wanted: the identity of this run, from `identity`.

    Raises:
      ValueError: naming the file, what differs, and the remedy.
    """
    if differ := differences(found, wanted):
        raise ValueError(
            f"{path} belongs to another run: {differ}; name another path, or delete it"
        )


def write_file(
    path: Path,
    content: bytes | Callable[[IO[bytes]], Any],
    check: Callable[[pathlib.Path], Any] = lambda new: None,
) -> None:
    """Write a file, whole or not at all.

    Args:
      path: of the file; its directory must exist.
      content: of the file, or a function that writes it into an open file.
      check: called with the path of the new file before it takes its name; if it
        raises, what was there before stays.

    Raises:
      OSError: naming the file; what was there before stays.
    """
    path = pathlib.Path(path).absolute()
    with _named(path), workspace(path) as work:
        new = work / path.name
        with new.open("wb") as file:
            content(file) if callable(content) else file.write(content)
            file.flush()
            os.fsync(file.fileno())
        check(new)
        rename(new, path)


def write_json(path: Path, content: Any) -> None:
    """Write JSON, whole or not at all.

    Raises:
      OSError: naming the file; what was there before stays.
      ValueError: if a number is not finite.
    """
    write_file(path, json.dumps(content, indent=1, allow_nan=False).encode() + b"\n")


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """Read a JSON object.

    Args:
      path: of the file.
      remedy: what to do if it is damaged, for the message.

    Raises:
      FileNotFoundError: if there is no file.
      ValueError: if it does not hold a JSON object, naming the file and the remedy.
    """
    try:
        found = json.loads(pathlib.Path(path).read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}; {remedy}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} is damaged: it holds no JSON object; {remedy}")
    return found


def append_line(path: Path, row: Mapping[str, Any]) -> None:
    """Add a row to a file of JSON lines; it is on the disk on return.

    Raises:
      OSError: naming the file.
    """
    path = pathlib.Path(path)
    with _named(path), path.open("ab") as file:
        file.write(json.dumps(row, default=_plain).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _plain(value: Any) -> Any:
    """Arrays as lists; the rest in words, since a result must not be lost."""
    return value.tolist() if hasattr(value, "tolist") else repr(value)


def read_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Read a file of JSON lines; a last line torn by a kill is left out.

    Returns:
      The rows, and the number of bytes that they take in the file.

    Raises:
      FileNotFoundError: if there is no file.
      ValueError: if a line before the last is damaged, naming file and line.
    """
    content = pathlib.Path(path).read_bytes()
    end = content.rfind(b"\n") + 1
    rows = []
    for number, line in enumerate(content[:end].split(b"\n")[:-1], start=1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {number} is damaged: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number} is damaged: {line[:80]!r}")
        rows.append(row)
    return rows, end


def write_dir(path: Path, fill: Callable[[pathlib.Path], Any]) -> None:
    """Write a directory with the checksums of its files, whole or not at all.

    Args:
      path: of the directory; one that this function wrote, or an empty one, is
        replaced.
      fill: called with an empty directory, in which it writes the files.

    Raises:
      ValueError: if there is something at `path` that this module did not write, or
        a file in it.
      OSError: naming the directory; what was there before stays.
    """
    # What a link points to is replaced, not the link.
    path = pathlib.Path(os.path.realpath(path))
    if path == pathlib.Path.cwd():
        raise ValueError(f"{path} is the working directory: name another")
    recover(path)
    require_ours(path)
    with _named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with workspace(path) as work:
            new = work / "new"
            new.mkdir()
            fill(new)
            sums = {name: sha256(new / name) for name in _files_in(new)}
            (new / MANIFEST).write_text(json.dumps({"sha256": sums}, indent=1) + "\n")
            for folder, _, names in os.walk(new):
                for name in [*names, "."]:
                    sync(os.path.join(folder, name))
            _put(new, path, work / OLD)
            sync(path.parent)


def _put(new: pathlib.Path, path: pathlib.Path, old: pathlib.Path) -> None:
    """Give `new` its name. Between two renames the previous one is `old` only."""
    for _ in range(10):
        if path.exists():
            require_ours(path)
            shutil.rmtree(old, ignore_errors=True)
            os.rename(path, old)
        try:
            os.rename(new, path)
            return
        except OSError as error:  # another process has put its own there meanwhile
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
    raise OSError(errno.EEXIST, "other processes keep writing it", str(path))


def open_dir(path: Path, wanted: Mapping[str, Any]) -> str:
    """Open a directory that is filled bit by bit, by calls of one identity.

    Args:
      path: of the directory; made if need be.
      wanted: the identity, from `identity`.

    Returns:
      "" if the directory is new or has this identity; else what differs, in words, and
      nothing is touched: refuse it, or `remove_dir` and call again.

    Raises:
      ValueError: if there is something at `path` that this module did not write.
    """
    path = pathlib.Path(path)
    require_ours(path)
    path.mkdir(parents=True, exist_ok=True)
    if not is_ours(path):
        write_json(path / MANIFEST, {"identity": wanted})
    try:
        found = read_json(path / MANIFEST, "")["identity"]
        return differences(found, wanted)
    except (ValueError, KeyError, AttributeError, TypeError):
        return f"{MANIFEST} is damaged"


def is_ours(path: Path) -> bool:
    """Return whether this module made a directory, damaged or not."""
    try:
        content = (pathlib.Path(path) / MANIFEST).read_bytes()
    except OSError:
        return False
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return True
    # Somebody's own file may have that name: ours has one of two keys.
    return not found or not isinstance(found, dict) or bool({*found} & KEYS)


def require_ours(path: Path) -> None:
    """Refuse to replace or remove what `write_dir` did not write.

    Raises:
      ValueError: if there is a file, a directory that is neither empty nor ours, or one
        of ours into which others have put files.
    """
    path = pathlib.Path(path)
    empty = path.is_dir() and not any(path.iterdir())
    if os.path.lexists(path) and not (empty or is_ours(path)):
        raise ValueError(
            f"{path} was not written by jaxkd (it has no {MANIFEST}) and is neither "
            "replaced nor removed: move it away, or name another path"
        )
    if found := foreign(path):
        raise ValueError(
            f"{path} holds files that jaxkd did not write ({_listed(found)}) and is "
            "neither replaced nor removed: move them away, or name another path"
        )


def foreign(path: Path) -> list[str]:
    """Return the files in a directory of `write_dir` that its manifest does not name.

    None are known of a directory that `open_dir` made, or whose manifest is damaged.
    """
    path = pathlib.Path(path)
    try:
        sums = json.loads((path / MANIFEST).read_bytes())["sha256"]
        named = {MANIFEST, *sums}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []
    files = (p for p in sorted(path.rglob("*")) if p.is_symlink() or not p.is_dir())
    there = (p.relative_to(path).as_posix() for p in files)
    return [name for name in there if name not in named]


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more}"


def remove_dir(path: Path) -> None:
    """Remove a directory that `write_dir` wrote; it never looks half removed.

    Raises:
      ValueError: if it is not ours, or holds files of others.
    """
    path = pathlib.Path(path).absolute()
    require_ours(path)
    with _named(path), workspace(path) as work:
        os.rename(path, work / "gone")


def set_aside(path: Path) -> pathlib.Path:
    """Rename a file or directory out of the way, to `NAME.aside-1`; return that."""
    path = pathlib.Path(path)
    for number in range(1, 10_000):
        other = path.with_name(f"{path.name}.aside-{number}")
        if not os.path.lexists(other):
            os.rename(path, other)
            return other
    raise OSError(errno.EEXIST, "too many copies were set aside", str(path))


def make_way(path: Path, warn: Callable[[str], None]) -> None:
    """Set aside what `require_ours` refuses, and say so; the rest stays.

    Args:
      path: what will be written.
      warn: told of what was set aside.
    """
    try:
        require_ours(path)
    except ValueError as error:
        warn(f"{error}; it is now {set_aside(path).name}")


def damage(path: Path) -> str | None:
    """Return what is wrong with a directory that `write_dir` wrote, None if nothing."""
    path = pathlib.Path(path)
    recover(path)
    try:
        sums = json.loads((path / MANIFEST).read_bytes())["sha256"]
        for name, expected in sums.items():
            if sha256(path / name) != expected:
                return f"{name} has changed"
    except FileNotFoundError as error:
        return f"{os.path.relpath(error.filename, path)} is missing"
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        return f"{MANIFEST} cannot be read ({error})"
    return None


@contextmanager
def workspace(path: Path) -> Iterator[pathlib.Path]:
    """Make a directory beside `path` for work in progress, and remove it at the end.

    Those that killed processes left for the same path are removed; those of processes
    that live are not.

    Args:
      path: what the work is for; its directory must exist.
    """
    path = pathlib.Path(path).absolute()
    clean(path.parent, path.name)
    handle = -1
    while handle < 0:
        work = path.with_name(f"{PREFIX}{path.name}-{secrets.token_hex(4)}")
        work.mkdir()
        with contextlib.suppress(FileNotFoundError):  # removed by another's `clean`
            handle = os.open(work / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
            if try_lock(handle) is False or not (work / LOCK).exists():
                os.close(handle)
                handle = -1
    try:
        yield work
    finally:
        os.close(handle)
        _settle(work)


def recover(path: Path) -> None:
    """Give a directory its name back if a kill came while it was being replaced."""
    path = pathlib.Path(path)
    if os.path.lexists(path) or not path.parent.is_dir():
        return
    for work in _works(path.parent):
        if _target(work).name == path.name and (work / OLD).is_dir():
            with contextlib.suppress(OSError):  # read-only, or another was quicker
                os.rename(work / OLD, path)


def clean(folder: Path, name: str | None = None) -> None:
    """Remove what killed processes left of unfinished work.

    Args:
      folder: where to look; not below it.
      name: of the file or directory that was being written; None is all.
    """
    for work in _works(pathlib.Path(folder)):
        if name not in (None, _target(work).name):
            continue
        with contextlib.suppress(OSError):
            try:
                handle = os.open(work / LOCK, os.O_RDWR)
            except FileNotFoundError:
                there = {p.name for p in work.iterdir()}
                if not there:  # killed at once; a live one notices, and is made again
                    work.rmdir()
                elif LOCK not in there:  # half removed
                    _settle(work)
                continue
            try:
                if try_lock(handle) is True:
                    _settle(work)
            finally:
                os.close(handle)


@contextmanager
def lock(path: Path, what: Path | None = None) -> Iterator[None]:
    """Keep other processes out; the system takes the lock back when a process dies.

    Where the system has no such locks, nobody is kept out.

    Args:
      path: of an existing directory, or of a file, which is made if need be.
      what: is being worked on, for the message; by default `path`.

    Raises:
      ValueError: if another process has it.
    """
    if fcntl is None:
        yield
        return
    path = pathlib.Path(path)
    mode = os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT
    handle = os.open(path, mode, 0o666)
    try:
        if try_lock(handle) is False:
            raise ValueError(
                f"another process is working in {what or path}; wait for it, or name "
                "another path"
            )
        yield
    finally:
        os.close(handle)


def try_lock(handle: int) -> bool | None:
    """Lock an open file until it is closed or the process dies.

    Returns:
      Whether this process has the lock; None where the system has no such locks.
    """
    if fcntl is None:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without them
        return None
    return True


def sha256(path: Path) -> str:
    """Return the checksum of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Flush a file or directory; a new name is on the disk once its directory is."""
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rename(new: Path, path: Path) -> None:
    """Give a file or directory its name at once, in place of a file of that name.

    Raises:
      OSError: if there is a directory at `path` that is not empty.
    """
    os.replace(new, path)
    sync(pathlib.Path(path).parent)


def _files_in(folder: pathlib.Path) -> list[str]:
    found = (p for p in sorted(folder.rglob("*")) if p.is_file())
    return [p.relative_to(folder).as_posix() for p in found]


@contextmanager
def _named(path: pathlib.Path) -> Iterator[None]:
    """Make an OSError name what was asked for: a full disk names no file."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise OSError(f"{path} could not be written: {error}") from error
        raise OSError(error.errno, error.strerror, str(path)) from error


def _settle(work: pathlib.Path) -> None:
    """End a workspace, after giving its previous directory back if need be."""
    target = _target(work)
    recover(target)
    if target.exists() or not (work / OLD).exists():
        shutil.rmtree(work, ignore_errors=True)


def _works(folder: pathlib.Path) -> list[pathlib.Path]:
    try:
        return [p for p in folder.iterdir() if p.name.startswith(PREFIX)]
    except OSError:
        return []


def _target(work: pathlib.Path) -> pathlib.Path:
    return work.with_name(work.name[len(PREFIX) : -SUFFIX])
