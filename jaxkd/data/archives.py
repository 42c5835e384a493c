"""Finds the official archives, packed or unpacked, and reads them once they verify."""

import gzip
import hashlib
import io
import pathlib
import pickle
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jaxkd.data.specs import SOURCES, Archive, ArchiveFile, DatasetSpec, Edition

# What a truncated or altered file makes the unpackers raise.
DAMAGE = (OSError, EOFError, zlib.error, tarfile.TarError, KeyError)

# Bytes that one archive may unpack to: more than the largest official one (CIFAR's 184
# million), so that a file which is not one of them cannot fill the memory.
LARGEST = 1 << 28

SplitArrays = dict[str, tuple[np.ndarray, np.ndarray]]  # name: (images, labels)


class Found(NamedTuple):
    """Where an archive's content lies: the packed file, or each member's own file."""

    archive: Archive
    packed: pathlib.Path | None
    unpacked: tuple[pathlib.Path, ...]


def checksum(algorithm: str, content: bytes) -> str:
    """Return the sum of a content, written as in the specifications."""
    return f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}"


def places(source: DatasetSpec, folder: pathlib.Path) -> list[pathlib.Path]:
    """Return where files are looked for: the data set's own sub-folders first.

    MNIST and Fashion-MNIST call their files alike, so a folder that holds both must
    keep them apart.
    """
    return [*(folder / name for name in source.folders), folder]


def _first(places: Sequence[pathlib.Path], names: Sequence[str]) -> pathlib.Path | None:
    candidates = (place / name for place in places for name in names)
    return next((path for path in candidates if path.is_file()), None)


def _find_archive(archive: Archive, places: Sequence[pathlib.Path]) -> Found | None:
    packed = _first(places, [archive.file])
    if packed:
        return Found(archive, packed, ())
    unpacked = [
        _first(places, [member.path, pathlib.PurePosixPath(member.path).name])
        for member in archive.members
    ]
    present = tuple(path for path in unpacked if path)
    return Found(archive, None, present) if len(present) == len(unpacked) else None


def find(
    source: DatasetSpec, folders: Sequence[pathlib.Path]
) -> tuple[Edition, list[Found]] | None:
    """The first edition that is there completely, and where; None without one."""
    everywhere = [place for folder in folders for place in places(source, folder)]
    for edition in source.editions:
        found = [_find_archive(archive, everywhere) for archive in edition.archives]
        complete = [item for item in found if item]
        if len(complete) == len(found):
            return edition, complete
    return None


def missing(source: DatasetSpec, folders: Sequence[pathlib.Path], advice: str) -> str:
    """Return what to fetch, how to check it and where to put it."""
    everywhere = [place for folder in folders for place in places(source, folder)]
    lines = [f"no complete archives of {source.name} in {[*map(str, folders)]}."]
    for edition in source.editions:
        lines.append(
            "Needed:" if edition is source.editions[0] else "or in their place:"
        )
        for archive in edition.archives:
            state = "there" if _find_archive(archive, everywhere) else "missing"
            sums = archive.checksum
            lines.append(f"  {archive.file} ({state}; {sums}) from {archive.url}")
    return "\n".join([*lines, advice])


def _gunzip(packed: pathlib.Path) -> bytes:
    """Return the unpacked content, not yet verified.

    Raises:
      ValueError: if it is larger than any official archive; the rest is not unpacked.
    """
    with gzip.open(packed) as file:
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise ValueError(
            f"{packed} unpacks to more than {LARGEST:,} bytes, which no official "
            "archive does; remove it"
        )
    return content


def _unpack(found: Found) -> Iterator[tuple[ArchiveFile, pathlib.Path, bytes]]:
    """The members of an archive with the file each comes from, not yet verified."""
    members, packed = found.archive.members, found.packed
    if packed is None:
        for member, path in zip(members, found.unpacked, strict=True):
            yield member, path, path.read_bytes()
    elif ".tar" not in packed.name:
        yield members[0], packed, _gunzip(packed)
    else:
        with tarfile.open(fileobj=io.BytesIO(_gunzip(packed)), mode="r:") as tar:
            inside = {name.removeprefix("./"): name for name in tar.getnames()}
            for member in members:
                file = tar.extractfile(inside[member.path])
                yield member, packed, file.read() if file else b""


def _verify(member: ArchiveFile, path: pathlib.Path, content: bytes) -> None:
    got = checksum(member.checksum.split(":")[0], content)
    if got == member.checksum:
        return
    owners = [
        other.name
        for other in SOURCES.values()
        for edition in other.editions
        for archive in edition.archives
        if any(got == theirs.checksum for theirs in archive.members)
    ]
    reason = f"these are the bytes of {owners[0]}" if owners else "it is damaged"
    raise ValueError(
        f"{path}: the content of {member.path} has {got}, expected {member.checksum}; "
        f"{reason}. Put the official file there, or remove this one"
    )


def contents(found: Found) -> dict[ArchiveFile, bytes]:
    """Return the verified contents of an archive.

    Raises:
      ValueError: naming the file, if it cannot be unpacked, a sum differs, or it
        unpacks to more than `LARGEST` bytes.
    """
    verified = {}
    try:
        for member, path, content in _unpack(found):
            _verify(member, path, content)
            verified[member] = content
    except DAMAGE as error:
        raise ValueError(
            f"{found.packed} is damaged ({error}); expected {found.archive.checksum} "
            f"from {found.archive.url}"
        ) from error
    return verified


def read(source: DatasetSpec, edition: Edition, found: Sequence[Found]) -> SplitArrays:
    """Images and labels of both official splits, verified, in the files' order.

    Raises:
      ValueError: naming the file, if one is damaged or not what it should be.
    """
    verified: dict[ArchiveFile, bytes] = {}
    for item in found:
        verified |= contents(item)
    splits = {}
    for split, count in source.counts.items():
        parts = [
            content for member, content in verified.items() if member.split == split
        ]
        try:
            images, labels = edition.read(parts)
        except (ValueError, KeyError, pickle.UnpicklingError) as error:
            raise ValueError(f"{source.name}/{split}: unreadable, {error}") from error
        if images.shape != (count, *source.shape) or labels.shape != (count,):
            got = f"{images.shape} and {labels.shape}"
            raise ValueError(
                f"{source.name}/{split} must have {count} images of {source.shape} "
                f"and as many labels, got {got}"
            )
        splits[split] = (images, labels)
    return splits
