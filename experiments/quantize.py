r"""Quantization: after training and in it, measured on the exported files.

A student is trained on the labels alone and, from the same seeds, taught by a teacher.
The taught one is folded and quantized in every way of the grid {PTQ, QAT} x {dynamic,
static ranges} x {per tensor, per channel} x {8, 4 bits of kernels}. PTQ measures ranges
on a few training images, "PTQ equalised" after cross-layer equalisation, "PTQ
corrected" with bias correction; QAT then trains the quantized network, taught by the
student itself in float, or by the teacher. Every accuracy is that of the exported file,
run by its runtime on the real test images.

    python -m experiments.quantize --dataset digits --net digits_student \
        --teacher resnet8 --epochs 40 --teacher-epochs 40 --tune-epochs 10
    python -m experiments.quantize --net mobilenet_v2 --preset short --archives DIR

Files are LiteRT's where the extra `litert` is installed and LiteRT can run the network
as it was trained; else StableHLO in int8 arithmetic, run by XLA. The table says which.
XLA stores kernels of 4 bits as int8: such a file is no smaller. A run is resumed, or
its grid extended, with `--resume runs/quantize/TIME`.
"""

import dataclasses
import importlib.util
import itertools
import pathlib
import re
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments import common
from jaxkd import data, distill, export, losses, models, recipes, report, store, train
from jaxkd.compress import quantize
from jaxkd.data import augment
from jaxkd.models import Net

ALONE, TAUGHT, XLA = "float, alone", "float, distilled", "float, XLA"
METHODS = Literal["PTQ", "PTQ equalised", "PTQ corrected", "QAT"]
PRESETS: dict[str, dict[str, Any]] = {
    "full": {"epochs": 200, "teacher_epochs": 240, "tune_epochs": 20},
    "short": {
        "epochs": 8,
        "train_images": 20_000,
        "teacher_epochs": 8,
        "tune_epochs": 2,
        "tune_images": 10_000,
    },
}


@dataclasses.dataclass(frozen=True)
class Config(common.Config):
    """Every field can be given on the command line; None is the preset's."""

    net: str = "mobilenet_v2"  # the student: of the zoo, or of models.CNNS
    teacher: str = "resnet20"  # likewise
    dataset: str = "cifar10"
    preset: Literal["full", "short"] = "full"
    methods: tuple[METHODS, ...] = ("PTQ", "QAT")
    activations: tuple[Literal["dynamic", "static"], ...] = ("dynamic", "static")
    scales: tuple[Literal["per_tensor", "per_channel"], ...] = (
        "per_tensor",
        "per_channel",
    )
    bits: tuple[int, ...] = (8, 4)  # of kernels
    activation_bits: int = 8
    estimator: str = "ema"  # of static ranges
    calibration_images: int = 512
    epochs: int | None = None  # of the students
    train_images: int | None = None
    learning_rate: float | None = None  # None: .01 for Mobile- and ShuffleNets, or .05
    teacher_epochs: int | None = None
    teacher_images: int | None = None
    tune_epochs: int | None = None  # of QAT
    tune_images: int | None = None
    tune_rate: float = 0.002
    batch_size: int = 64
    temperature: float = 4.0
    hard_weight: float = 0.1  # of the labels
    soft_weight: float = 0.9  # of the teacher
    taught_by: Literal["float", "teacher"] = "float"  # in QAT
    repeats: int = 50  # timed calls of each file


def main(config: Config) -> list[dict[str, Any]]:
    """Run the experiment; return what was measured of each network's files."""
    preset = PRESETS[config.preset].items()
    missing = {k: v for k, v in preset if getattr(config, k) is None}
    config = dataclasses.replace(config, **missing)

    # The data: of the students, of the teacher, and of QAT.
    whole, test = common.load(config, config.dataset)
    images, lessons, tuning = (
        whole if n is None or n >= len(whole.images) else data.subset(whole, n, seed=0)
        for n in (config.train_images, config.teacher_images, config.tune_images)
    )
    shape = whole.images.shape[1:]
    normalise = augment.normalise(*data.channel_statistics(whole))
    plain = augment.chain(augment.to_float(), normalise)
    view = augment.chain(augment.flip(), augment.crop(shape[0] // 8), plain)
    look = jax.jit(lambda x: plain(jax.random.key(0), {"image": x})["image"])
    some = tuning.images[: config.calibration_images]
    calibration = [look(some[i : i + 128]) for i in range(0, len(some), 128)]

    # The networks, how they are trained, and the grid; wrong options end the run here.
    names = (config.net, config.teacher)
    with common.refusing(f"networks are {', '.join([*models.ZOO, *models.CNNS])}; no"):
        net, teacher = (network(name, test.num_classes) for name in names)
    kd = distill.on_logits(losses.kd, temperature=config.temperature)
    spec: distill.Spec = {
        "ce": (config.hard_weight, distill.on_labels(losses.cross_entropy)),
        "kd": (config.soft_weight, kd),
    }

    def budget(examples: data.Dataset, epochs: int | None, rate: float) -> dict:
        steps = len(examples.images) // config.batch_size
        tx = recipes.Budget(epochs or 0, steps, rate).optimizer()
        return {"tx": tx, "epochs": epochs}

    slow = ("mobilenet", "shufflenet")
    rates = [
        config.learning_rate or (0.01 if name.startswith(slow) else 0.05)
        for name in names
    ]
    of_student = budget(images, config.epochs, rates[0])
    of_teacher = budget(lessons, config.teacher_epochs, rates[1])
    of_tuning = budget(tuning, config.tune_epochs, config.tune_rate)
    how: dict[str, Any] = {"view": view, "batch_size": config.batch_size}
    cells = itertools.product(
        config.methods, config.activations, config.scales, config.bits
    )
    with common.refusing("cannot quantize"):
        grid = {
            f"{method} {activation} {scales.replace('_', ' ')} "
            f"W{bits}A{config.activation_bits}": (
                method,
                quantize.Quantization(
                    weights=bits,
                    activations=config.activation_bits,
                    per_channel=scales == "per_channel",
                    activation=activation,
                    estimator=config.estimator,
                ),
            )
            for method, activation, scales, bits in cells
        }
    tx, resident = of_student["tx"], data.on_device(images)
    common.rehearse(net, resident, teacher, spec=spec, tx=tx, **how)

    # The float networks. A teacher is kept for other runs.
    grids = ["methods", "activations", "scales", "bits", "repeats"]
    directory, log = common.start("quantize", config, may_change=grids)
    on_cpu = jax.default_backend() == "cpu"
    how |= {"log": log, "together": False}
    seen = f"{len(lessons.images)}-images-of-{lessons.split}"
    kept = f"{config.dataset}-{config.teacher}-{config.teacher_epochs}-epochs-{seen}"
    taught = train.learn(
        teacher,
        lessons,
        seeds=1,
        checkpoints=pathlib.Path(config.out) / "teachers" / kept,
        identity={"learning_rate": rates[1], "bfloat16": not on_cpu},
        name="teacher",
        **of_teacher,
        **how,
    )
    teaching = (teacher, taught.seed(0))
    alone = train.learn(
        net,
        images,
        seeds=config.seeds,
        checkpoints=directory / "alone",
        name=ALONE,
        **of_student,
        **how,
    )
    distilled = train.learn(
        net,
        images,
        spec=spec,
        teacher=teaching,
        seeds=config.seeds,
        checkpoints=directory / "distilled",
        name=TAUGHT,
        **of_student,
        **how,
    )

    def quantized(name: str, seed: int, stem: pathlib.Path) -> export.ExportReport:
        """Fold, quantize, calibrate and, by QAT, train one student; write its file."""
        method, bits = grid[name]
        folded, params, state = quantize.fold(net, *distilled.seed(seed), shape)
        if method == "PTQ equalised":
            params = quantize.equalise(folded, params, state, shape)
        in_float = (folded, (params, state))
        ready, params, state = quantize.quantized(folded, params, state, bits, shape)
        state = quantize.calibrate(ready, params, state, calibration)
        if method == "PTQ corrected":
            params = quantize.bias_correction(ready, params, state, calibration)
        if method == "QAT":
            begin = (params, state)
            run = train.learn(
                Net(lambda *_: jax.tree.map(jnp.array, begin), ready.apply),
                tuning,
                spec=spec,
                teacher=teaching if config.taught_by == "teacher" else in_float,
                key=jax.random.key(seed),
                checkpoints=stem,
                name=f"{name}, seed {seed}",
                **of_tuning,
                **how,
            )
            params, state = run.variables
        return write_quantized(folded, ready, params, state, bits, shape, stem)

    # Files of all seeds, written and measured once: a row of the table.
    results: dict[str, dict[str, Any]] = {}
    for name in (ALONE, TAUGHT, *grid):
        slug = re.sub("[^a-z0-9]+", "_", name.lower())
        if not (row := directory / f"{slug}.json").exists():
            made = []
            for seed in range(config.seeds):
                stem = directory / f"{slug}-{seed}"
                if name in grid:
                    made.append(quantized(name, seed, stem))
                else:
                    run = alone if name == ALONE else distilled
                    made.append(write(net, *run.seed(seed), shape, stem))
            files = [export.load(each.path) for each in made]
            found = [export.evaluate(file, test, view=plain) for file in files]
            first = {
                "file": pathlib.Path(made[0].path).name,
                "bytes": made[0].bytes,
                "integer_ops": sum(made[0].integer_ops.values()),
                "float_ops": sum(made[0].float_ops.values()),
            }
            accuracy = [each["accuracy"] for each in found]
            store.write_json(row, {"name": name, "accuracy": accuracy, **first})
        results[name] = store.read_json(row, "delete it")

    # Latencies, of files that take turns, against the float file of the same runtime.
    paths = {name: directory / row["file"] for name, row in results.items()}
    paths[XLA] = directory / "float.stablehlo"
    export.stablehlo(net, *distilled.seed(0), paths[XLA], image_shape=shape)
    for suffix, base in ((".stablehlo", XLA), (".tflite", TAUGHT)):
        own = [name for name, path in paths.items() if path.suffix == suffix]
        times = export.latency([paths[k] for k in own], repeats=config.repeats)
        milliseconds = dict(zip(own, times, strict=True))
        for name in results.keys() & set(own):
            results[name] |= {
                "milliseconds": milliseconds[name],
                "faster": milliseconds[base] / milliseconds[name],
                "share": results[name]["bytes"] / paths[base].stat().st_size,
            }

    # The table.
    best = results[TAUGHT]["accuracy"]
    rows = [
        {
            "network": name,
            "accuracy %": report.mean_sd(row["accuracy"], scale=100),
            "difference": report.gain(row["accuracy"], best),
            "bytes": f"{row['bytes']:,} ({row['share']:.1%})",
            "latency ms": f"{row['milliseconds']:.3f}",
            "times faster": f"{row['faster']:.2f}",
            "runtime": "LiteRT" if paths[name].suffix == ".tflite" else "XLA",
            "integer, float ops": f"{row['integer_ops']}, {row['float_ops']}",
        }
        for name, row in results.items()
    ]
    percent = {name: 100 * np.array(row["accuracy"]) for name, row in results.items()}
    middle, axis = float(percent[TAUGHT].mean()), "accuracy of the file, %"
    report.dots(directory / "accuracy.png", percent, x_label=axis, line=middle)
    common.write_report(
        directory,
        f"quantize: {config.net} taught by {config.teacher}, {config.dataset}, "
        f"{len(test.images):,} {config.evaluate_on} images, {config.seeds} seeds",
        {"Accuracy of the exported files, mean ± standard deviation over seeds": rows},
        [
            "Differences are to the distilled network in float, paired, ± standard "
            "error. W4A8: kernels of 4 bits, activations of 8.",
            "Bytes and latency (one image, one thread) are those of the first seed's "
            "file, compared with the float file of the same runtime.",
        ],
    )
    return list(results.values())


def network(name: str, classes: int) -> Net:
    """Build a network of `models.CNNS`, or of the zoo: in bfloat16 on accelerators."""
    if name in models.CNNS:
        return models.cnn(**{**models.CNNS[name], "classes": classes})
    on_cpu = jax.default_backend() == "cpu"
    return models.ZOO[name](classes=classes, dtype=None if on_cpu else jnp.bfloat16)


def litert() -> bool:
    """Return whether LiteRT and what makes its files are installed."""
    packages = ("litert_converter", "ai_edge_litert", "ai_edge_quantizer")
    return all(importlib.util.find_spec(package) for package in packages)


def write(
    net: Net, params: Any, state: Any, shape: tuple, stem: pathlib.Path, **options: Any
) -> export.ExportReport:
    """Write a network for LiteRT if it is installed, else for XLA."""
    kind: Any = export.tflite if litert() else export.stablehlo
    path = stem.with_name(f"{stem.name}.{'tflite' if litert() else 'stablehlo'}")
    return kind(net, params, state, path, image_shape=shape, **options)


def write_quantized(
    folded: Net,
    net: Net,
    params: Any,
    state: Any,
    bits: quantize.Quantization,
    shape: tuple,
    stem: pathlib.Path,
) -> export.ExportReport:
    """Write a quantized network for a runtime that computes what was trained.

    LiteRT has no activations of fewer than 8 bits, and its dynamic recipe only kernels
    of 8 bits with one scale for each output channel.
    """
    dynamic = bits.activation == "dynamic"
    per_channel = bits.per_channel and bits.weights == 8
    if not litert() or bits.activations != 8 or (dynamic and not per_channel):
        apply, held = quantize.integer(net, params, state, bits)
        f: Any = lambda x: apply(held, x)
        if dynamic:  # a range is that of one image
            f = lambda x: jax.vmap(lambda image: apply(held, image[None])[0])(x)
        path = stem.with_name(f"{stem.name}.stablehlo")
        return export.stablehlo(*export.function(f), path, image_shape=shape)
    if dynamic:
        state = {name: tree for name, tree in state.items() if name != "ranges"}
        return write(folded, params, state, shape, stem, quantize="dynamic")
    return write(net, params, state, shape, stem)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
