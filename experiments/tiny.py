r"""Tiny: MLPerf Tiny's image classifier, distilled, pruned and quantized to int8.

The benchmark's network is a ResNet-8 for CIFAR-10, as large as the zoo's `resnet8`; its
own int8 file has 98,496 bytes and 86.97 % of the test images right. Here a teacher is
trained from the official archive alone, its scores of a number of random views of every
image are stored once, and there are three lines of students, the first two of them from
the same first weights and for as many epochs:

* alone: on the labels, under views drawn anew in each epoch;
* distilled: on the stored scores of the very view that the student sees;
* pruned: the distilled students, less some of their channels, distilled further.

Each is then quantized to int8 on ranges of a few training images (`--tune-epochs 10`
trains on with fake quantization, taught as before), and written for LiteRT and ONNX
Runtime. Accuracies are those of the files, on all test
images; nothing is chosen by them.

    pip install '.[litert,onnx]'
    python -m experiments.tiny --archives DIR
    python -m experiments.tiny --archives DIR --evaluate-on validation --epochs 60

What is trained lies in the run's directory; the same command with `--resume DIRECTORY`
goes on from there: train where an accelerator is, write the files where the two
runtimes are.
Measured results are in experiments/README.md.
"""

import dataclasses
import functools
import importlib.util
import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from experiments import common
from jaxkd import (
    cache,
    checkpoint,
    data,
    distill,
    evaluate,
    export,
    losses,
    models,
    report,
    store,
    train,
)
from jaxkd.compress import prune, quantize
from jaxkd.data import augment
from jaxkd.models import Net
from jaxkd.schemes import offline

EIGHT_BITS = quantize.Quantization(
    weights=8, activations=8, per_channel=True, activation="static", estimator="ema"
)
LINES = ("alone", "distilled", "pruned")


@dataclasses.dataclass(frozen=True)
class Config(common.Config):
    """Every field can be given on the command line."""

    dataset: str = "cifar10"
    teacher: str = "resnet32x4"  # of the zoo, as the student
    student: str = "resnet8"
    train_images: int | None = None  # None is all
    teacher_epochs: int = 30
    epochs: int = 200  # of the students
    prune_epochs: int = 100
    tune_epochs: int = 0  # with fake quantization; 0 is quantization after training
    teacher_rate: float = 0.2
    rate: float = 0.4
    prune_rate: float = 0.2
    tune_rate: float = 1e-4  # of Adam: no BatchNorm is left to bear SGD's rates
    teacher_decay: float = 5e-4  # of the weights
    decay: float = 1e-4
    batch_size: int = 512
    views: int = 40  # of each image, that the teacher scores
    padding: int = 3  # pixels by which a view is shifted at most
    temperature: float = 4.0
    hard_weight: float = 0.1  # of the labels
    soft_weight: float = 0.9  # of the teacher
    fraction: float = 0.43  # of the parameters that pruning leaves
    calibration_images: int = 1024
    bfloat16: bool = True  # teacher and students, but for the quantized ones
    repeats: int = 200  # timed calls of each file


def main(config: Config) -> list[dict[str, Any]]:
    """Run the experiment; return what was measured of each line's files."""
    # The data, and how networks see them.
    images, test = common.load(config, config.dataset, config.train_images)
    shape = images.images.shape[1:]
    normalise = augment.normalise(*data.channel_statistics(images))
    plain = augment.chain(augment.to_float(), normalise)
    shifted = augment.chain(augment.flip(), augment.crop(config.padding), plain)
    erased = augment.chain(shifted, augment.cutout(shape[0] // 4))
    with common.refusing("cannot train"):
        seen = cache.replayed(shifted, seed=0, views=config.views)
    look = jax.jit(lambda x: plain(jax.random.key(0), {"image": x})["image"])
    some = images.images[: config.calibration_images]
    calibration = [look(some[i : i + 128]) for i in range(0, len(some), 128)]

    # The networks: fast ones to train, and the student in float32, to be quantized.
    with common.refusing(f"networks are {', '.join(models.ZOO)}; there is no"):
        dtype = jnp.bfloat16 if config.bfloat16 else None
        teacher, fast = (
            models.ZOO[name](classes=images.num_classes, dtype=dtype)
            for name in (config.teacher, config.student)
        )
        student = models.ZOO[config.student](classes=images.num_classes)

    # The objectives, and the optimiser of so many epochs.
    ce = distill.on_labels(losses.cross_entropy)
    kd = distill.on_logits(losses.kd, temperature=config.temperature)
    taught: distill.Spec = {
        "ce": (config.hard_weight, ce),
        "kd": (config.soft_weight, kd),
    }
    steps = len(images.images) // config.batch_size
    with common.refusing("cannot train"):
        data.epoch(jax.random.key(0), len(images.images), config.batch_size)
        for name in ("calibration_images", "repeats"):
            if getattr(config, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(config, name)}")
        x = jax.ShapeDtypeStruct((1, *shape), np.float32)
        params, state = jax.eval_shape(student.init, jax.random.key(0), x)
        plan = prune.analyse_net(student, params, state, shape)
        prune.target(plan, "parameters", fraction=config.fraction, round_to=4)

    def length(epochs: int, rate: float, decay: float) -> dict[str, Any]:
        total = epochs * steps
        schedule = optax.warmup_cosine_decay_schedule(0, rate, total // 20, total)
        sgd = optax.sgd(schedule, momentum=0.9, nesterov=True)
        tx = optax.chain(optax.add_decayed_weights(decay), sgd)
        return {"tx": tx, "epochs": epochs, "batch_size": config.batch_size}

    directory, log = common.start(
        "tiny", config, may_change=["repeats", "archives", "data_dir"]
    )

    def learn(net: Net, *, name: str, **how: Any) -> train.Run:
        saved: dict[str, Any] = {"save_epochs": 10}
        saved["checkpoints"] = directory / "training" / name
        return train.learn(net, log=log, name=name, **saved, **how)

    # What is finished is read, when a run is resumed.
    def kept(name: str, make: Callable[[], train.Variables]) -> train.Variables:
        if not (directory / name).exists():
            begin, (params, state) = time.perf_counter(), make()
            minutes = (time.perf_counter() - begin) / 60
            notes = {"minutes": minutes, "device": jax.devices()[0].device_kind}
            checkpoint.write(
                directory / name, {"params": params, "state": state}, notes
            )
        tree = checkpoint.read(directory / name).tree
        return tree["params"], tree["state"]

    # The teacher, and its logits for the views of every image.
    def train_teacher() -> train.Variables:
        how = length(config.teacher_epochs, config.teacher_rate, config.teacher_decay)
        run = learn(
            teacher,
            examples=images,
            view=erased,
            name="teacher",
            **how,
        )
        found = accuracy_of(teacher, run.variables, test, plain)
        store.write_json(directory / "teacher.json", {"accuracy": found})
        return run.variables

    @functools.cache
    def scored() -> dict[str, jax.Array]:
        scores = cache.score(
            distill.frozen(teacher),
            kept("teacher", train_teacher),
            images,
            view=seen,
            path=directory / "scores",
            dtype="float16",
        )
        return offline.on_device(images, scores)

    def lesson(line: str) -> dict[str, Any]:
        several: dict[str, Any] = {"seeds": config.seeds, "together": False}
        if line == "alone":
            return {"examples": images, "view": shifted, **several}
        how: dict[str, Any] = {"teacher": "cached", "spec": taught, "view": seen}
        return {"examples": scored(), **how, **several}

    # The students; variables have a leading axis of seeds.
    def train_students(line: str) -> train.Variables:
        how = length(config.epochs, config.rate, config.decay)
        return learn(fast, **lesson(line), **how, name=line).variables

    def prune_students() -> train.Variables:
        small = []
        for seed in range(config.seeds):
            whole = of_seed(in_float("distilled")[1], seed)
            plan = prune.analyse_net(student, *whole, shape)
            target = prune.target(
                plan, "parameters", fraction=config.fraction, round_to=4
            )
            importance = np.asarray(prune.criteria.l2(plan, whole[0]))
            dropped = prune.uniform(plan, importance, target)  # as many of each seed
            small.append(plan.apply(whole, dropped))
        net = prune.from_variables(fast, small[0])
        how = length(config.prune_epochs, config.prune_rate, config.decay)
        start = stack(small)
        return learn(
            net, **lesson("pruned"), **how, start=start, name="pruned"
        ).variables

    def in_float(line: str) -> tuple[Net, train.Variables]:
        if line == "pruned":
            return prune.resized(student), kept(line, prune_students)
        return student, kept(line, lambda: train_students(line))

    # Quantization, by ranges seen on training images; if asked for, training in it.
    def in_int8(line: str) -> tuple[Net, train.Variables]:
        net, variables = in_float(line)
        begin = []
        for seed in range(config.seeds):
            folded, params, state = quantize.fold(net, *of_seed(variables, seed), shape)
            ready, params, state = quantize.quantized(
                folded, params, state, EIGHT_BITS, shape
            )
            state = quantize.calibrate(ready, params, state, calibration)
            begin.append((params, state))

        def tune() -> train.Variables:
            fresh = Net(lambda *_: jax.tree.map(jnp.array, begin[0]), ready.apply)
            schedule = optax.cosine_decay_schedule(
                config.tune_rate, config.tune_epochs * steps
            )
            return learn(
                fresh,
                **lesson(line),
                tx=optax.adam(schedule),
                epochs=config.tune_epochs,
                batch_size=config.batch_size,
                start=stack(begin),
                name=f"{line}-int8",
            ).variables

        if not config.tune_epochs:
            return ready, stack(begin)
        return ready, kept(f"{line}-int8", tune)

    # All of it, measured before a file is written.
    kept("teacher", train_teacher)
    rows: list[dict[str, Any]] = []
    nets = {}
    for kind, make in {"float": in_float, "int8": in_int8}.items():
        for line in LINES:
            net, variables = make(line)
            each = [of_seed(variables, seed) for seed in range(config.seeds)]
            accuracy = [accuracy_of(net, v, test, plain) for v in each]
            nets[line, kind] = net, each
            rows.append({"line": line, "kind": kind, "network": accuracy})
            log({"run": f"{line}, {kind}", "accuracy": accuracy})
    packages = ("litert_converter", "ai_edge_litert", "onnx", "onnxruntime")
    if missing := [name for name in packages if not importlib.util.find_spec(name)]:
        print(f"no files without {', '.join(missing)}: install '.[litert,onnx]', then")
        print(f"  python -m experiments.tiny --resume {directory} ...")
        return rows

    # The files, measured on every test image; latencies of those that take turns.
    writers = {"tflite": export.tflite, "onnx": export.onnx}
    for row, (suffix, write) in itertools.product(rows, writers.items()):
        net, each = nets[row["line"], row["kind"]]
        stem, found = f"{row['line']}-{row['kind']}", []
        for seed, v in enumerate(each):
            path = directory / f"{stem}-{seed}.{suffix}"
            write(net, *v, path, image_shape=shape)
            found.append(export.evaluate(export.load(path), test, view=plain))
        row[suffix] = [one["accuracy"] for one in found]
        row[f"{suffix}_bytes"] = (directory / f"{stem}-0.{suffix}").stat().st_size
    for suffix in writers:
        files = [directory / f"{row['line']}-{row['kind']}-0.{suffix}" for row in rows]
        times = export.latency(files, repeats=config.repeats)
        for row, milliseconds in zip(rows, times, strict=True):
            row[f"{suffix}_ms"] = milliseconds

    # The table.
    of_teacher = store.read_json(directory / "teacher.json", "delete teacher")
    of_teacher = of_teacher["accuracy"]
    shown = [
        {
            "student": f"{row['line']}, {row['kind']}",
            "network %": report.mean_sd(row["network"], scale=100),
            ".tflite %": report.mean_sd(row["tflite"], scale=100),
            ".onnx %": report.mean_sd(row["onnx"], scale=100),
            ".tflite bytes": f"{row['tflite_bytes']:,}",
            ".onnx bytes": f"{row['onnx_bytes']:,}",
            "LiteRT ms": f"{row['tflite_ms']:.3f}",
            "ONNX Runtime ms": f"{row['onnx_ms']:.3f}",
        }
        for row in rows
    ]
    common.write_report(
        directory,
        f"tiny: {config.student} taught by {config.teacher}, {config.dataset}, "
        f"{len(test.images):,} {config.evaluate_on} images, {config.seeds} seeds",
        {common.LAST: shown},
        [
            f"Accuracy of the teacher: {100 * of_teacher:.2f} %.",
            "Bytes and latency (one image, one thread, the median of "
            f"{config.repeats} calls) are those of the first seed's file.",
        ],
    )
    return rows


def of_seed(variables: train.Variables, seed: int) -> train.Variables:
    """Return the variables of one of several seeds."""
    return jax.tree.map(lambda leaf: leaf[seed], variables)


def stack(variables: Sequence[train.Variables]) -> train.Variables:
    """Give variables of several seeds a leading axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *variables)


def accuracy_of(
    net: Net, variables: train.Variables, test: data.Dataset, view: augment.View
) -> float:
    """Measure a network on the images, as it is evaluated."""
    frozen = distill.frozen(net)
    predict = jax.jit(lambda v, x: evaluate.predict(frozen, v, x, view=view))
    logits = np.asarray(predict(variables, data.on_device(test)))
    return float(np.mean(np.argmax(logits, -1) == test.labels))


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
