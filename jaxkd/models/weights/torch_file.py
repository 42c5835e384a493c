"""Read the files of `torch.save`, zip or older, without torch and without running code.

A pickle is a program. Before it runs, every instruction and every global that it names
is compared with the few that a state dict needs (`INSTRUCTIONS`, `GLOBALS`); anything
else is refused by name. Tensors come out of it as `TensorView`s, and become arrays only
after their shapes were compared with the bytes that the file really has.
"""

import io
import pathlib
import pickle
import pickletools
import sys
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import IO, Any, NamedTuple

import ml_dtypes
import numpy as np

DTYPES: dict[str, np.dtype] = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}
MAGIC = 0x1950A86A20F9469CFC6C  # the first number of a file that is not a zip
PROTOCOL = 1001  # the second one
# Every instruction that torch's pickles of tensors, containers, numbers and text use.
INSTRUCTIONS = frozenset(
    [
        "PROTO",
        "STOP",
        "MARK",
        "POP",
        "POP_MARK",
        "NONE",
        "NEWTRUE",
        "NEWFALSE",
        "INT",
        "BININT",
        "BININT1",
        "BININT2",
        "LONG",
        "LONG1",
        "LONG4",
        "FLOAT",
        "BINFLOAT",
        "UNICODE",
        "BINUNICODE",
        "SHORT_BINSTRING",
        "BINSTRING",
        "EMPTY_DICT",
        "EMPTY_LIST",
        "EMPTY_TUPLE",
        "DICT",
        "LIST",
        "TUPLE",
        "TUPLE1",
        "TUPLE2",
        "TUPLE3",
        "APPEND",
        "APPENDS",
        "SETITEM",
        "SETITEMS",
        "PUT",
        "BINPUT",
        "LONG_BINPUT",
        "GET",
        "BINGET",
        "LONG_BINGET",
        "GLOBAL",
        "REDUCE",
        "BUILD",
        "BINPERSID",
    ]
)


class Storage(NamedTuple):
    """The numbers behind tensors: their key in the file, their type, how many."""

    key: str
    dtype: np.dtype
    size: int


class TensorView(NamedTuple):
    """A tensor before its numbers are read: where they lie in a storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _view(storage, offset, shape, strides, *_) -> TensorView:
    """Return what `torch._utils._rebuild_tensor_v2` is called with."""
    whole = all(isinstance(n, int) and n >= 0 for n in (offset, *shape, *strides))
    if not isinstance(storage, Storage) or len(shape) != len(strides) or not whole:
        raise ValueError(
            f"a tensor has shape {shape} and strides {strides}: the file is damaged"
        )
    return TensorView(storage, offset, tuple(shape), tuple(strides))


def _ordered(*pairs) -> OrderedDict:
    return OrderedDict(*pairs)


GLOBALS: dict[str, Any] = {
    "collections.OrderedDict": _ordered,
    "torch._utils._rebuild_tensor_v2": _view,
    "torch._utils._rebuild_parameter": lambda view, *_: view,
    **{f"torch.{name}": dtype for name, dtype in DTYPES.items()},
}


class _Unpickler(pickle.Unpickler):
    """Knows the globals above and storages, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        return GLOBALS[f"{module}.{name}"]

    def persistent_load(self, pid: Any) -> Storage:
        kind, dtype, key, _, count, *view = pid
        if kind != "storage" or not isinstance(dtype, np.dtype) or any(view):
            raise ValueError(f"a storage is described by {pid!r}, which is not known")
        return Storage(str(key), dtype, int(count))


def load(path: pathlib.Path) -> Any:
    """Read what `torch.save` wrote, with numpy arrays in the place of tensors.

    Args:
      path: of a file in torch's zip format, or the one before torch 1.6.

    Raises:
      ValueError: if the file is damaged, or asks for anything but tensors, dicts,
        lists, numbers and text; it names what it asks for.
    """
    content = io.BytesIO(path.read_bytes())  # reads of it end where the file does
    try:
        if zipfile.is_zipfile(content):
            with zipfile.ZipFile(content) as archive:
                return _from_zip(archive)
        content.seek(0)
        if content.read(2) == b"PK":
            raise ValueError("a zip file whose end is missing")
        content.seek(0)
        return _from_legacy(content)
    except _Refused as error:
        raise ValueError(f"{path} {error}") from error
    except (
        ValueError, LookupError, TypeError, AttributeError, EOFError, OverflowError,
        RuntimeError, OSError, pickle.UnpicklingError, zipfile.BadZipFile, zlib.error,
    ) as error:  # fmt: skip
        raise ValueError(
            f"{path} is damaged, or was not written by torch.save: "
            f"{type(error).__name__}: {error}"
        ) from error


class _Refused(Exception):
    """The file may be whole, and is not run."""


def _from_zip(archive: zipfile.ZipFile) -> Any:
    members = {info.filename: info for info in archive.infolist()}
    pickles = [name for name in members if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise ValueError("a zip without one data.pkl")
    above = pickles[0].removesuffix("data.pkl")
    order = "little"
    if f"{above}byteorder" in members:
        order = archive.read(f"{above}byteorder").decode().strip()
    tree = _unpickle(io.BytesIO(archive.read(pickles[0])))

    def numbers(storage: Storage) -> np.ndarray:
        info = members[f"{above}data/{storage.key}"]
        if info.file_size != storage.size * storage.dtype.itemsize:
            raise ValueError(
                f"storage {storage.key} has {info.file_size} bytes for {storage.size} "
                f"numbers of {storage.dtype}"
            )
        return _numbers(archive.read(info), storage, order)

    return _filled(tree, numbers)


def _from_legacy(file: IO[bytes]) -> Any:
    """Magic, protocol, system, tree, keys of storages, then each one's numbers."""
    if _unpickle(file) != MAGIC or _unpickle(file) != PROTOCOL:
        raise ValueError("no magic number of torch")
    order = "little" if _unpickle(file)["little_endian"] else "big"
    tree = _unpickle(file)
    wanted = {view.storage.key: view.storage for view in _views(tree)}
    found = {}
    for key in _unpickle(file):
        storage = wanted.get(str(key))
        count = int.from_bytes(file.read(8), order)  # type: ignore[arg-type]
        if storage is None or storage.size != count:
            raise ValueError(f"storage {key} holds {count} numbers")
        size = count * storage.dtype.itemsize
        here = file.tell()
        if file.seek(0, io.SEEK_END) < here + size:
            raise ValueError(f"storage {key} of {size} bytes is cut off")
        file.seek(here)
        found[storage.key] = _numbers(file.read(size), storage, order)
    return _filled(tree, lambda storage: found[storage.key])


def _unpickle(file: IO[bytes]) -> Any:
    """Run one pickle, after all of its instructions were looked at."""
    start = file.tell()
    size = file.seek(0, io.SEEK_END) - start
    file.seek(start)
    codes, names, texts = set(), set(), [""]
    for code, argument, _ in pickletools.genops(file):
        codes.add(code.name)
        if code.name == "GLOBAL":
            names.add(str(argument).replace(" ", "."))
        elif code.name == "STACK_GLOBAL":
            names.add(".".join(texts[-2:]))
        elif isinstance(argument, str):
            texts.append(argument)
        if code.name in ("PUT", "LONG_BINPUT") and int(str(argument)) > size:
            raise ValueError("a pickle numbers more things than it holds")
    if unknown := sorted(names - {*GLOBALS}) or sorted(codes - INSTRUCTIONS):
        raise _Refused(
            f"asks for {', '.join(unknown)}: only tensors, dicts, lists, numbers and "
            "text are read, and no code is run; in PyTorch, save model.state_dict() "
            "alone"
        )
    end = file.tell()
    file.seek(start)
    return _Unpickler(io.BytesIO(file.read(end - start))).load()


def _numbers(content: bytes, storage: Storage, order: str) -> np.ndarray:
    dtype = storage.dtype
    if order != sys.byteorder and dtype.itemsize > 1:
        words = np.frombuffer(content, f"u{dtype.itemsize}").byteswap()
        return words.view(dtype)
    return np.frombuffer(content, dtype)


def _views(tree: Any) -> list[TensorView]:
    found: list[TensorView] = []
    _walk(tree, found.append)
    return found


def _filled(tree: Any, numbers: Callable[[Storage], np.ndarray]) -> Any:
    """Return the tree with arrays for views; each storage is read once."""
    cache: dict[str, np.ndarray] = {}

    def array(view: TensorView) -> np.ndarray:
        storage = view.storage
        size = 1
        for length in view.shape:
            size *= length
        last = sum((n - 1) * s for n, s in zip(view.shape, view.strides, strict=True))
        beyond = size and view.offset + last >= storage.size
        if beyond or size > storage.size:
            raise ValueError(
                f"a tensor of shape {view.shape} does not lie in its storage of "
                f"{storage.size} numbers"
            )
        if storage.key not in cache:
            cache[storage.key] = numbers(storage)
        if not size:
            return np.zeros(view.shape, storage.dtype)
        width = storage.dtype.itemsize
        return np.lib.stride_tricks.as_strided(
            cache[storage.key][view.offset :],
            view.shape,
            [stride * width for stride in view.strides],
            writeable=False,
        ).copy()

    return _walk(tree, array)


def _walk(tree: Any, change: Callable[[TensorView], Any]) -> Any:
    """Return the containers of a tree anew, with `change` of its views."""
    if isinstance(tree, TensorView):
        return change(tree)
    if isinstance(tree, Mapping):
        return {key: _walk(value, change) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(_walk(value, change) for value in tree)
    return tree
