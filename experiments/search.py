"""Architecture search: a cheaper network that is no worse than the usual one.

The space is `search.resnet_space` around an 8-layer ResNet, the base; or Light-NAS' 30
positions around MobileNetV2. Candidates may cost at most `--share` of the base's
multiply-accumulates. Each is trained for a few epochs, by default from the soft labels
of a wide network of the same space, and rewarded by its accuracy on the held-out slice
of the training set. The best few are trained again from several seeds, and the best of
these is chosen. It and the base are then trained from other seeds and tested: with the
search's short training, and with a longer distillation.

    python -m experiments.search --preset short --archives DIR
    python -m experiments.search --dataset cifar100 --controller evolve
    python -m experiments.search --dataset digits --preset short
    python -m experiments.search --preset short --resume runs/search/TIME

Every result is kept as soon as it is there: `--resume` goes on where a run was cut
short, to the same candidates. `--preset short` is for a CPU. Needs the official
archives: in DIR, or from the network; digits needs none.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
import tyro

from experiments import (
    _outcome as outcomes,
    _pair as pair,
    _search_report as reports,
)
from jaxkd import checkpoint, data, distill, log, train
from jaxkd.compress import search
from jaxkd.data import augment
from jaxkd.models import Net

# What `--preset` stands for, where a field is None.
PRESETS: dict[str, dict[str, Any]] = {
    "full": {
        "budget": 200,
        "candidate_epochs": 5,
        "epochs": 60,
        "teacher_epochs": 60,
        "train_images": None,
        "stem_strides": 1,
        "augmented": True,
    },
    "short": {
        "budget": 30,
        "candidate_epochs": 3,
        "epochs": 6,
        "teacher_epochs": 6,
        "train_images": 6000,
        "stem_strides": 2,
        "augmented": False,
    },
}
# Candidates, finalists and tested networks start from different weights, so that none
# is chosen or reported for the luck of its seed.
FIRST_FINAL_SEED, FIRST_TEST_SEED = 50, 100


@dataclasses.dataclass(frozen=True)
class Config:
    """Every field can be given on the command line; None is the preset's."""

    dataset: Literal["cifar10", "cifar100", "digits"] = "cifar10"
    preset: Literal["full", "short"] = "full"
    archives: str | None = None  # folder of the official archives
    data_dir: str | None = None  # where prepared data are kept
    space: Literal["resnet", "mobilenet"] = "resnet"
    controller: Literal["anneal", "evolve", "random"] = "anneal"
    evaluator: Literal["distillation", "labels", "naswot", "synflow"] = "distillation"
    share: float = 0.83  # of the base network's MACs, at most
    budget: int | None = None  # candidates
    finalists: int = 4  # of them that are trained from several seeds before choosing
    workers: int = 1  # processes that train candidates
    candidate_epochs: int | None = None
    epochs: int | None = None  # of the longer distillation
    teacher_epochs: int | None = None
    seeds: int = 3  # of the tested networks
    search_seed: int = 0
    train_images: int | None = None  # only so many of them
    stem_strides: int | None = None  # 2 takes a quarter of the MACs
    augmented: bool | None = None  # flips and crops, and a teacher that sees them
    learning_rate: float = 3e-3  # at first; it falls to 0 along half a cosine
    batch_size: int = 100
    temperature: float = 4.0
    hard_weight: float = 0.3  # of the labels
    soft_weight: float = 0.7  # of the teacher
    out: str = "runs"
    resume: str | None = None  # the directory of a run that was cut short


class Lab(NamedTuple):
    """What all parts of one run share.

    Attributes:
      config: with the preset's values filled in.
      task: the training data, and the test data.
      validation: the held-out slice, on the device.
      plain: how networks see images when they are measured.
      space: of the candidates.
      directory: where everything is kept.
    """

    config: Config
    task: pair.Task
    validation: dict[str, jax.Array]
    plain: augment.View
    space: search.Space
    directory: pathlib.Path


def filled(config: Config) -> Config:
    """The same with the preset's values where it says None."""
    preset = PRESETS[config.preset]
    missing = {k: v for k, v in preset.items() if getattr(config, k) is None}
    if config.dataset == "digits" and "stem_strides" in missing:
        missing |= {"stem_strides": 1, "train_images": None, "augmented": False}
    return dataclasses.replace(config, **missing)


def prepare(config: Config, directory: pathlib.Path) -> Lab:
    """Loads the data and lays out the space.

    Raises:
      SystemExit: if an argument or missing data is to blame.
    """
    where = {"archives": config.archives, "data_dir": config.data_dir}
    with pair.refusing("no data"):
        train_set = data.load(config.dataset, "train_rest", **where)
        if config.train_images is not None:
            train_set = data.subset(train_set, config.train_images, seed=0)
        validation = data.load(config.dataset, "validation", **where)
        test = data.load(config.dataset, "test", **where)
    plain = augment.chain(
        augment.to_float(), augment.normalise(*data.channel_statistics(train_set))
    )
    moved = (augment.flip(), augment.crop(4)) if config.augmented else ()
    task = pair.task(train_set, test, augment.chain(*moved, plain))
    make: Any = search.resnet_space
    if config.space == "mobilenet":
        make = search.mobilenet_space
    space = make(train_set.num_classes, stem_strides=config.stem_strides or 1)
    resident = data.on_device(validation)
    return Lab(config, task, resident, plain, space, directory)


def base_tokens(lab: Lab) -> search.Tokens:
    """The usual network of the space."""
    if lab.config.space == "mobilenet":
        return lab.space.tokens(**search.mobilenet_base())
    return lab.space.tokens(**search.resnet_base(lab.space))


def teacher_net(lab: Lab) -> Net:
    """The base with every width and expansion at its greatest."""
    wide = ("stem", "_width", "_expansion")
    tokens = [
        size - 1 if name.endswith(wide) else token
        for name, size, token in zip(
            lab.space.choices, lab.space.sizes, base_tokens(lab), strict=True
        )
    ]
    return lab.space.net(tokens)


def optimiser(config: Config, images: int, epochs: int) -> optax.GradientTransformation:
    """Adam with a learning rate that falls to 0."""
    steps = max(1, images // config.batch_size * epochs)
    return optax.adam(optax.cosine_decay_schedule(config.learning_rate, steps))


def trained_teacher(lab: Lab, write: log.Log) -> tuple[Net, Any]:
    """The teacher and its variables: trained, or read where a run had trained it."""
    config, net = lab.config, teacher_net(lab)
    folder = lab.directory / "teacher"
    like = jax.eval_shape(
        net.init,
        jax.random.key(0),
        train.example(lab.task.resident, lab.plain)["image"],
    )
    if not folder.exists():
        epochs = config.teacher_epochs or 0
        tx = optimiser(config, len(lab.task.train.images), epochs)
        trainer = pair.Trainer(tx, config.batch_size, write, lab.directory, False)
        with pair.refusing("cannot train"):
            trainer("teacher", net, lab.task, seeds=1, epochs=epochs)
    stored = checkpoint.load(folder)
    pick = lambda tree: jax.tree.map(lambda a: jnp.asarray(a[0]), tree)
    params, state = pick(stored["params"]), pick(stored.get("state", {}))
    if jax.tree.map(jnp.shape, params) != jax.tree.map(jnp.shape, like[0]):
        raise SystemExit(f"{folder} holds another network")
    return net, (params, state)


def course(lab: Lab, epochs: int, *, measured_on: Any, taught: bool) -> search.Course:
    """How a network is trained for so many epochs, and on what it is measured."""
    config = lab.config
    tx = optimiser(config, len(lab.task.train.images), epochs)
    plain = search.Course(
        lab.task.resident, measured_on, lab.task.view, lab.plain, tx, config.batch_size
    )
    if not taught:
        return plain
    teacher, variables = trained_teacher(lab, lambda row: None)
    spec = pair.kd_spec(config)
    if config.augmented:
        live = distill.frozen(teacher)
        return plain._replace(spec=spec, teacher=live, teacher_variables=variables)
    task = pair.with_cached_teacher(
        lab.task._replace(view=lab.plain), teacher, variables, lab.directory / "logits"
    )
    return plain._replace(resident=task.resident, spec=spec, teacher=distill.cached)


def evaluator(lab: Lab) -> search.Evaluate:
    """What a candidate is rewarded by."""
    config = lab.config
    if config.evaluator in ("naswot", "synflow"):
        images = train.example(lab.task.resident, lab.plain, 64)["image"]
        return search.proxy(lab.space, images, kind=config.evaluator)
    epochs = config.candidate_epochs or 1
    taught = config.evaluator == "distillation"
    lesson = course(lab, epochs, measured_on=lab.validation, taught=taught)
    return search.short_training(lab.space, lesson, epochs=epochs)


def worker(config: Config, directory: pathlib.Path) -> search.Evaluate:
    """The evaluator of a process of its own."""
    return evaluator(prepare(config, directory))


def controller(
    config: Config, space: search.Space, start: search.Tokens
) -> search.Controller:
    """The one that the Config names."""
    if config.controller == "random":
        return search.random_search(space.sizes)
    if config.controller == "evolve":
        return search.evolve(space.sizes, population=10, tournament=4, start=start)
    # Nothing here depends on the budget: a resumed search may be given a larger one.
    return search.anneal(space.sizes, start, reduce_rate=0.9)


def recipe(config: Config) -> dict[str, Any]:
    """The fields that decide what an evaluation says: they identify its journal."""
    paths = {"archives", "data_dir", "out", "resume"}
    elsewhere = {"workers", "budget", "preset", "share", "controller", "search_seed"}
    apart = paths | elsewhere | {"space", "finalists"}
    fields = dataclasses.asdict(config)
    return {name: value for name, value in fields.items() if name not in apart}


def searched(lab: Lab, limit: search.Limit) -> list[search.Trial]:
    """Runs the search, in this process or in several."""
    config, directory = lab.config, lab.directory
    start = search.within(limit, base_tokens(lab), lab.space.sizes)
    how: dict[str, Any] = {
        "budget": config.budget,
        "feasible": limit.feasible,
        "seed": config.search_seed,
        "journal": directory / "search.jsonl",
        "settings": {**lab.space.settings, **limit.settings, **recipe(config)},
        "ahead": config.workers,
        "progress": partial(say, limit.cost),
    }
    chosen = controller(config, lab.space, start)
    with pair.refusing("cannot search"):
        if config.workers == 1:
            return search.run(chosen, evaluator(lab), **how)
        with search.pool(partial(worker, config, directory), config.workers) as pool:
            return search.run(chosen, search.in_pool, executor=pool, **how)


def say(cost: search.Evaluate, trial: search.Trial) -> None:
    """One line about a candidate."""
    print(
        f"{trial.tokens}: {cost(trial.tokens):,.0f} MACs, reward {trial.reward:.4f}, "
        f"{trial.seconds:.0f} s",
        flush=True,
    )


def listed(
    lab: Lab,
    name: str,
    tokens: Sequence[search.Tokens],
    evaluate: search.Evaluate,
) -> list[search.Trial]:
    """Evaluates these networks; each result is kept at once, under this name."""
    different = list(dict.fromkeys(tokens))
    settings = {**lab.space.settings, **recipe(lab.config)}
    with pair.refusing(f"cannot train ({name})"):
        found = search.run(
            # Without the list in its settings: other networks may join the journal.
            search.in_order(different)._replace(settings={"controller": "listed"}),
            evaluate,
            budget=len(different),
            journal=lab.directory / f"{name}.jsonl",
            settings=settings,
        )
    by_tokens = {trial.tokens: trial for trial in found}
    return [by_tokens[each] for each in tokens]


def best_of_finalists(lab: Lab, found: list[search.Trial]) -> search.Tokens:
    """The best of the best candidates, trained again from several seeds.

    The greatest of many rewards of one seed each is mostly luck. The held-out slice
    decides again; the test set has no part in it.
    """
    config, epochs = lab.config, lab.config.candidate_epochs or 1
    taught = config.evaluator != "labels"
    lesson = course(lab, epochs, measured_on=lab.validation, taught=taught)
    evaluate = search.short_training(
        lab.space,
        lesson,
        epochs=epochs,
        seeds=config.seeds,
        first_seed=FIRST_FINAL_SEED,
    )
    ranked = sorted(found, key=lambda trial: -trial.reward)[: config.finalists]
    again = listed(lab, "finalists", [trial.tokens for trial in ranked], evaluate)
    return search.best(again).tokens


def tested(lab: Lab, epochs: int, taught: bool) -> Callable[[search.Tokens], Any]:
    """The evaluator that trains from fresh seeds and measures on the test set."""
    lesson = course(lab, epochs, measured_on=lab.task.resident_test, taught=taught)

    def evaluate(tokens: search.Tokens) -> dict[str, Any]:
        accuracy, losses = search.trained(
            lab.space.net(tokens), lesson, epochs, lab.config.seeds, FIRST_TEST_SEED
        )
        return {"reward": float(accuracy.mean()), "accuracy": accuracy.tolist()}

    return evaluate


def facts(lab: Lab, found: reports.Outcome) -> list[str]:
    """What the table does not say."""
    config = lab.config
    seconds = sum(trial.seconds for trial in found.candidates)
    winner = next(t for t in found.candidates if t.tokens == found.chosen)
    return [
        f"{len(found.candidates)} candidates by {config.controller} in {seconds:,.0f} "
        f"s, rewarded by {config.evaluator} on {len(lab.task.train.images):,} images; "
        f"the base's reward was {found.base.reward:.4f}, the chosen one's "
        f"{winner.reward:.4f}.",
        f"Chosen: {lab.space.values(found.chosen)}.",
    ]


def main(config: Config) -> dict[str, float]:
    """Runs the experiment; returns MACs and mean accuracies."""
    config = filled(config)
    if config.resume is None:
        directory = outcomes.run_directory(config.out, "search")
        write = log.start(directory, config)
    else:
        directory, write = pathlib.Path(config.resume), lambda row: None
    lab = prepare(config, directory)
    cost = search.macs(lab.space, lab.task.train.images.shape[1:])
    base = base_tokens(lab)
    with pair.refusing("cannot search"):
        limit = search.limit(
            "MACs", cost, lab.space.sizes, most=config.share * cost(base)
        )
    trained_teacher(lab, write)
    print(f"the space reaches {cost(limit.cheapest):,} to {cost(limit.dearest):,} MACs")

    found = searched(lab, limit)
    chosen = best_of_finalists(lab, found)
    reference = listed(lab, "base", [base], evaluator(lab))[0]
    both = [base, chosen]
    short = config.candidate_epochs or 1
    taught = config.evaluator != "labels"
    columns = {
        f"test %, {short} epochs": listed(
            lab, "short", both, tested(lab, short, taught)
        ),
        f"test %, {config.epochs} epochs distilled": listed(
            lab, "long", both, tested(lab, config.epochs or 1, True)
        ),
    }
    outcome = reports.Outcome(found, reference, chosen, cost, columns)
    title = f"search: {lab.task.test.name}, {lab.space.name}"
    reports.write_up(directory, title, outcome, facts(lab, outcome))
    brief, long = columns.values()
    return {
        "base MACs": cost(base),
        "chosen MACs": cost(chosen),
        "base, short": brief[0].reward,
        "chosen, short": brief[1].reward,
        "base, long": long[0].reward,
        "chosen, long": long[1].reward,
    }


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
