r"""Quantization: after training and in it, measured on the exported files.

A student is trained on the labels alone and, from the same seeds, taught by a teacher.
The taught one is folded and quantized in every way of the grid {PTQ, QAT} x {dynamic,
static ranges} x {per tensor, per channel} x {8, 4 bits of kernels}. PTQ measures ranges
on a few training images, "PTQ equalised" after cross-layer equalisation, "PTQ
corrected" with bias correction; QAT then trains the quantized network, taught by the
student itself in float. Every accuracy is that of the exported file, run by its runtime
on the real test images.

    python -m experiments.quantize --archives DIR
    python -m experiments.quantize --dataset digits --net digits_student \
        --train-images 1000 --teacher-images 1000 --tune-images 1000 --epochs 40

Files are LiteRT's where the extra `litert` is installed and LiteRT can run the network
as it was trained; else StableHLO in int8 arithmetic, run by XLA. The table says which.
XLA stores kernels of 4 bits as int8: such a file is no smaller. A run is resumed, or
its grid extended, with `--resume runs/quantize/TIME`. For one quantized network there
are `jaxkd run cifar10-distil-qat` and `cifar10-prune-qat`.
"""

import dataclasses
import itertools
import pathlib
import re
from typing import Any, Literal

import jax
import jax.numpy as jnp
import tyro

from experiments import common
from jaxkd import data, distill, export, losses, models, recipes, report, store, train
from jaxkd.compress import quantize
from jaxkd.data import augment
from jaxkd.models import Net

ALONE, TAUGHT = "float, alone", "float, distilled"
METHODS = Literal["PTQ", "PTQ equalised", "PTQ corrected", "QAT"]
SCALES = Literal["per tensor", "per channel"]


@dataclasses.dataclass(frozen=True)
class Config(common.Config):
    """Every field can be given on the command line."""

    net: str = "resnet8"  # the student: of the zoo, or of models.CNNS
    teacher: str = "resnet8"  # likewise
    dataset: str = "cifar10"
    methods: tuple[METHODS, ...] = ("PTQ", "QAT")
    activations: tuple[Literal["dynamic", "static"], ...] = ("dynamic", "static")
    scales: tuple[SCALES, ...] = ("per tensor", "per channel")
    bits: tuple[int, ...] = (8, 4)  # of kernels
    calibration_images: int = 512
    teacher_images: int = 20_000
    teacher_epochs: int = 8
    train_images: int = 10_000
    epochs: int = 4  # of the students
    learning_rate: float = 0.05  # .01 for Mobile- and ShuffleNets
    tune_images: int = 5000
    tune_epochs: int = 2  # of QAT
    tune_rate: float = 0.002
    batch_size: int = 64
    temperature: float = 4.0
    hard_weight: float = 0.1  # of the labels
    soft_weight: float = 0.9  # of the teacher
    repeats: int = 50  # timed calls of each file


def main(config: Config) -> list[dict[str, Any]]:
    """Run the experiment; return what was measured of each network's files."""
    # The data: of the students, of the teacher, and of QAT.
    whole, test = common.load(config, config.dataset)
    images, lessons, tuning = (
        common.some(whole, n)
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
    with common.refusing(f"networks are {', '.join([*models.ZOO, *models.CNNS])}; no"):
        net = network(config.net, test.num_classes)
        teacher = network(config.teacher, test.num_classes)
    kd = distill.on_logits(losses.kd, temperature=config.temperature)
    spec: distill.Spec = {
        "ce": (config.hard_weight, distill.on_labels(losses.cross_entropy)),
        "kd": (config.soft_weight, kd),
    }

    def budget(examples: data.Dataset, epochs: int, rate: float) -> dict[str, Any]:
        steps = len(examples.images) // config.batch_size
        return {"tx": recipes.Budget(epochs, steps, rate).optimizer(), "epochs": epochs}

    of_student = budget(images, config.epochs, config.learning_rate)
    cells = itertools.product(
        config.methods, config.activations, config.scales, config.bits
    )
    with common.refusing("cannot quantize"):
        grid = {
            f"{method} {activation} {scales} W{bits}A8": (
                method,
                quantize.Quantization(
                    weights=bits,
                    activations=8,
                    per_channel=scales == "per channel",
                    activation=activation,
                    estimator="ema",
                ),
            )
            for method, activation, scales, bits in cells
        }
    how: dict[str, Any] = {"view": view, "batch_size": config.batch_size}
    tx, resident = of_student["tx"], data.on_device(images)
    common.rehearse(net, resident, teacher, spec=spec, tx=tx, **how)

    # The float networks. A teacher is kept for other runs.
    grids = ["methods", "activations", "scales", "bits", "repeats"]
    directory, log = common.start("quantize", config, may_change=grids)
    how |= {"log": log, "together": False}
    seen = f"{len(lessons.images)}-images-of-{lessons.split}"
    kept = f"{config.dataset}-{config.teacher}-{config.teacher_epochs}-epochs-{seen}"
    taught = train.learn(
        teacher,
        lessons,
        seeds=1,
        checkpoints=pathlib.Path(config.out) / "teachers" / kept,
        identity={"learning_rate": config.learning_rate},
        name="teacher",
        **budget(lessons, config.teacher_epochs, config.learning_rate),
        **how,
    )
    how["seeds"] = config.seeds
    alone = train.learn(
        net,
        images,
        checkpoints=directory / "alone",
        name=ALONE,
        **of_student,
        **how,
    )
    distilled = train.learn(
        net,
        images,
        spec=spec,
        teacher=(teacher, taught.seed(0)),
        checkpoints=directory / "distilled",
        name=TAUGHT,
        **of_student,
        **how,
    )
    del how["seeds"]  # what follows is done for one seed after another

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
        if method == "QAT":  # taught by the student in float
            begin = (params, state)
            params, state = train.learn(
                Net(lambda *_: jax.tree.map(jnp.array, begin), ready.apply),
                tuning,
                spec=spec,
                teacher=in_float,
                key=jax.random.key(seed),
                checkpoints=stem,
                name=f"{name}, seed {seed}",
                **budget(tuning, config.tune_epochs, config.tune_rate),
                **how,
            ).variables
        return export.litert_or_xla(
            ready, params, state, stem, image_shape=shape, folded=folded
        )

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
                    made.append(
                        export.litert_or_xla(
                            net, *run.seed(seed), stem, image_shape=shape
                        )
                    )
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

    # The table; latencies are of one image on one thread, and the files take turns.
    paths = [directory / row["file"] for row in results.values()]
    times = export.latency(paths, repeats=config.repeats)
    best = results[TAUGHT]["accuracy"]
    rows = [
        {
            "network": name,
            "accuracy %": report.mean_sd(row["accuracy"], scale=100),
            "difference": report.gain(row["accuracy"], best),
            "bytes": f"{row['bytes']:,}",
            "ms": f"{milliseconds:.3f}",
            "runtime": "LiteRT" if path.suffix == ".tflite" else "XLA",
            "integer, float ops": f"{row['integer_ops']}, {row['float_ops']}",
        }
        for (name, row), path, milliseconds in zip(
            results.items(), paths, times, strict=True
        )
    ]
    common.write_report(
        directory,
        f"quantize: {config.net} taught by {config.teacher}, {config.dataset}, "
        f"{len(test.images):,} {config.evaluate_on} images, {config.seeds} seeds",
        {"Accuracy of the exported files, mean ± standard deviation over seeds": rows},
    )
    return list(results.values())


def network(name: str, classes: int) -> Net:
    """Build a network of `models.CNNS`, or of the zoo: in bfloat16 on accelerators."""
    if name in models.CNNS:
        return models.cnn(**{**models.CNNS[name], "classes": classes})
    on_cpu = jax.default_backend() == "cpu"
    return models.ZOO[name](classes=classes, dtype=None if on_cpu else jnp.bfloat16)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
