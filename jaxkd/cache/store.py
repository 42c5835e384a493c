"""Named arrays on disk that are there whole or not at all, filled chunk by chunk.

While it is being filled, `path.partial/` holds the plan and a file for each finished
chunk; afterwards `path/` holds `manifest.json` and one `NAME.npy` for each array.

Every file is written whole or not at all (see `jaxkd.store`), and the folder takes its
own name last. A process killed at any moment therefore leaves chunks
to go on from, and nothing at `path`.
"""

import contextlib
import functools
import hashlib
import json
import os
import pathlib
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any

import numpy as np

from jaxkd import store as files

Arrays = dict[str, np.ndarray]
FORMAT = 2
MANIFEST = "manifest.json"
PLAN = "plan.json"

# What reading a truncated or altered file raises.
DAMAGE = (ValueError, KeyError, TypeError, OSError, EOFError, zipfile.BadZipFile)


def partial(path: pathlib.Path) -> pathlib.Path:
    """Return where the arrays of `path` lie until they are whole."""
    return path.with_name(f"{path.name}.partial")


def exists(path: pathlib.Path) -> bool:
    """Return whether whole arrays lie at `path`.

    Raises:
      ValueError: if something else does.
    """
    if (path / MANIFEST).exists():
        return True
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise ValueError(
            f"{path} is there, but is no stored set: it has no {MANIFEST}; delete it "
            "or name another path"
        )
    return False


def fill(
    path: pathlib.Path,
    plan: Mapping[str, Any],
    compute: Callable[[int], Arrays],
    chunks: int,
    *,
    fixed: Arrays,
    agree: Callable[[Arrays], None] = lambda fixed: None,
) -> bool:
    """Compute the chunks that are not there yet, then seal them at `path`.

    Args:
      path: the folder to make.
      plan: what the arrays are, for the manifest; what was begun under another plan is
        refused.
      compute: from a chunk's number to its arrays, which are joined along axis 0.
      chunks: how many.
      fixed: arrays that are known beforehand.
      agree: raises a ValueError if what was begun with these fixed arrays, of the same
        names, is not to be continued.

    Returns:
      Whether all of it was computed in this call.

    Raises:
      ValueError: if the chunks that are there belong to another plan, another process
        is filling them, or something else lies at `partial(path)`.
    """
    work = partial(path)
    _require_ours(work)
    work.mkdir(parents=True, exist_ok=True)
    with files.lock(work):
        if exists(path):  # another process was quicker
            with contextlib.suppress(OSError):
                work.rmdir()
            return False
        begun = [file for file in (MANIFEST, PLAN) if (work / file).exists()]
        if begun:
            found = _read_json(work / begun[0])
            files.require_same(work, {name: found.get(name) for name in plan}, plan)
        else:  # first of all: it says whose the folder is
            files.write_file(work / PLAN, lambda file: file.write(_encode(plan)))
        for name, array in fixed.items():
            if not (work / f"{name}.npy").exists():
                files.write_file(
                    work / f"{name}.npy", functools.partial(np.save, arr=array)
                )
        if begun:
            agree({name: np.load(work / f"{name}.npy") for name in fixed})
        if MANIFEST not in begun:
            for number in range(chunks):
                _chunk(_chunk_file(work, number), compute, number)
            _seal(work, plan, chunks, fixed)
        _publish(work, path)
    return not begun


def _require_ours(work: pathlib.Path) -> None:
    """Refuse a folder in which `fill` did not begin."""
    if not os.path.lexists(work):
        return
    there = [p.name for p in work.iterdir()] if work.is_dir() else [""]
    there = [name for name in there if not name.startswith(files.PREFIX)]
    if there and not {MANIFEST, PLAN} & {*there}:
        raise ValueError(
            f"{work} was not begun by jaxkd (it has no {PLAN}), and what is computed "
            "would lie there: move it away, or name another path"
        )


def open_arrays(path: pathlib.Path) -> tuple[dict[str, Any], Arrays]:
    """Return the manifest at `path` and its arrays, memory-mapped, every byte checked.

    Raises:
      ValueError: if there is none, if its format is unknown, or if anything was
        truncated or changed.
    """
    if not exists(path):
        begun = partial(path).exists()
        hint = f"; {partial(path)} was begun, score again to finish it" if begun else ""
        raise ValueError(f"nothing was stored at {path}{hint}")
    manifest = _manifest(path)
    arrays = {}
    for name, about in manifest["arrays"].items():
        file = path / f"{name}.npy"
        try:
            if files.sha256(file) != about["sha256"]:
                raise ValueError("its checksum differs")
            arrays[name] = np.load(file, mmap_mode="r", allow_pickle=False)
        except DAMAGE as error:
            raise ValueError(
                f"{file} is damaged ({error}); delete {path} to compute it anew"
            ) from error
    return manifest, arrays


def _encode(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values, indent=1, sort_keys=True).encode()


def _read_json(file: pathlib.Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_bytes()))
    except DAMAGE as error:
        raise ValueError(
            f"{file} is damaged ({error}); delete {file.parent}"
        ) from error


def _chunk_file(work: pathlib.Path, number: int) -> pathlib.Path:
    return work / f"chunk-{number:06d}.npz"


def _chunk(file: pathlib.Path, compute: Callable[[int], Arrays], number: int) -> None:
    """Make sure of a chunk; zip's own checksums tell whether one is whole."""
    if file.exists():
        with contextlib.suppress(*DAMAGE), file.open("rb") as f, np.load(f) as arrays:
            for name in arrays.files:
                arrays[name]
            return
    arrays = compute(number)
    # The ignored type: for all mypy knows, an array may be called "allow_pickle".
    files.write_file(file, lambda f: np.savez(f, **arrays))  # type: ignore[arg-type]


def _seal(
    work: pathlib.Path, plan: Mapping[str, Any], chunks: int, fixed: Arrays
) -> None:
    """Join the chunks into one file an array and write the manifest."""
    with np.load(_chunk_file(work, 0)) as first:
        names = first.files
    for name in names:
        _join(work, name, chunks)
    about = {}
    for name in [*names, *fixed]:
        array = np.load(work / f"{name}.npy", mmap_mode="r")
        about[name] = {
            "shape": list(array.shape),
            "dtype": array.dtype.str,
            "sha256": files.sha256(work / f"{name}.npy"),
        }
    manifest = {**plan, "format": FORMAT, "arrays": about}
    manifest["checksum"] = _checksum(manifest)
    files.write_file(work / MANIFEST, lambda file: file.write(_encode(manifest)))


def _join(work: pathlib.Path, name: str, chunks: int) -> None:
    """One .npy of all the chunks, one chunk in memory at a time."""

    def parts() -> Iterator[np.ndarray]:
        for number in range(chunks):
            with np.load(_chunk_file(work, number)) as arrays:
                yield arrays[name]

    looks = [(part.dtype, part.shape) for part in parts()]
    dtype, (_, *rest) = looks[0]
    rows = sum(shape[0] for _, shape in looks)

    def write(file: IO[bytes]) -> None:
        header = {
            "descr": np.lib.format.dtype_to_descr(dtype),
            "fortran_order": False,
            "shape": (rows, *rest),
        }
        np.lib.format.write_array_header_1_0(file, header)
        for part in parts():
            file.write(np.ascontiguousarray(part).data)

    files.write_file(work / f"{name}.npy", write)


def _publish(work: pathlib.Path, path: pathlib.Path) -> None:
    """Clear what only the filling needed, and give the folder its name."""
    files.clean(work)
    for file in [*work.glob("chunk-*.npz"), work / PLAN]:
        file.unlink(missing_ok=True)
    files.rename(work, path)


def _checksum(manifest: Mapping[str, Any]) -> str:
    rest = {name: value for name, value in manifest.items() if name != "checksum"}
    return hashlib.sha256(_encode(rest)).hexdigest()


def _manifest(path: pathlib.Path) -> dict[str, Any]:
    manifest = _read_json(path / MANIFEST)
    version = manifest.get("format")
    if version != FORMAT:
        raise ValueError(
            f"{path} has format {version}, and this version reads {FORMAT}; read it "
            "with the version that wrote it, or store it anew under another path"
        )
    if _checksum(manifest) != manifest.get("checksum"):
        raise ValueError(
            f"{path / MANIFEST} was changed; delete {path} to compute it anew"
        )
    return manifest
