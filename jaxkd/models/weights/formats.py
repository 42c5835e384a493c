"""Arrays by their names, from and to files of every format that weights come in."""

import io
import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any

import flax.serialization
import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from jaxkd import _tree, checkpoint, store
from jaxkd.models.weights import torch_file

Arrays = dict[str, np.ndarray]

# Where training programs put the state dict, the first that is there.
WRAPPERS = ("state_dict", "model", "net", "model_state_dict", "network", "params")
# What wrappers of modules put before every name.
PREFIXES = ("module.", "_orig_mod.")
# A folder from `save_pretrained`: whole, or an index of several files.
IN_FOLDER = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)
SAFETENSORS = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
WRITTEN = (".safetensors", ".npz", ".msgpack")


def read(path: pathlib.Path) -> Arrays:
    """Read all arrays of a file or folder.

    Args:
      path: `.safetensors`, `.npz`, `.msgpack`; `.pth`, `.pt`, `.bin`, `.tar` and
        others as torch's; an `.index.json` of several files; a folder of orbax, of
        its CheckpointManager (the newest step), of `checkpoint.save`, of a run's
        `models/`, or with one of `IN_FOLDER`.

    Returns:
      The arrays by their names; keys of nested dicts are joined by "/".

    Raises:
      FileNotFoundError: if there is nothing at `path`.
      ValueError: if the file is damaged or no such file, naming it.
    """
    if not path.exists():
        raise FileNotFoundError(f"no weights at {path}")
    if path.is_dir():
        return _read_folder(path)
    if path.name.endswith(".index.json"):
        return _read_sharded(path)
    readers = {
        ".safetensors": _read_safetensors,
        ".npz": _read_npz,
        ".msgpack": _read_msgpack,
    }
    return readers.get(path.suffix, _read_torch)(path)


def write(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays by their names, whole or not at all.

    Args:
      path: `.safetensors`, `.npz` or `.msgpack` (nested dicts, cut at "/").
      arrays: what to write.

    Raises:
      ValueError: if the suffix is another.
      OSError: if it cannot be written; what was there before stays.
    """
    arrays = {name: np.asarray(a, order="C") for name, a in arrays.items()}
    if path.suffix == ".safetensors":
        store.write_file(path, safetensors.numpy.save(arrays))
    elif path.suffix == ".npz":
        store.write_file(
            path, lambda file: np.savez(file, allow_pickle=False, **arrays)
        )
    elif path.suffix == ".msgpack":
        nested = checkpoint.as_dicts(_nested(arrays))
        store.write_file(path, flax.serialization.msgpack_serialize(nested))
    else:
        raise ValueError(f"path must end in {', '.join(WRITTEN)}, got {path}")


def _nested(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for path, array in arrays.items():
        *above, name = path.split("/")
        inside = nested
        for key in above:
            inside = inside.setdefault(key, {})
        inside[name] = array
    return nested


def _read_safetensors(path: pathlib.Path) -> Arrays:
    try:
        entries = safetensors.deserialize(path.read_bytes())
        return {
            name: np.frombuffer(entry["data"], SAFETENSORS[entry["dtype"]]).reshape(
                entry["shape"]
            )
            for name, entry in entries
        }
    except (safetensors.SafetensorError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    except KeyError as error:
        raise ValueError(
            f"{path} has numbers of type {error}, known are {', '.join(SAFETENSORS)}"
        ) from error


def _read_npz(path: pathlib.Path) -> Arrays:
    found: Arrays = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                name = info.filename.removesuffix(".npy")
                found[name] = _npy(name, archive.read(info))
    except (zipfile.BadZipFile, ValueError, EOFError, SyntaxError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    return found


def _npy(name: str, content: bytes) -> np.ndarray:
    """One array; numpy itself would make room for any shape before it reads."""
    file = io.BytesIO(content)
    version = np.lib.format.read_magic(file)
    header = np.lib.format.read_array_header_1_0
    if version > (1, 0):
        header = np.lib.format.read_array_header_2_0
    shape, column_major, dtype = header(file)
    if dtype.hasobject:
        raise ValueError(f"{name} holds Python objects, which are not read")
    size = dtype.itemsize
    for length in shape:
        size *= length
    if size != len(content) - file.tell():
        raise ValueError(f"{name} of shape {shape} has other than {size} bytes")
    flat = np.frombuffer(content, dtype, offset=file.tell())
    return flat.reshape(shape, order="F" if column_major else "C")


def _read_msgpack(path: pathlib.Path) -> Arrays:
    try:
        tree = flax.serialization.msgpack_restore(path.read_bytes())
    except Exception as error:  # msgpack's own have no common class
        raise ValueError(
            f"{path} is damaged: {type(error).__name__} {error}"
        ) from error
    return _arrays(tree, path)


def _read_torch(path: pathlib.Path) -> Arrays:
    return _unwrapped(torch_file.load(path), path)


def _unwrapped(tree: Any, path: pathlib.Path) -> Arrays:
    """Return the state dict in what was saved, without the names of wrappers."""
    while isinstance(tree, Mapping):
        found = {k: v for k, v in tree.items() if isinstance(v, np.ndarray)}
        inner = [k for k in WRAPPERS if isinstance(tree.get(k), Mapping)]
        if inner:
            tree = tree[inner[0]]
        elif found:
            return _without_prefixes({str(k): v for k, v in found.items()})
        else:
            break
    keys = list(tree)[:8] if isinstance(tree, Mapping) else type(tree).__name__
    raise ValueError(
        f"{path} holds no state dict: it has {keys}; a dict of tensors is expected, "
        f"or one under {', '.join(WRAPPERS)}"
    )


def _without_prefixes(arrays: Arrays) -> Arrays:
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in arrays):
            short = {name.removeprefix(prefix): a for name, a in arrays.items()}
            return _without_prefixes(short)
    return arrays


def _read_sharded(path: pathlib.Path) -> Arrays:
    """Return the files that an index names, all of them beside it."""
    places = store.read_json(path, "it must map names to files").get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ValueError(f"{path} has no weight_map from names to files")
    found: Arrays = {}
    for name in sorted({str(place) for place in places.values()}):
        if pathlib.PurePath(name).name != name:
            raise ValueError(f"{path} names {name!r}: files must lie beside it")
        found |= read(path.parent / name)
    if missing := sorted({*places} - {*found}):
        raise ValueError(f"{path} names {missing[:8]}, which its files do not hold")
    return found


def _read_folder(path: pathlib.Path) -> Arrays:
    for name in IN_FOLDER:
        if (path / name).is_file():
            return read(path / name)
    if store.is_ours(path):
        noted = checkpoint.has_notes(path)
        tree = checkpoint.read(path).tree if noted else checkpoint.load(path)
        return _arrays(tree, path)
    return _arrays(checkpoint.load(_orbax_folder(path)), path)


def _orbax_folder(path: pathlib.Path) -> pathlib.Path:
    """Where the arrays of a CheckpointManager lie: NEWEST STEP/default or like that."""
    if steps := [p for p in path.iterdir() if p.is_dir() and p.name.isdigit()]:
        path = max(steps, key=lambda step: int(step.name))
    items = [p for p in sorted(path.iterdir()) if (p / "_METADATA").is_file()]
    if (path / "_METADATA").is_file() or not items:
        return path
    return next(
        (p for p in items if p.name in ("default", "params", "state")), items[0]
    )


def _arrays(tree: Any, path: pathlib.Path) -> Arrays:
    """Return the arrays of nested dicts, by their keys joined with "/"."""
    leaves = _tree.flatten(tree)
    found = {name: a for name, a in leaves.items() if hasattr(a, "dtype")}
    if not found:
        raise ValueError(f"{path} holds no arrays")
    return {name: np.asarray(a) for name, a in found.items()}
