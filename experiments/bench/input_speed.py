"""How many images a second the input gives, and how many a training step takes.

    python -m experiments.bench.input_speed
    python -m experiments.bench.input_speed --cases mapped records --workers 8
    python -m experiments.bench.input_speed --step resnet34-resnet18 --step-batch 256

Cases: "mapped" gathers random rows of a memory-mapped uint8 array of CIFAR's shape;
"records" decodes JPEGs of ImageNet's size from array_record files and crops them to 224
by 224; "centre" is the same with the crops of a test; "grain" is "records" read by
grain's DataLoader, where grain is installed. The pictures are made up, 100 kB each, and
lie in the page cache: what is measured is decoding, not the disk. `--step` adds what
the training step of that pair of `experiments.imagenet` consumes on this device.

Prints one JSON line a case. `images_per_cpu_s` is per second of processor time, which a
busy machine changes less (not for grain's worker processes). For "step", `waited` is
the share of the time in which the device had to wait for (fake) images.
"""

import dataclasses
import importlib
import json
import os
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
import tyro

from experiments import imagenet
from experiments.bench import fake_images as fake
from jaxkd import data
from jaxkd.data import decode, stream

Row = dict[str, Any]
KEY = jax.random.key(0)


@dataclasses.dataclass(frozen=True)
class Config:
    """What to measure, and for how long."""

    cases: tuple[str, ...] = ("mapped", "records", "centre", "grain")
    workers: tuple[int, ...] = (1, os.cpu_count() or 1)  # threads, each in turn
    seconds: float = 3.0
    batch_size: int = 64
    images: int = 256  # JPEGs to make
    mapped_images: int = 50_000
    step: imagenet.Pair | None = None  # also the step of this pair
    step_batch: int = 8
    step_size: int = 224
    steps: int = 4


def main(config: Config) -> list[Row]:
    """Prints and returns one row a case."""
    rows: list[Row] = []

    def add(row: Row) -> None:
        row |= {"cores": os.cpu_count(), "jax": jax.__version__}
        print(json.dumps(row), flush=True)
        rows.append(row)

    with tempfile.TemporaryDirectory() as work:
        root = pathlib.Path(work)
        if {"records", "centre", "grain"} & set(config.cases):
            fake.prepare(root, {"train": config.images})
        for case in config.cases:
            for workers in config.workers:
                row = CASES[case](config, root, workers)
                if row is not None:
                    add({"case": case, "workers": workers, **row})
    if config.step:
        add(step(config, config.step))
    return rows


def rate(items: Iterable[stream.HostBatch], *, seconds: float) -> Row:
    """What a reader gives to somebody who only takes; the first batch is not timed."""
    iterator = iter(items)
    next(iterator)
    begin, busy, count = time.perf_counter(), time.process_time(), 0
    for batch in iterator:
        count += len(batch["label"])
        if time.perf_counter() - begin > seconds:
            break
    return {
        "images_per_s": round(count / (time.perf_counter() - begin), 1),
        "images_per_cpu_s": round(count / (time.process_time() - busy), 1),
    }


def _rate(config: Config, source: stream.Source, workers: int) -> Row:
    reading = data.Stream(source, config.batch_size, workers=workers)
    with stream.training(reading, KEY, epochs=10**6) as feed:
        return rate(iter(feed.take, None), seconds=config.seconds)


def mapped(config: Config, root: pathlib.Path, workers: int) -> Row | None:
    """Rows of a mapped array."""
    path, n = root / "images.npy", config.mapped_images
    if not path.exists():
        pixels = np.random.default_rng(0).integers(0, 256, (n, 32, 32, 3), np.uint8)
        np.save(path, pixels)
    images = np.load(path, mmap_mode="r")
    zero, index = np.zeros(n, np.int32), np.arange(n, dtype=np.int32)
    dataset = data.Dataset.of_images("random", "train", images, zero, index, ("a",))
    return _rate(config, data.mapped(dataset), workers)


def _records(crop: decode.Decode) -> Callable[..., Row | None]:
    def case(config: Config, root: pathlib.Path, workers: int) -> Row | None:
        source = data.records("imagenet2012", "train", decode=crop, data_dir=root)
        return _rate(config, source, workers)

    return case


def grain_loader(config: Config, root: pathlib.Path, workers: int) -> Row | None:
    """The same files and crops, read by processes of grain's; nothing without grain."""
    try:
        grain: Any = importlib.import_module("grain.python")
        from absl import flags
    except ImportError:
        return None
    if workers and not flags.FLAGS.is_parsed():
        flags.FLAGS(["input_speed"])  # grain's worker processes ask for them
    source = data.records(
        "imagenet2012", "train", decode=decode.random_crop(224), data_dir=root
    )

    class One(grain.RandomMapTransform):
        def random_map(self, position: Any, rng: np.random.Generator) -> Any:
            draw = rng.integers(0, 2**63, 1, np.uint64)
            read = source.read(np.array([position]), draw)
            return {name: array[0] for name, array in read.items()}

    loader = grain.DataLoader(
        data_source=range(source.examples),
        sampler=grain.IndexSampler(
            source.examples, shard_options=grain.NoSharding(), shuffle=True, seed=0
        ),
        operations=[One(), grain.Batch(config.batch_size)],
        worker_count=workers,
    )
    row = rate(iter(loader), seconds=config.seconds)
    return row if not workers else {**row, "images_per_cpu_s": None}


CASES = {
    "mapped": mapped,
    "records": _records(decode.random_crop(224)),
    "centre": _records(decode.centre_crop(224)),
    "grain": grain_loader,
}


def step(config: Config, pair: imagenet.Pair) -> Row:
    """What the step of a pair takes from a source that is never slow."""
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as out:
        last = imagenet.main(
            imagenet.Config(
                pair=pair,
                fake=True,
                fake_images=config.steps * config.step_batch,
                image_size=config.step_size,
                batch_size=config.step_batch,
                out=out,
            )
        )
    return {
        "case": "step",
        "pair": pair,
        "batch_size": config.step_batch,
        "images_per_s": last["examples/s"],
        "waited": last["waited"],
        "device": jax.devices()[0].device_kind,
        "seconds_with_compilation": round(time.perf_counter() - begin, 1),
    }


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
