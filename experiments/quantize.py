r"""Quantization: after training and in it, and what the exported files do.

A student is trained on the labels alone and, from the same seeds, taught by a teacher.
The taught one is folded and quantized in every way of the grid {PTQ, QAT} x {dynamic,
static ranges} x {per tensor, per channel} x {8, 4 bits of kernels}. PTQ measures ranges
on a few training images, "PTQ equalised" after cross-layer equalisation, "PTQ
corrected" with bias correction; QAT then trains the quantized network, taught by the
student itself in float, or by the teacher. Last, the student is pruned, fine-tuned with
distillation, and quantized in training. Every accuracy is that of the exported file,
run by its runtime on the real test images.

    python -m experiments.quantize --dataset digits --net digits_student --round-to 1 \
        --teacher resnet8 --epochs 40 --teacher-epochs 40 --tune-epochs 10
    python -m experiments.quantize --net mobilenet_v2 --preset short --archives DIR
    python -m experiments.quantize --net resnet8 --reuse runs/quantize/TIME

Files are LiteRT's where the extra `litert` is installed and LiteRT can run the network
as it was trained; else StableHLO in int8 arithmetic, run by XLA: dynamic ranges with
one scale a kernel or with kernels of 4 bits, and activations of fewer than 8 bits. The
table says which. XLA stores kernels of 4 bits as int8: such a file is no smaller.
"""

import dataclasses
import itertools
import json
import pathlib
from typing import Any, Literal

import jax
import numpy as np
import tyro
from rich.console import Console

from experiments import (
    _contest as contests,
    _protocol as protocol,
    _quantize_files as files,
    _quantize_nets as nets,
    _quantize_report as reports,
)
from experiments._pair import refusing
from experiments._quantize_files import Cell, Subject, Variables
from experiments._quantize_nets import Bench
from experiments._quantize_report import ALONE, TAUGHT
from jaxkd import _check, data
from jaxkd.compress import prune
from jaxkd.models import CNNS, Net

METHODS = ("PTQ", "PTQ equalised", "PTQ corrected", "QAT")
ACTIVATIONS = ("dynamic", "static")
SCALES = ("per_tensor", "per_channel")
PRESETS = {
    "full": [protocol.Protocol(epochs=n) for n in (200, 240, 20)],
    "short": [
        protocol.Protocol(epochs=8, train_images=20_000),
        protocol.Protocol(epochs=8),
        protocol.Protocol(epochs=2, train_images=10_000),
    ],
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Every field can be given on the command line; None is the preset's."""

    net: str = "mobilenet_v2"  # the student: of the zoo, or a cnn ("digits_student")
    teacher: str = "resnet20"  # a network of the zoo, or NET:DIR, its checkpoint
    dataset: str = "cifar10"
    preset: Literal["full", "short"] = "full"
    archives: str | None = None  # folder of the official archives
    data_dir: str | None = None  # where prepared data are kept
    methods: tuple[str, ...] = ("PTQ", "QAT")  # or "PTQ equalised", "PTQ corrected"
    activations: tuple[str, ...] = ACTIVATIONS
    scales: tuple[str, ...] = SCALES
    bits: tuple[int, ...] = (8, 4)  # of kernels
    activation_bits: int = 8
    estimator: str = "ema"  # of static ranges
    calibration_images: int = 512
    prune_to: float = 0.5  # share of the MACs that the pruned network keeps
    round_to: int = 8  # channels that go together
    epochs: int | None = None  # of the students
    train_images: int | None = None
    learning_rate: float | None = None
    teacher_epochs: int | None = None
    teacher_images: int | None = None
    tune_epochs: int | None = None  # of QAT, and of fine-tuning what was pruned
    tune_images: int | None = None
    tune_rate: float = 0.002
    batch_size: int = 64
    temperature: float = 4.0
    hard_weight: float = 0.1  # of the labels
    soft_weight: float = 0.9  # of the teacher
    taught_by: Literal["float", "teacher"] = "float"  # in QAT
    seeds: int = 3
    repeats: int = 50  # timed calls of each file
    reuse: str | None = None  # an earlier run: its float networks; or a checkpoint
    evaluate_on: Literal["test", "validation"] = "test"
    out: str = "runs"
    resume: str | None = None  # the directory of a run that was cut short

    def protocols(self) -> list[protocol.Protocol]:
        """The students', the teacher's and that of QAT and fine-tuning."""
        given = [
            (self.epochs, self.train_images, self.learning_rate),
            (self.teacher_epochs, self.teacher_images, self.learning_rate),
            (self.tune_epochs, self.tune_images, self.tune_rate),
        ]
        return [
            _with(preset, self.batch_size, said)
            for preset, said in zip(PRESETS[self.preset], given, strict=True)
        ]


def _with(before: protocol.Protocol, batch_size: int, said: Any) -> protocol.Protocol:
    """The protocol with what is said of epochs, images and rate; None is nothing."""
    names = ("epochs", "train_images", "learning_rate")
    given = {
        n: value for n, value in zip(names, said, strict=True) if value is not None
    }
    how: dict[str, Any] = {"batch_size": batch_size, **given}
    return dataclasses.replace(before, **how)


def cells(config: Config) -> list[Cell]:
    """The grid, in the order of the table."""
    grid = itertools.product(
        config.methods, config.activations, config.scales, config.bits
    )
    return [
        Cell(method, activation, scales == "per_channel", bits, config.activation_bits)
        for method, activation, scales, bits in grid
    ]


def check(config: Config, net: Net, shape: tuple[int, ...], classes: int) -> None:
    """Refuses, before anything is trained, what cannot work.

    Raises:
      SystemExit: with the reason.
    """
    teacher, _, of_teacher = config.teacher.partition(":")
    nets.network(teacher, classes)
    if teacher in CNNS and not of_teacher:
        raise SystemExit(
            f"the teacher {teacher} must come with its checkpoint: NET:DIR"
        )
    for path in (config.reuse, of_teacher):
        if path and not pathlib.Path(path).is_dir():
            raise SystemExit(f"cannot reuse: no directory {path}")
    with refusing("cannot quantize"):
        for name, known in (
            ("methods", METHODS), ("activations", ACTIVATIONS), ("scales", SCALES)
        ):  # fmt: skip
            for value in getattr(config, name):
                _check.one_of(*known)(name, value)
        for name in ("seeds", "repeats", "calibration_images", "batch_size"):
            _check.whole(1)(name, getattr(config, name))
        _check.positive("tune_rate", config.tune_rate)
        x = jax.ShapeDtypeStruct((1, *shape), np.float32)
        variables = jax.eval_shape(net.init, jax.random.key(0), x)
        for cell in cells(config):
            nets.quantization(config, cell)
        plan = prune.analyse_net(net, variables[0], variables[1], shape)
        prune.target(plan, "macs", fraction=config.prune_to, round_to=config.round_to)


def measured(bench: Bench, name: str, found: list[Subject]) -> dict[str, Any]:
    """Writes, runs and compares the files of all seeds: one row of the table."""
    world, stem = bench.world, bench.directory / protocol.folder_name(name)
    some = files.seen(world.test, world.test_view, most=files.COMPARED)[0]
    in_jax = files.in_jax(found[0].net)  # one program for all seeds
    rows: dict[str, list[Any]] = {"accuracy": [], "agreement": [], "difference": []}
    steps: list[float | None] = []
    bytes: list[int] = []
    written = None
    for seed, subject in reversed(list(enumerate(found))):
        written = files.write(subject, bench.shape, stem)  # what stays is seed 0's
        logits = files.logits(written.path, world.test, world.test_view)
        wanted = np.asarray(in_jax(subject.variables, some))
        apart = np.abs(logits[: len(some)] - wanted).max()
        step = files.step(subject, bench.shape)
        rows["accuracy"].insert(0, files.accuracy(logits, world.test.labels))
        rows["agreement"].insert(0, files.agreement(logits, bench.reference[seed]))
        rows["difference"].insert(0, float(apart))
        steps.insert(0, None if step is None else float(apart / step))
        bytes.insert(0, written.path.stat().st_size)
    assert written is not None
    return {**rows, "steps": steps, "bytes": bytes, **_about(written)}


def _about(written: files.Written) -> dict[str, Any]:
    return {
        "file": written.path.name,
        "runtime": written.runtime,
        "why": written.why,
        "integer_ops": written.integer,
        "float_ops": written.floats,
    }


def measured_float(
    bench: Bench, name: str, net: Net, variables: list[Variables]
) -> tuple[dict[str, Any], list[np.ndarray]]:
    """The same of float networks, and what their files say of the test images."""
    world, stem = bench.world, bench.directory / protocol.folder_name(name)
    runtime = "LiteRT" if files.litert() else "XLA"
    outputs: list[np.ndarray] = []
    for own in reversed(variables):
        written = files.write_float(net, own, bench.shape, stem, runtime)
        outputs.insert(0, files.logits(written.path, world.test, world.test_view))
    row = {
        "accuracy": [files.accuracy(o, world.test.labels) for o in outputs],
        "bytes": [written.path.stat().st_size] * len(outputs),
        **_about(written),
    }
    if runtime != "XLA":  # what files of XLA are compared with
        files.write_float(net, variables[0], bench.shape, stem, "XLA")
    return row, outputs


def main(config: Config) -> list[dict[str, Any]]:
    """Runs the experiment; returns the rows of the table."""
    budgets = config.protocols()
    world, of_teacher, tuning = (
        protocol.world(config, _within(config, p.train_images)) for p in budgets
    )
    net = nets.network(config.net, world.train.num_classes)
    check(config, net, world.train.images.shape[1:], world.train.num_classes)
    directory, write = contests.opened("quantize", config)
    asked = config.reuse is None or config.taught_by == "teacher"
    teacher = nets.teacher_of(config, of_teacher, write) if asked else None
    calibration = files.seen(
        tuning.train, tuning.test_view, size=128, most=config.calibration_images
    )
    bench = Bench(config, directory, tuning, calibration, teacher, [], write)
    results = directory / "results.jsonl"
    found = contests.finished(results)
    done = {row["name"] for row in found}

    def keep(name: str, row: dict[str, Any]) -> None:
        if name not in done:
            found.append({"name": name, **row})
            with results.open("a") as file:
                file.write(json.dumps(found[-1]) + "\n")
            Console(stderr=True).print(f"{name}: {row['accuracy']}")

    alone = nets.students(bench, net, world, ALONE)
    if alone is not None and ALONE not in done:
        keep(ALONE, measured_float(bench, ALONE, net, alone)[0])
    taught = nets.students(bench, net, world, TAUGHT)
    assert taught is not None
    row, outputs = measured_float(bench, TAUGHT, net, taught)
    keep(TAUGHT, row)
    bench = bench._replace(reference=outputs)
    for cell in cells(config):
        if cell.name not in done:
            keep(
                cell.name,
                measured(bench, cell.name, nets.subjects(bench, cell, net, taught)),
            )
    name = f"pruned to {config.prune_to:.0%} of the MACs, then QAT int8"
    if name not in done:
        small = nets.pruned(bench, net, taught)
        cell = Cell("QAT", "static", True, 8, 8)
        small_net = prune.resized(net)
        keep(
            name,
            measured(bench, name, nets.subjects(bench, cell, small_net, small, name)),
        )
    return reports.finish(config, directory, found, len(world.test.images))


def _within(config: Config, images: int | None) -> int | None:
    """As many training images as are wanted; None where there are no more."""
    split = "train_rest" if config.evaluate_on == "validation" else "train"
    with refusing("no data"):
        there = data.load(
            config.dataset, split, archives=config.archives, data_dir=config.data_dir
        )
    return None if images is None or images >= len(there.images) else images


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
