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
LiteRT where the extra `litert` is installed, else by XLA; the table says which.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import tyro
from rich.console import Console

from experiments import (
    _contest as contests,
    _protocol as protocol,
    _prune_report as reports,
)
from experiments._pair import refusing
from jaxkd import _check, checkpoint, data, distill, log, losses
from jaxkd.compress import prune
from jaxkd.data import augment
from jaxkd.models import Net
from jaxkd.schemes import staged

WHOLE = "not pruned"
PRESETS = {
    "full": (protocol.Protocol(epochs=200), protocol.Protocol(epochs=40)),
    "short": (
        protocol.Protocol(epochs=8, train_images=20_000),
        protocol.Protocol(epochs=2, train_images=10_000),
    ),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Every field can be given on the command line; None is the preset's."""

    net: str = "resnet20"  # of the zoo
    dataset: str = "cifar10"
    preset: Literal["full", "short"] = "full"
    archives: str | None = None  # folder of the official archives
    data_dir: str | None = None  # where prepared data are kept
    methods: tuple[str, ...] = ("uniform", "sensitivity", "search", "global")
    fractions: tuple[float, ...] = (0.5,)  # of the cost that is to remain
    cost: Literal["macs", "parameters", "bytes", "latency"] = "macs"
    criterion: Literal["l1", "l2", "batch_norm_scale", "geometric_median"] = "l1"
    round_to: int = 8  # channels
    epochs: int | None = None  # of the network's own training
    train_images: int | None = None
    learning_rate: float | None = None
    tune_epochs: int | None = None  # of fine-tuning
    tune_images: int | None = None
    tune_rate: float = 0.01  # the learning rate of fine-tuning
    batch_size: int = 64
    temperature: float = 4.0
    hard_weight: float = 0.1  # of the labels
    soft_weight: float = 0.9  # of the whole network
    seeds: int = 3  # of fine-tuning
    budget: int = 100  # candidates of a search
    least: float = 0.8  # the part of the allowed cost that its candidates use up
    eval_rate: float = 0.5  # share of the validation images that decide
    recalibrate: int = 1000  # training images of BatchNorm's new statistics; 0: the old
    reuse: str | None = None  # a checkpoint {"params", "state"} of the network
    evaluate_on: Literal["test", "validation"] = "test"
    out: str = "runs"
    resume: str | None = None  # the directory of a run that was cut short

    def protocols(self) -> tuple[protocol.Protocol, protocol.Protocol]:
        """Of the training and of the fine-tuning."""
        whole, tuning = PRESETS[self.preset]
        first = {
            "epochs": self.epochs,
            "train_images": self.train_images,
            "learning_rate": self.learning_rate,
            "batch_size": self.batch_size,
        }
        then = {
            "epochs": self.tune_epochs,
            "train_images": self.tune_images,
            "learning_rate": self.tune_rate,
            "batch_size": self.batch_size,
        }
        return _with(whole, first), _with(tuning, then)


def _with(before: protocol.Protocol, said: dict[str, Any]) -> protocol.Protocol:
    """The protocol with what is said, None being nothing."""
    given = {name: value for name, value in said.items() if value is not None}
    return dataclasses.replace(before, **given)


class Bench(NamedTuple):
    """What every method is given.

    Attributes:
      net: the network.
      variables: its trained `(params, state)`.
      plan: of it.
      scores: of its units.
      metric: on the validation images; what decides.
      config: the experiment's.
      directory: of the run.
    """

    net: Net
    variables: tuple[Any, Any]
    plan: prune.Plan
    scores: np.ndarray
    metric: prune.Metric
    config: Config
    directory: pathlib.Path


Method = Callable[[Bench, prune.Target, str], np.ndarray]


def uniform(bench: Bench, target: prune.Target, name: str) -> np.ndarray:
    """One ratio for all groups."""
    return prune.uniform(bench.plan, bench.scores, target)


def sensitivity(bench: Bench, target: prune.Target, name: str) -> np.ndarray:
    """Equal predicted drop of the validation accuracy."""
    file = bench.directory / "sensitivity.json"
    return prune.sensitivity(bench.plan, bench.scores, target, bench.metric, file=file)


def everywhere(bench: Bench, target: prune.Target, name: str) -> np.ndarray:
    """One threshold on normalised scores."""
    return prune.global_threshold(bench.plan, bench.scores, target)


def _searched(make: Any) -> Method:
    def method(bench: Bench, target: prune.Target, name: str) -> np.ndarray:
        journal = bench.directory / f"{protocol.folder_name(name)}.jsonl"
        return prune.search(
            bench.plan,
            bench.scores,
            target,
            bench.metric,
            controller=make,
            budget=bench.config.budget,
            least=bench.config.least,
            journal=journal,
        ).dropped

    return method


METHODS: dict[str, Method] = {
    "uniform": uniform,
    "sensitivity": sensitivity,
    "search": _searched(prune.annealing),
    "random": _searched(prune.random),
    "global": everywhere,
}


def worlds(config: Config) -> tuple[protocol.World, protocol.World, Any]:
    """Data for training, data for fine-tuning, and the validation images.

    Raises:
      SystemExit: if they cannot be had; the message says what to do.
    """
    where = {"archives": config.archives, "data_dir": config.data_dir}
    with refusing("no data"):
        load = lambda split: data.load(config.dataset, split, **where)
        rest, validation = load("train_rest"), load("validation")
        test = load(config.evaluate_on)
    plain = augment.chain(
        augment.to_float(), augment.normalise(*data.channel_statistics(rest))
    )
    padding = rest.images.shape[1] // 8
    view = augment.chain(augment.flip(), augment.crop(padding), plain)
    of_test = data.on_device(test)

    def world(n: int | None) -> protocol.World:
        n = None if n is None or n >= len(rest.images) else n
        few = rest if n is None else data.subset(rest, n, seed=0)
        return protocol.World(few, test, data.on_device(few), of_test, view, plain)

    first, then = (world(p.train_images) for p in config.protocols())
    return first, then, data.on_device(validation)


def check(config: Config, net: Net, image_shape: tuple[int, ...]) -> None:
    """Refuses, before anything is trained, what cannot work.

    Raises:
      SystemExit: with the reason.
    """
    with refusing("cannot prune"):
        for method in config.methods:
            _check.one_of(*METHODS)("methods", method)
        _check.whole(1)("seeds", config.seeds)
        _check.whole(1)("budget", config.budget)
        _check.whole(0)("recalibrate", config.recalibrate)
        x = jax.ShapeDtypeStruct((1, *image_shape), np.float32)
        params, state = jax.eval_shape(net.init, jax.random.key(0), x)
        plan = prune.analyse_net(net, params, state, image_shape)
        for fraction in config.fractions:
            # Latency cannot be known of shapes; its target is checked when it is.
            kind = "macs" if config.cost == "latency" else config.cost
            prune.target(plan, kind, fraction=fraction, round_to=config.round_to)


def trained(
    config: Config, net: Net, world: protocol.World, write: log.Log
) -> tuple[Any, Any]:
    """The network's variables: those of `reuse`, or of a training that is kept."""
    if config.reuse is not None:
        with refusing("cannot reuse"):
            saved = checkpoint.load(config.reuse)
            return saved["params"], saved["state"]
    _, variables, _ = protocol.trained_teacher(
        config.net, world, config.protocols()[0], out=config.out, seed=0, write=write
    )
    return variables


def bench_of(
    config: Config,
    net: Net,
    variables: Any,
    world: protocol.World,
    validation: Any,
    directory: pathlib.Path,
) -> Bench:
    """Analyses and scores a trained network."""
    params, state = variables
    plan = prune.analyse_net(net, params, state, world.train.images.shape[1:])
    (directory / "groups.txt").write_text(plan.listing())
    scores = getattr(prune.criteria, config.criterion)(plan, params)
    some = None
    if config.recalibrate:
        n = min(config.recalibrate, len(world.train.images))
        some = data.on_device(data.subset(world.train, n, seed=0))
    metric = prune.masked_metric(
        net,
        plan,
        variables,
        validation,
        view=world.test_view,
        eval_rate=config.eval_rate,
        recalibrate_on=some,
    )
    scores = np.asarray(scores)
    return Bench(net, variables, plan, scores, metric, config, directory)


def target_of(bench: Bench, fraction: float, world: protocol.World) -> prune.Target:
    """The cost that is allowed; latency is measured of files, each width once."""
    shape = world.train.images.shape[1:]

    def milliseconds(dropped: np.ndarray) -> float:
        variables = bench.plan.apply(bench.variables, dropped)
        path = bench.directory / f"candidate.{reports.runtime().suffix}"
        reports.export_net(bench.net, variables, shape, path)
        return reports.latency([path])[0]

    return prune.target(
        bench.plan,
        bench.config.cost,
        fraction=fraction,
        round_to=bench.config.round_to,
        measure=milliseconds if bench.config.cost == "latency" else None,
    )


def tuned(
    bench: Bench,
    name: str,
    dropped: np.ndarray,
    world: protocol.World,
    before: prune.Metric,
    write: log.Log,
) -> dict[str, Any]:
    """Removes, checks, fine-tunes and keeps: one row of the table."""
    plan, config = bench.plan, bench.config
    _, tuning = config.protocols()
    examples = min(64, len(world.train.images))
    batch = jax.tree.map(lambda a: a[:examples], world.resident_test)
    x = world.test_view(jax.random.key(0), batch)["image"]
    seen = prune.check_net(bench.net, plan, *bench.variables, dropped, x)
    tx = protocol.optimiser(
        tuning, config.tune_rate, tuning.epochs, len(world.train.images)
    )
    kd = distill.on_logits(losses.kd, temperature=config.temperature)
    spec = {
        "ce": (config.hard_weight, distill.on_labels(losses.cross_entropy)),
        "kd": (config.soft_weight, kd),
    }
    run = protocol.learn(
        name,
        world,
        prune.from_variables(bench.net, plan.apply(bench.variables, dropped)),
        [staged.Stage("fine-tuning", spec, tuning.epochs, tx)],
        protocol=tuning,
        seeds=range(config.seeds),
        write=write,
        teacher=distill.frozen(bench.net),
        teacher_variables=bench.variables,
        every_epoch=False,
    )
    params, state = run.variables
    folder = bench.directory / protocol.folder_name(name)
    checkpoint.save(folder, {"params": params, "state": state})
    one = jax.tree.map(lambda a: a[0], run.variables)
    path = folder.with_suffix(f".{reports.runtime().suffix}")
    reports.export_net(bench.net, one, world.train.images.shape[1:], path)
    groups = zip(plan.groups, plan.kept(dropped), strict=True)
    return {
        "before": round(100 * before(plan.keep(dropped)), 4),
        "accuracy": (100 * run.accuracy.astype(float)).round(4).tolist(),
        "parameters": plan.params(dropped),
        "macs": plan.macs(dropped),
        "bytes": plan.bytes(dropped),
        "file": path.name,
        "kept": {group.name: int(k) for group, k in groups},
        "difference": seen.difference,
        "validation": round(100 * bench.metric(plan.keep(dropped)), 4),
        "minutes": round(run.minutes, 2),
    }


def main(config: Config) -> list[dict[str, Any]]:
    """Runs the experiment; returns the rows of the table."""
    world, tuning_world, validation = worlds(config)
    net = protocol.network(config.net, world.train.num_classes)
    check(config, net, world.train.images.shape[1:])
    directory, write = contests.opened("prune", config)
    variables = trained(config, net, world, write)
    bench = bench_of(config, net, variables, world, validation, directory)
    before = prune.masked_metric(
        net, bench.plan, variables, world.resident_test, view=world.test_view
    )
    jobs = {WHOLE: ("", 1.0)} | {
        f"{method} {fraction:g}": (method, fraction)
        for fraction in config.fractions
        for method in config.methods
    }
    results = directory / "results.jsonl"
    found = contests.finished(results)
    done = {row["name"] for row in found}
    for name, (method, fraction) in jobs.items():
        if name in done:
            continue
        with refusing(f"cannot prune by {method}"):
            none = np.zeros(0, np.int64)
            target = target_of(bench, fraction, world) if method else None
            dropped = METHODS[method](bench, target, name) if target else none
        row = {"name": name, "method": method, "fraction": fraction}
        row |= tuned(bench, name, dropped, tuning_world, before, write)
        found.append(row)
        with results.open("a") as file:
            file.write(json.dumps(row) + "\n")
        Console(stderr=True).print(f"{name}: {row['before']} then {row['accuracy']}")
    return reports.finish(config, directory, found, len(world.test.images))


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
