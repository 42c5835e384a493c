"""Fetches the official archives, whole and verified or not at all."""

import pathlib
import shutil
import sys
import urllib.error
import urllib.request

from jaxkd import store
from jaxkd.data import archives
from jaxkd.data.specs import Archive, DatasetSpec

TIMEOUT = 20.0  # seconds without a byte


def fetch(
    source: DatasetSpec, folder: pathlib.Path, *, timeout: float = TIMEOUT
) -> None:
    """Download a data set's archives into `folder`, those that are not there yet.

    A file appears under its name only when it is complete and its content verified, so
    that an interrupted download leaves nothing that looks like an archive. What
    processes that were killed have left under temporary names is removed.

    Args:
      source: what to fetch, in its first edition.
      folder: where to put it.
      timeout: seconds to wait for a connection or the next bytes.

    Raises:
      ConnectionError: if an address does not answer; says how to do it by hand.
      ValueError: if what comes is not the archive.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for archive in source.editions[0].archives:
        if not (folder / archive.file).exists():
            _fetch(archive, folder, timeout)


def _fetch(archive: Archive, folder: pathlib.Path, timeout: float) -> None:
    target = folder / archive.file
    print(f"jaxkd: downloading {archive.url} to {target}", file=sys.stderr)
    with store.workspace(folder / archive.file) as work:
        arriving = work / archive.file
        try:
            _transfer(archive.url, arriving, timeout)
        except (urllib.error.URLError, OSError) as error:
            raise ConnectionError(
                f"cannot download {archive.url} ({error}). Fetch {archive.file} "
                f"({archive.checksum}) on a machine with a network and put it in "
                f"{folder}, or name its folder with archives= or JAXKD_ARCHIVES"
            ) from error
        try:
            archives.contents(archives.Found(archive, arriving, ()))
        except ValueError as error:
            raise ValueError(
                f"what came from {archive.url} is not {archive.file} "
                f"({archive.checksum}): {error}"
            ) from error
        store.rename(arriving, target)


def _transfer(url: str, target: pathlib.Path, timeout: float) -> None:
    with (
        urllib.request.urlopen(url, timeout=timeout) as answer,
        target.open("wb") as file,
    ):
        shutil.copyfileobj(answer, file, 1 << 20)
        length = answer.headers.get("Content-Length")
        if length and file.tell() != int(length):
            raise OSError(f"it broke off after {file.tell()} of {length} bytes")
