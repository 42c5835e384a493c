"""Encoded images of unequal size: decoded on all cores, kept, or read in a stream."""

import contextlib
import hashlib
import json
import os
import pathlib
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, NamedTuple

import numpy as np

from jaxkd import store
from jaxkd.data import cache, decode as decoding, preprocessing
from jaxkd.data.dataset import Dataset
from jaxkd.data.decode import Decode
from jaxkd.data.splits import SPLITS, Splits, require
from jaxkd.data.stream import HostBatch, Source

VERSION = 1  # of what decoding gives; images decoded by another are decoded again
CHUNK = 16  # images a task
LISTED = 20  # unreadable files in a message
SHARE = 0.5  # of the machine's memory that decoded images may take
SAMPLE = 2048  # images of a stream by which mean and deviation are measured
SCAN = "scan.json"

Problems = dict[str, str]  # name of an example: why it cannot be read


class Example(NamedTuple):
    """An encoded image.

    Attributes:
      name: for messages, and unique.
      label: its class.
      split: "train", "validation" or "test".
      content: a path, or the bytes themselves.
    """

    name: str
    label: int
    split: str
    content: pathlib.Path | bytes

    def read(self) -> bytes:
        """Return the encoded image."""
        if isinstance(self.content, bytes):
            return self.content
        return self.content.read_bytes()

    def version(self) -> tuple[Any, ...]:
        """Return what changes when the image does."""
        if isinstance(self.content, bytes):
            return (hashlib.sha256(self.content).hexdigest(),)
        facts = self.content.stat()
        return facts.st_size, facts.st_mtime_ns


def splits(
    name: str,
    examples: Sequence[Example],
    classes: tuple[str, ...],
    *,
    place: str,
    size: int | tuple[int, int],
    resize: str,
    channels: int,
    mean: preprocessing.Numbers,
    deviation: preprocessing.Numbers,
    shares: tuple[float, float],
    skip_unreadable: bool,
    data_dir: str | os.PathLike[str] | None,
) -> Splits:
    """The splits of encoded images, in memory or as sources; see `folders.folder`.

    Args:
      name: of the data set.
      examples: all of them, in a fixed order.
      classes: their names by label.
      place: where the images are from, by which decoded ones are found again.
      size: a side, or (height, width).
      resize: as for `decode.fit`.
      channels: 1 or 3.
      mean: as for `preprocessing.normalisation`.
      deviation: likewise.
      shares: of test and validation images.
      skip_unreadable: whether damaged images are left out.
      data_dir: where decoded images are kept.
    """
    for split in SPLITS:
        require(split, sum(e.split == split for e in examples), len(examples))
    _check_train(examples, classes)
    found = load(
        name,
        examples,
        classes,
        place=place,
        size=size,
        resize=resize,
        channels=channels,
        skip_unreadable=skip_unreadable,
        data_dir=data_dir,
    )
    sample = found["train"]
    if isinstance(sample, Source):
        positions = np.linspace(0, sample.examples - 1, SAMPLE).astype(int)
        batch = sample.read(np.unique(positions), np.zeros(SAMPLE, np.uint64))
        sample = Dataset(name, "train", batch, classes)
    made = preprocessing.of(
        sample,
        resize=resize,
        mean=mean,
        deviation=deviation,
        test=shares[0],
        validation=shares[1],
    )
    return Splits(found["train"], found["validation"], found["test"], made)


def _check_train(examples: Sequence[Example], classes: Sequence[str]) -> None:
    trained = {e.label for e in examples if e.split == "train"}
    for label, name in enumerate(classes):
        if label not in trained:
            raise ValueError(
                f"path: class {name!r} has no training image left beside those of "
                "validation and test: add images, or make test and validation smaller"
            )


def load(
    name: str,
    examples: Sequence[Example],
    classes: tuple[str, ...],
    *,
    place: str,
    size: int | tuple[int, int],
    resize: str,
    channels: int,
    skip_unreadable: bool = False,
    data_dir: str | os.PathLike[str] | None = None,
) -> dict[str, Dataset | Source]:
    """The decoded splits that the examples have, from the cache if nothing changed.

    Raises:
      ValueError: listing all images that cannot be read.
    """
    height, width = (size, size) if isinstance(size, int) else size
    decode = decoding.fit((height, width), resize=resize, channels=channels)
    root = pathlib.Path(data_dir or cache.default_data_dir()).expanduser()
    options = [VERSION, place, height, width, resize, channels, sorted(set(classes))]
    where = root / "decoded" / f"{name}-{_digest(options)[:16]}"
    every = [[*e[:3], *e.version()] for e in examples]
    facts = {"key": _digest([options, list(classes), every])}
    names = list(dict.fromkeys(e.split for e in examples))
    if len(examples) * height * width * channels > SHARE * memory():
        scanned = _scan(where / SCAN)
        if scanned.get("key") != facts["key"]:
            _, problems = decode_all(examples, decode, None, name)
            scanned = {**facts, "unreadable": problems}
            where.mkdir(parents=True, exist_ok=True)
            store.write_json(where / SCAN, scanned)
        good = _readable(examples, scanned["unreadable"], skip_unreadable)
        return {s: _source(f"{name}/{s}", good, s, classes, decode) for s in names}
    known = [cache.facts(where / split) for split in names]
    if all(f.get("key") == facts["key"] for f in known):
        _readable(examples, known[0]["unreadable"], skip_unreadable)
        kept = {split: cache.read(where / split) for split in names}
        whole = {s: d for s, d in kept.items() if d is not None}
        if len(whole) == len(names):
            return dict(whole)
    pixels = np.empty((len(examples), height, width, channels), np.uint8)
    _, problems = decode_all(examples, decode, pixels, name)
    good = _readable(examples, problems, skip_unreadable)
    made: dict[str, Dataset | Source] = {}
    for split in names:
        positions = [i for i, e in enumerate(examples) if e.split == split]
        positions = [i for i in positions if examples[i].name not in problems]
        require(split, len(positions), len(good))
        labels = np.array([examples[i].label for i in positions], np.int32)
        index = np.array(positions, np.int32)
        part = Dataset.of_images(name, split, pixels[positions], labels, index, classes)
        told = {**facts, "unreadable": problems}
        cache.write(where / split, part, official_splits=names, facts=told)
        made[split] = cache.read(where / split) or part
    return made


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _scan(path: pathlib.Path) -> Mapping[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        return store.read_json(path, "it is written again")
    return {}


def decode_all(
    examples: Sequence[Example],
    decode: Decode,
    pixels: np.ndarray | None,
    title: str,
) -> tuple[int, Problems]:
    """Decode all images on all cores, into an array if there is one.

    Pillow decodes and resizes without holding Python's lock, so threads do.

    Args:
      examples: the images.
      decode: of one.
      pixels: uint8 `[n, height, width, channels]` to fill, or None to check only.
      title: of the progress bar on the terminal.

    Returns:
      How many were decoded, and why the others were not.
    """
    problems: Problems = {}

    def work(start: int) -> int:
        chunk = range(start, min(start + CHUNK, len(examples)))
        for i in chunk:
            try:
                image = decode(examples[i].read(), 0)
            except Exception as error:  # pillow has many, SyntaxError among them
                problems[examples[i].name] = preprocessing.reason(error)
                continue
            if pixels is not None:
                pixels[i] = image
        return len(chunk)

    pool = ThreadPoolExecutor(cores())
    try:
        with _progress(title, len(examples)) as advance:
            tasks = [pool.submit(work, s) for s in range(0, len(examples), CHUNK)]
            for task in as_completed(tasks):
                advance(task.result())
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C waits for a few images only
    return len(examples) - len(problems), problems


def cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory() -> float:
    """Bytes of this machine's memory, or what a container has of it."""
    try:
        found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not on Windows
        return float("inf")
    with contextlib.suppress(OSError, ValueError):  # there is none, or it is "max"
        limit = pathlib.Path("/sys/fs/cgroup/memory.max").read_text()
        return min(found, int(limit))
    return found


@contextlib.contextmanager
def _progress(title: str, total: int) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    console = Console(file=sys.stderr)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    remaining = TimeRemainingColumn()
    hidden = not console.is_terminal
    with Progress(*columns, remaining, console=console, disable=hidden) as bar:
        task = bar.add_task(f"decode {title}", total=total)
        yield lambda n: bar.advance(task, n)


def _readable(
    examples: Sequence[Example], problems: Problems, skip: bool
) -> list[Example]:
    """Return the examples without those that cannot be read.

    Raises:
      ValueError: listing these, unless they are to be skipped.

    Warns:
      UserWarning: listing these, if they are.
    """
    if not problems:
        return list(examples)
    names = sorted(problems)
    lines = [f"  {name}: {problems[name]}" for name in names[:LISTED]]
    lines += [f"  and {len(names) - LISTED} more"] * (len(names) > LISTED)
    head = f"{len(names)} of {len(examples)} images cannot be read"
    listed = "\n".join(lines)
    if not skip:
        raise ValueError(
            f"path: {head}:\n{listed}\nrepair or remove them, or set "
            "skip_unreadable = true"
        )
    warnings.warn(f"{head} and are left out:\n{listed}", stacklevel=2)
    return [e for e in examples if e.name not in problems]


def _source(
    name: str,
    examples: Sequence[Example],
    split: str,
    classes: tuple[str, ...],
    decode: Decode,
) -> Source:
    """Return the images of a split, each decoded when it is read."""
    own = [(i, e) for i, e in enumerate(examples) if e.split == split]

    def read(positions: np.ndarray, draws: np.ndarray) -> HostBatch:
        chosen = [own[p] for p in positions.tolist()]
        return {
            "image": np.stack([decode(e.read(), 0) for _, e in chosen]),
            "label": np.array([e.label for _, e in chosen], np.int32),
            "index": np.array([i for i, _ in chosen], np.int32),
        }

    return Source(name, len(own), classes, read, lambda p: own[p][1].name)
