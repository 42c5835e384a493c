"""Pruning: each method at each target, then fine-tuning by distillation.

A network is trained, or taken from a checkpoint. Each method removes channels until the
network costs no more than a fraction of what it did; what is left is fine-tuned, taught
by the whole network. Beside them the whole network itself is fine-tuned in the same way
for as long. Seeds differ in the order and the crops of the images. Decisions are made
on the held-out validation images, which nothing is trained on, with batch statistics
that each candidate has from some training images.

    python -m experiments.prune --dataset digits --net resnet8 --preset short
    python -m experiments.prune --net resnet20 --preset short --archives DIR
    python -m experiments.prune --net vgg8 --dataset cifar100 --fractions 0.7 0.5

Methods: "uniform" (one ratio), "sensitivity" (equal predicted drop of the validation
accuracy), "search" (simulated annealing), "random" (its baseline at equal budget) and
"global" (one threshold on normalised scores). Latency is of one image on one thread, by
LiteRT where the extra `litert` is installed, else by XLA; the table says which. A run
is resumed, or given more methods and fractions, with `--resume runs/prune/TIME`.
"""

import dataclasses
import importlib.util
import pathlib
import re
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments import common
from jaxkd import (
    checkpoint,
    data,
    distill,
    export,
    losses,
    models,
    recipes,
    report,
    train,
)
from jaxkd.compress import prune
from jaxkd.data import augment

WHOLE = "not pruned"
METHODS = Literal["uniform", "sensitivity", "search", "random", "global"]
PRESETS: dict[str, dict[str, Any]] = {
    "full": {"epochs": 200, "tune_epochs": 40},
    "short": {
        "epochs": 8,
        "train_images": 20_000,
        "tune_epochs": 2,
        "tune_images": 10_000,
    },
}


@dataclasses.dataclass(frozen=True)
class Config(common.Config):
    """Every field can be given on the command line; None is the preset's."""

    net: str = "resnet20"  # of the zoo
    dataset: str = "cifar10"
    preset: Literal["full", "short"] = "full"
    methods: tuple[METHODS, ...] = ("uniform", "sensitivity", "search", "global")
    fractions: tuple[float, ...] = (0.5,)  # of the cost, at most
    cost: Literal["macs", "parameters", "bytes", "latency"] = "macs"
    criterion: Literal["l1", "l2", "batch_norm_scale", "geometric_median"] = "l1"
    round_to: int = 8  # channels are removed in groups of this size
    epochs: int | None = None  # of the network's own training
    train_images: int | None = None
    learning_rate: float | None = None  # None: .01 for Mobile- and ShuffleNets, or .05
    tune_epochs: int | None = None  # of fine-tuning
    tune_images: int | None = None
    tune_rate: float = 0.01  # the learning rate of fine-tuning
    batch_size: int = 64
    temperature: float = 4.0
    hard_weight: float = 0.1  # of the labels
    soft_weight: float = 0.9  # of the whole network
    budget: int = 100  # candidates of a search
    least: float = 0.8  # the part of the allowed cost that its candidates use
    eval_rate: float = 0.5  # share of the validation images that decide
    recalibrate: int = 1000  # training images of BatchNorm's new statistics; 0: the old
    reuse: str | None = None  # a checkpoint {"params", "state"} of the network


def main(config: Config) -> list[dict[str, Any]]:
    """Run the experiment; return what was measured of each pruned network."""
    preset = PRESETS[config.preset].items()
    missing = {k: v for k, v in preset if getattr(config, k) is None}
    config = dataclasses.replace(config, **missing)

    # The data: of the training, of fine-tuning, of decisions, and to measure on.
    where: dict[str, Any] = {"archives": config.archives, "data_dir": config.data_dir}
    with common.refusing("no data"):
        rest, validation, test = (
            data.load(config.dataset, split, **where)
            for split in ("train_rest", "validation", config.evaluate_on)
        )
    few = lambda n: (
        rest if n is None or n >= len(rest.images) else data.subset(rest, n, seed=0)
    )
    images, tuning = few(config.train_images), few(config.tune_images)
    shape = rest.images.shape[1:]
    normalise = augment.normalise(*data.channel_statistics(rest))
    plain = augment.chain(augment.to_float(), normalise)
    view = augment.chain(augment.flip(), augment.crop(shape[0] // 8), plain)

    # The network and how it is trained; wrong options end the run here.
    on_cpu = jax.default_backend() == "cpu"
    with common.refusing(f"networks are {', '.join(models.ZOO)}; there is no"):
        dtype = None if on_cpu else jnp.bfloat16
        net = models.ZOO[config.net](classes=rest.num_classes, dtype=dtype)
    kd = distill.on_logits(losses.kd, temperature=config.temperature)
    spec: distill.Spec = {
        "ce": (config.hard_weight, distill.on_labels(losses.cross_entropy)),
        "kd": (config.soft_weight, kd),
    }

    def budget(examples: data.Dataset, epochs: int | None, rate: float) -> dict:
        steps = len(examples.images) // config.batch_size
        tx = recipes.Budget(epochs or 0, steps, rate).optimizer()
        return {"tx": tx, "epochs": epochs}

    slow = config.net.startswith(("mobilenet", "shufflenet"))
    rate = config.learning_rate or (0.01 if slow else 0.05)
    of_training = budget(images, config.epochs, rate)
    of_tuning = budget(tuning, config.tune_epochs, config.tune_rate)
    how: dict[str, Any] = {"view": view, "batch_size": config.batch_size}
    with common.refusing("cannot prune"):
        x = jax.ShapeDtypeStruct((1, *shape), np.float32)
        params, state = jax.eval_shape(net.init, jax.random.key(0), x)
        plan = prune.analyse_net(net, params, state, shape)
        kind = "macs" if config.cost == "latency" else config.cost  # unknown of shapes
        for fraction in config.fractions:
            prune.target(plan, kind, fraction=fraction, round_to=config.round_to)
        saved = None if config.reuse is None else checkpoint.load(config.reuse)
    tx, resident = of_tuning["tx"], data.on_device(tuning)
    common.rehearse(net, resident, net, spec=spec, tx=tx, **how)

    # The whole network, which is kept for other runs; its groups of channels.
    directory, log = common.start("prune", config, may_change=["methods", "fractions"])
    how |= {"log": log, "together": False, "test": test, "test_view": plain}
    if saved is None:
        kept = f"{config.dataset}-{config.net}-{config.epochs}-epochs"
        seen = f"{len(images.images)}-images-of-{images.split}"
        run = train.learn(
            net,
            images,
            seeds=1,
            checkpoints=pathlib.Path(config.out) / "teachers" / f"{kept}-{seen}",
            identity={"learning_rate": rate, "bfloat16": not on_cpu},
            name="whole",
            **of_training,
            **how,
        )
        whole = run.seed(0)
    else:
        whole = (saved["params"], saved["state"])
    plan = prune.analyse_net(net, *whole, shape)
    (directory / "groups.txt").write_text(plan.listing())
    scores = np.asarray(getattr(prune.criteria, config.criterion)(plan, whole[0]))
    measure = lambda on, **options: prune.masked_metric(
        net, plan, whole, data.on_device(on), view=plain, **options
    )
    some = None
    if config.recalibrate:
        n = min(config.recalibrate, len(images.images))
        some = data.on_device(data.subset(images, n, seed=0))
    decides = measure(validation, eval_rate=config.eval_rate, recalibrate_on=some)
    before = measure(test)

    # LiteRT where its packages are installed, else XLA.
    packages = ("litert_converter", "ai_edge_litert")
    litert = all(importlib.util.find_spec(package) for package in packages)
    write: Any = export.tflite if litert else export.stablehlo
    suffix = "tflite" if litert else "stablehlo"

    def latency(dropped: np.ndarray) -> float:
        path = directory / f"candidate.{suffix}"
        small = plan.apply(whole, dropped)
        write(prune.resized(net), *small, path, image_shape=shape)
        return export.latency([path])[0]

    def choose(method: str, fraction: float, name: str) -> np.ndarray:
        """Choose the units to remove."""
        target = prune.target(
            plan,
            config.cost,
            fraction=fraction,
            round_to=config.round_to,
            measure=latency if config.cost == "latency" else None,
        )
        if method == "uniform":
            return prune.uniform(plan, scores, target)
        if method == "global":
            return prune.global_threshold(plan, scores, target)
        if method == "sensitivity":
            file = directory / "sensitivity.json"
            return prune.sensitivity(plan, scores, target, decides, file=file)
        return prune.search(
            plan,
            scores,
            target,
            decides,
            controller=prune.annealing if method == "search" else prune.random,
            budget=config.budget,
            least=config.least,
            journal=directory / f"{name}.jsonl",
        ).dropped

    # Each method at each fraction: remove, check, fine-tune.
    jobs = [(m, f) for f in config.fractions for m in config.methods]
    look = jax.jit(lambda x: plain(jax.random.key(0), {"image": x})["image"])
    results = []
    for method, fraction in [(WHOLE, 1.0), *jobs]:
        name = method if method == WHOLE else f"{method} {fraction:g}"
        slug = re.sub("[^a-z0-9]+", "_", name)
        dropped = np.zeros(0, np.int64)
        if method != WHOLE:
            with common.refusing(f"cannot prune by {method}"):
                dropped = choose(method, fraction, slug)
        prune.check_net(net, plan, *whole, dropped, look(test.images[:64]))
        run = train.learn(
            prune.from_variables(net, plan.apply(whole, dropped)),
            tuning,
            spec=spec,
            teacher=(net, whole),
            seeds=config.seeds,
            checkpoints=directory / slug,
            name=name,
            **of_tuning,
            **how,
        )
        path = directory / f"{slug}.{suffix}"
        write(prune.resized(net), *run.seed(0), path, image_shape=shape)
        results.append(
            {
                "name": name,
                "before": before(plan.keep(dropped)),
                "validation": decides(plan.keep(dropped)),
                "accuracy": run.final().tolist(),
                "parameters": plan.params(dropped),
                "macs": plan.macs(dropped),
                "bytes": plan.bytes(dropped),
                "file": path.name,
            }
        )

    # The table; the files take turns.
    times = export.latency([directory / row["file"] for row in results])
    first = results[0]
    rows = [
        {
            "network": row["name"],
            "before %": f"{100 * row['before']:.2f}",
            "validation %": f"{100 * row['validation']:.2f}",
            "fine-tuned %": report.mean_sd(row["accuracy"], scale=100),
            "difference": report.gain(row["accuracy"], first["accuracy"]),
            "parameters": f"{row['parameters']:,}",
            "MACs": f"{row['macs']:,} ({row['macs'] / first['macs']:.0%})",
            "bytes": f"{row['bytes']:,}",
            f"latency ms ({'LiteRT' if litert else 'XLA'})": f"{time:.3f}",
            "times faster": f"{times[0] / time:.2f}",
        }
        for row, time in zip(results, times, strict=True)
    ]
    percent = {row["name"]: 100 * np.array(row["accuracy"]) for row in results}
    middle, axis = float(percent[WHOLE].mean()), "accuracy after fine-tuning, %"
    report.dots(directory / "accuracy.png", percent, x_label=axis, line=middle)
    common.write_report(
        directory,
        f"prune: {config.net} on {config.dataset}, {len(test.images):,} "
        f"{config.evaluate_on} images, {config.seeds} seeds of fine-tuning",
        {common.LAST: rows},
        [
            "Before fine-tuning: on the same images with the statistics of the whole "
            "network; and on the validation images, as it was measured to decide.",
            "Differences are to the network that was not pruned and was fine-tuned for "
            "as long, paired, ± standard error.",
            "Latency is of one image on one thread, the median of 50 calls.",
        ],
    )
    return results


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
