"""Pruning: each method at each target, then fine-tuning by distillation.

A network is trained. Each method removes channels until it costs no more than a
fraction of what it did; what is left is fine-tuned, taught by the whole network. Beside
them the whole network itself is fine-tuned in the same way for as long. Seeds differ in
the order and the crops of the images. Decisions are made on the held-out validation
images, which nothing is trained on, with batch statistics that each candidate has from
some training images.

    python -m experiments.prune --archives DIR
    python -m experiments.prune --methods uniform sensitivity search random global
    python -m experiments.prune --dataset digits --train-images 1000 --tune-images 1000

Methods: "uniform" (one ratio), "sensitivity" (equal predicted drop of the validation
accuracy), "search" (simulated annealing), "random" (its baseline at equal budget) and
"global" (one threshold on normalised scores). A run is resumed, or given more methods
and fractions, with `--resume runs/prune/TIME`. For one pruned network there is
`jaxkd run cifar10-prune`.
"""

import dataclasses
import pathlib
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments import common
from jaxkd import data, distill, export, losses, models, recipes, report, train
from jaxkd.compress import prune
from jaxkd.data import augment

WHOLE = "not pruned"
METHODS = Literal["uniform", "sensitivity", "search", "random", "global"]


@dataclasses.dataclass(frozen=True)
class Config(common.Config):
    """Every field can be given on the command line."""

    net: str = "resnet8"  # of the zoo
    dataset: str = "cifar10"
    methods: tuple[METHODS, ...] = ("uniform",)
    fractions: tuple[float, ...] = (0.5,)  # of the cost, at most
    cost: Literal["macs", "parameters", "bytes"] = "macs"
    round_to: int = 8  # channels are removed in groups of this size
    train_images: int = 20_000
    epochs: int = 8  # of the network's own training
    learning_rate: float = 0.05  # .01 for Mobile- and ShuffleNets
    tune_images: int = 20_000
    tune_epochs: int = 5  # of fine-tuning
    tune_rate: float = 0.02
    batch_size: int = 64
    temperature: float = 4.0
    hard_weight: float = 0.1  # of the labels
    soft_weight: float = 0.9  # of the whole network
    budget: int = 60  # candidates of a search
    recalibrate: int = 1000  # training images of BatchNorm's new statistics


def main(config: Config) -> list[dict[str, Any]]:
    """Run the experiment; return what was measured of each pruned network."""
    # The data: of the training, of fine-tuning, of decisions, and to measure on.
    rest, validation, test = common.load_three(config, config.dataset)
    images = common.some(rest, config.train_images)
    tuning = common.some(rest, config.tune_images)
    statistics = common.some(images, config.recalibrate)
    shape = rest.images.shape[1:]
    normalise = augment.normalise(*data.channel_statistics(rest))
    plain = augment.chain(augment.to_float(), normalise)
    view = augment.chain(augment.flip(), augment.crop(shape[0] // 8), plain)

    # The network, the objective of fine-tuning, and how both are trained.
    on_cpu = jax.default_backend() == "cpu"
    with common.refusing(f"networks are {', '.join(models.ZOO)}; there is no"):
        dtype = None if on_cpu else jnp.bfloat16
        net = models.ZOO[config.net](classes=rest.num_classes, dtype=dtype)
    kd = distill.on_logits(losses.kd, temperature=config.temperature)
    spec: distill.Spec = {
        "ce": (config.hard_weight, distill.on_labels(losses.cross_entropy)),
        "kd": (config.soft_weight, kd),
    }
    how: dict[str, Any] = {"view": view, "batch_size": config.batch_size}

    def budget(examples: data.Dataset, epochs: int, rate: float) -> dict[str, Any]:
        steps = len(examples.images) // config.batch_size
        return {"tx": recipes.Budget(epochs, steps, rate).optimizer(), "epochs": epochs}

    of_tuning = budget(tuning, config.tune_epochs, config.tune_rate)
    with common.refusing("cannot prune"):
        x = jax.ShapeDtypeStruct((1, *shape), np.float32)
        params, state = jax.eval_shape(net.init, jax.random.key(0), x)
        plan = prune.analyse_net(net, params, state, shape)
        for fraction in config.fractions:
            prune.target(plan, config.cost, fraction=fraction, round_to=config.round_to)
    tx, resident = of_tuning["tx"], data.on_device(tuning)
    common.rehearse(net, resident, net, spec=spec, tx=tx, **how)

    # The whole network, kept for other runs; its groups of channels and their scores.
    directory, log = common.start("prune", config, may_change=["methods", "fractions"])
    how |= {"log": log, "together": False, "test": test, "test_view": plain}
    kept = f"{config.dataset}-{config.net}-{config.epochs}-epochs"
    seen = f"{len(images.images)}-images-of-{images.split}"
    whole = train.learn(
        net,
        images,
        seeds=1,
        checkpoints=pathlib.Path(config.out) / "teachers" / f"{kept}-{seen}",
        identity={"learning_rate": config.learning_rate, "bfloat16": not on_cpu},
        name="whole",
        **budget(images, config.epochs, config.learning_rate),
        **how,
    ).seed(0)
    plan = prune.analyse_net(net, *whole, shape)
    (directory / "groups.txt").write_text(plan.listing())
    scores = np.asarray(prune.criteria.l1(plan, whole[0]))
    decides = prune.masked_metric(
        net,
        plan,
        whole,
        data.on_device(validation),
        view=plain,
        eval_rate=0.5,
        recalibrate_on=data.on_device(statistics),
    )
    before = prune.masked_metric(net, plan, whole, data.on_device(test), view=plain)

    def choose(method: str, target: prune.Target, name: str) -> np.ndarray:
        """Choose the units to remove."""
        if method == "uniform":
            return prune.uniform(plan, scores, target)
        if method == "global":
            return prune.global_threshold(plan, scores, target)
        if method == "sensitivity":
            file = directory / "sensitivity.json"
            return prune.sensitivity(plan, scores, target, decides, file=file)
        controller = prune.annealing if method == "search" else prune.random
        journal = directory / f"{name}.jsonl"
        return prune.search(
            plan, scores, target, decides,
            controller=controller, budget=config.budget, least=0.8, journal=journal,
        ).dropped  # fmt: skip

    # Each method at each fraction: remove, check, fine-tune, write a file.
    jobs = [(WHOLE, 1.0), *((m, f) for f in config.fractions for m in config.methods)]
    look = jax.jit(lambda x: plain(jax.random.key(0), {"image": x})["image"])
    results, files = [], []
    for method, fraction in jobs:
        name = method if method == WHOLE else f"{method} {fraction:g}"
        slug = name.replace(" ", "_").replace(".", "_")
        dropped = np.zeros(0, np.int64)
        if method != WHOLE:
            target = prune.target(
                plan, config.cost, fraction=fraction, round_to=config.round_to
            )
            with common.refusing(f"cannot prune by {method}"):
                dropped = choose(method, target, slug)
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
        small = prune.resized(net), *run.seed(0)
        file = export.litert_or_xla(*small, directory / slug, image_shape=shape)
        files.append(file.path)
        results.append(
            {
                "name": name,
                "before": before(plan.keep(dropped)),
                "validation": decides(plan.keep(dropped)),
                "accuracy": run.final().tolist(),
                "parameters": plan.params(dropped),
                "macs": plan.macs(dropped),
                "bytes": plan.bytes(dropped),
            }
        )

    # The table; latencies are of one image on one thread, and the files take turns.
    times = export.latency(files)
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
            "ms": f"{time:.3f}",
        }
        for row, time in zip(results, times, strict=True)
    ]
    common.write_report(
        directory,
        f"prune: {config.net} on {config.dataset}, {len(test.images):,} "
        f"{config.evaluate_on} images, {config.seeds} seeds of fine-tuning",
        {common.LAST: rows},
    )
    return results


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
