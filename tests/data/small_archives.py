"""Small archives in the official formats, written here byte by byte."""

import gzip
import hashlib
import io
import pathlib
import pickle
import struct
import tarfile
from typing import NamedTuple

import numpy as np

from jaxkd.data import readers, specs

COUNTS = {"train": 40, "test": 20}


class Made(NamedTuple):
    """A specification, the folder with its archives, and what they hold."""

    source: specs.DatasetSpec
    folder: pathlib.Path
    truth: dict[str, tuple[np.ndarray, np.ndarray]]


def sha256(content):
    return "sha256:" + hashlib.sha256(content).hexdigest()


def draw(shape):
    """Random images of every byte value, with labels 0 to 9 in a shuffled order."""
    rng = np.random.default_rng(0)
    return {
        split: (
            rng.integers(0, 256, (n, *shape)).astype(np.uint8),
            rng.permutation(np.arange(n) % 10).astype(np.int32),
        )
        for split, n in COUNTS.items()
    }


def source(shape, *editions):
    return specs.DatasetSpec(
        name="tiny",
        shape=shape,
        counts=COUNTS,
        classes=tuple("abcdefghij"),
        folders=("tiny",),
        editions=editions,
        homepage="http://localhost",
    )


def make_idx(folder, mtime=0):
    """Four gzipped idx files, as MNIST's, of images that are not square."""
    truth, archives = draw((6, 5, 1)), []
    for split, (images, labels) in truth.items():
        for array in (images[..., 0], labels.astype(np.uint8)):
            file = f"{split}-idx{array.ndim}-ubyte"
            header = struct.pack(f">i{array.ndim}i", 0x800 + array.ndim, *array.shape)
            content = header + array.tobytes()
            packed = gzip.compress(content, mtime=mtime)
            (folder / f"{file}.gz").write_bytes(packed)
            member = specs.ArchiveFile(file, split, sha256(content))
            url = f"http://127.0.0.1:9/{file}.gz"
            archive = specs.Archive(f"{file}.gz", url, sha256(packed), (member,))
            archives.append(archive)
    edition = specs.Edition(tuple(archives), readers.idx)
    return Made(source((6, 5, 1), edition), folder, truth)


def tar(path, contents):
    with tarfile.open(path, "w:gz") as file:
        for name, content in contents.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            file.addfile(entry, io.BytesIO(content))


def planes(images):
    """CIFAR's order of the bytes: all red, then all green, then all blue."""
    return images.transpose(0, 3, 1, 2).reshape(len(images), -1)


def make_binary(folder, label_bytes):
    """A tar of CIFAR's binary records, the training set in two files."""
    truth, contents, members = draw((32, 32, 3)), {}, []
    for split, (images, labels) in truth.items():
        names = [f"{split}_{i}.bin" for i in range(2 if split == "train" else 1)]
        head = np.full((len(labels), label_bytes), 7, np.uint8)
        head[:, -1] = labels
        records = np.concatenate([head, planes(images)], 1)
        for name, part in zip(names, np.split(records, len(names)), strict=True):
            contents[f"tiny-bin/{name}"] = part.tobytes()
            member = specs.ArchiveFile(
                f"tiny-bin/{name}", split, sha256(part.tobytes())
            )
            members.append(member)
    tar(folder / "tiny.tar.gz", contents)
    checksum = sha256((folder / "tiny.tar.gz").read_bytes())
    url = "http://127.0.0.1:9/tiny.tar.gz"
    archive = specs.Archive("tiny.tar.gz", url, checksum, tuple(members))
    edition = specs.Edition((archive,), readers.cifar_binary(label_bytes))
    return Made(source((32, 32, 3), edition), folder, truth)


def make_pickled(folder):
    """A tar of pickled dictionaries with bytes for keys, as Python 2 wrote them."""
    truth, contents, members = draw((32, 32, 3)), {}, []
    for split, (images, labels) in truth.items():
        batch = {b"data": planes(images), b"labels": labels.tolist()}
        contents[f"tiny-py/{split}"] = content = pickle.dumps(batch, protocol=2)
        members.append(specs.ArchiveFile(f"tiny-py/{split}", split, sha256(content)))
    tar(folder / "tiny.tar.gz", contents)
    archive = specs.Archive("tiny.tar.gz", "", "", tuple(members))
    edition = specs.Edition((archive,), readers.cifar_pickled(b"labels"))
    return Made(source((32, 32, 3), edition), folder, truth)


MAKERS = {
    "idx": make_idx,
    "binary": lambda folder: make_binary(folder, 1),
    "binary, two labels": lambda folder: make_binary(folder, 2),
    "pickled": make_pickled,
}
