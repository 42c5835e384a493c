"""Architecture search: a cheaper network that is no worse than the usual one.

The space is `search.resnet_space` around a 14-layer ResNet, the base; or Light-NAS' 30
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

Every result is kept as soon as it is measured: a resumed run continues with the same
candidates. `--preset short` is for a CPU. Needs the official archives: in DIR, or from
the network; digits needs none.
"""

import dataclasses
import functools
import pathlib
from typing import Any, Literal

import jax.numpy as jnp
import optax
import tyro

from experiments import common
from jaxkd import checkpoint, data, distill, losses, models, report, train
from jaxkd.compress import search
from jaxkd.data import augment

PRESETS: dict[str, dict[str, Any]] = {
    "full": {
        "budget": 200,
        "candidate_epochs": 5,
        "epochs": 60,
        "teacher_epochs": 60,
        "stem_strides": 1,
        "augmented": True,
    },
    "short": {
        "budget": 50,
        "candidate_epochs": 6,
        "epochs": 12,
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
class Config(common.Config):
    """Every field can be given on the command line; None is the preset's."""

    dataset: Literal["cifar10", "cifar100", "digits"] = "cifar10"
    preset: Literal["full", "short"] = "full"
    space: Literal["resnet", "mobilenet"] = "resnet"
    controller: Literal["anneal", "evolve", "random"] = "anneal"
    evaluator: Literal["distillation", "labels", "naswot", "synflow"] = "distillation"
    base_blocks: int = 2  # in each stage of the ResNet that is the base
    share: float = 0.83  # of the base network's MACs, at most
    budget: int | None = None  # candidates
    finalists: int = 4  # of them that are trained from several seeds before choosing
    workers: int = 1  # processes that train candidates
    candidate_epochs: int | None = None
    epochs: int | None = None  # of the longer distillation
    teacher_epochs: int | None = None
    search_seed: int = 0
    train_images: int | None = None
    stem_strides: int | None = None  # 2 takes a quarter of the MACs
    augmented: bool | None = None  # flips and crops, and a teacher that sees them
    learning_rate: float = 3e-3  # at first; it falls to 0 along half a cosine
    batch_size: int = 100
    temperature: float = 4.0
    hard_weight: float = 0.3  # of the labels
    soft_weight: float = 0.7  # of the teacher


def main(config: Config) -> dict[str, float]:
    """Run the experiment; return MACs and mean accuracies."""
    preset = PRESETS[config.preset]
    if config.dataset == "digits":
        preset = preset | {"train_images": None, "stem_strides": 1, "augmented": False}
    missing = {k: v for k, v in preset.items() if getattr(config, k) is None}
    config = dataclasses.replace(config, **missing)

    # The data, the space and the limit.
    images, validation, test = load(config)
    space, base = space_of(config, images.num_classes)
    cost = search.macs(space, images.images.shape[1:])
    with common.refusing("cannot search"):
        most = config.share * cost(base)
        limit = search.limit("MACs", cost, space.sizes, most=most)
    directory, log = common.start("search", config, may_change=["budget"])
    reach = f"{cost(limit.cheapest):,} to {cost(limit.dearest):,} MACs"
    print(f"the space reaches {reach}")

    # The teacher: the base with every width and expansion at its greatest.
    plain, view = views(config, images)
    net = teacher(space, base)
    with common.refusing("cannot train"):
        taught = train.learn(
            net,
            images,
            tx=optimizer(config, images, config.teacher_epochs),
            view=view,
            batch_size=config.batch_size,
            epochs=config.teacher_epochs or 0,
            seeds=1,
            together=False,
            test=test,
            test_view=plain,
            checkpoints=directory / "teacher",
            log=log,
            name="teacher",
        )
    params, state = taught.seed(0)
    if not (directory / "variables").exists():  # for the evaluators, in any process
        checkpoint.save(directory / "variables", {"params": params, "state": state})

    def evaluate(
        name: str, controller: search.Controller, budget: int, **how: Any
    ) -> list[search.Trial]:
        """Evaluate what a controller proposes, here or in several processes."""
        workers = min(config.workers, budget)
        settings = space.settings | how.pop("settings", {})
        how |= {"budget": budget, "settings": settings, "ahead": workers}
        how |= {"journal": directory / f"{name}.jsonl"}
        make = functools.partial(evaluator, config, directory, name)
        with common.refusing(f"cannot evaluate ({name})"):
            here = make()  # for workers too: it stores what the teacher answers
            if workers == 1:
                return search.run(controller, here, **how)
            with search.pool(make, workers) as pool:
                return search.run(controller, search.in_pool, executor=pool, **how)

    def measure(name: str, networks: list[search.Tokens]) -> list[search.Trial]:
        """Evaluate these networks; a larger search adds others to the journal."""
        listed = list(dict.fromkeys(networks))
        controller = search.in_order(listed)._replace(settings={"controller": "list"})
        found = {each.tokens: each for each in evaluate(name, controller, len(listed))}
        return [found[tokens] for tokens in networks]

    # The search, the finalists, and the tests.
    start = search.within(limit, base, space.sizes)
    controllers = {
        "random": lambda: search.random_search(space.sizes),
        "evolve": lambda: search.evolve(
            space.sizes, population=10, tournament=4, start=start
        ),
        # Nothing here depends on the budget: a resumed run may have a larger one.
        "anneal": lambda: search.anneal(space.sizes, start, reduce_rate=0.9),
    }
    candidates = evaluate(
        "search",
        controllers[config.controller](),
        config.budget or 1,
        feasible=limit.feasible,
        seed=config.search_seed,
        settings=limit.settings,
        progress=lambda trial: print(
            f"{trial.tokens}: {cost(trial.tokens):,.0f} MACs, reward "
            f"{trial.reward:.4f}, {trial.seconds:.0f} s",
            flush=True,
        ),
    )
    ranked = sorted(candidates, key=lambda trial: (-trial.reward, cost(trial.tokens)))
    best = [trial.tokens for trial in ranked[: config.finalists]]
    finalists = measure("finalists", best)
    chosen = search.best(finalists).tokens
    (reference,) = measure("base", [base])
    short = measure("short", [base, chosen])
    long = measure("long", [base, chosen])

    # The tables, and the picture of all candidates.
    columns = {
        f"test %, {config.candidate_epochs} epochs": short,
        f"test %, {config.epochs} epochs distilled": long,
    }
    rows = [
        {
            "network": name,
            "MACs": f"{cost(tokens):,.0f}",
            "of the base": f"{cost(tokens) / cost(base):.1%}",
            **{
                title: report.mean_sd(trials[i].info["accuracy"], scale=100)
                for title, trials in columns.items()
            },
        }
        for i, (name, tokens) in enumerate({"base": base, "chosen": chosen}.items())
    ]
    listing = lambda trials: [
        {
            "network": " ".join(map(str, trial.tokens)),
            "MACs": f"{cost(trial.tokens):,.0f}",
            "reward": f"{trial.reward:.4f}",
            "seconds": f"{trial.seconds:.1f}",
        }
        for trial in sorted(trials, key=lambda trial: -trial.reward)
    ]
    draw(directory / "candidates.png", candidates, reference, chosen, cost)
    gains = {
        title: report.gain(*(trial.info["accuracy"] for trial in reversed(trials)))
        for title, trials in columns.items()
    }
    seconds = sum(trial.seconds for trial in candidates)
    common.write_report(
        directory,
        f"search: {test.name}, {space.name}",
        {
            common.LAST: rows,
            "Finalists, from new seeds, on the validation images": listing(finalists),
            "All candidates": listing(candidates),
        },
        [
            *(
                f"{title}: the chosen network has {gain} points against the base "
                "(paired seeds, ± standard error)."
                for title, gain in gains.items()
            ),
            f"{len(candidates)} candidates by {config.controller}, rewarded by "
            f"{config.evaluator} on {len(images.images):,} images, took {seconds:,.0f} "
            f"s, {config.workers} at a time; the base's reward was "
            f"{reference.reward:.4f}.",
            f"Chosen: {space.values(chosen)}.",
        ],
    )
    return {
        "base MACs": cost(base),
        "chosen MACs": cost(chosen),
        "base, short": short[0].reward,
        "chosen, short": short[1].reward,
        "base, long": long[0].reward,
        "chosen, long": long[1].reward,
    }


def load(config: Config) -> tuple[data.Dataset, data.Dataset, data.Dataset]:
    """Load the training images, those of rewards, and those of the final tests."""
    where: dict[str, Any] = {"archives": config.archives, "data_dir": config.data_dir}
    splits = ("train_rest", "validation", config.evaluate_on)
    with common.refusing("no data"):
        images, validation, test = (
            data.load(config.dataset, split, **where) for split in splits
        )
        if config.train_images is not None:
            images = data.subset(images, config.train_images, seed=0)
    return images, validation, test


def views(config: Config, images: data.Dataset) -> tuple[augment.View, augment.View]:
    """Make the views of measuring and of training."""
    normalise = augment.normalise(*data.channel_statistics(images))
    plain = augment.chain(augment.to_float(), normalise)
    moved = (augment.flip(), augment.crop(4)) if config.augmented else ()
    return plain, augment.chain(*moved, plain)


def space_of(config: Config, classes: int) -> tuple[search.Space, search.Tokens]:
    """Make the space, and find the usual network in it."""
    strides = config.stem_strides or 1
    if config.space == "mobilenet":
        space = search.mobilenet_space(classes, stem_strides=strides)
        return space, space.tokens(**search.mobilenet_base())
    space = search.resnet_space(classes, stem_strides=strides)
    base = search.resnet_base(space, blocks=config.base_blocks)
    return space, space.tokens(**base)


def teacher(space: search.Space, base: search.Tokens) -> models.Net:
    """Build the base with every width and expansion at its greatest."""
    wide = ("stem", "_width", "_expansion")
    choices = zip(space.choices, space.sizes, base, strict=True)
    return space.net([n - 1 if name.endswith(wide) else t for name, n, t in choices])


def optimizer(
    config: Config, images: data.Dataset, epochs: int | None
) -> optax.GradientTransformation:
    """Make Adam with a learning rate that falls to 0."""
    steps = max(1, len(images.images) // config.batch_size * (epochs or 0))
    return optax.adam(optax.cosine_decay_schedule(config.learning_rate, steps))


def evaluator(config: Config, directory: pathlib.Path, name: str) -> search.Evaluate:
    """Make the evaluator of a journal; a function of the module, for other processes.

    "search" and "base" reward on the validation images; "finalists" does so from
    several new seeds; "short" and "long" test from others.
    """
    images, validation, test = load(config)
    space, base = space_of(config, images.num_classes)
    plain, view = views(config, images)
    resident = data.on_device(images)
    if name in ("search", "base") and config.evaluator in ("naswot", "synflow"):
        few = train.example(resident, plain, 64)["image"]
        return search.proxy(space, few, kind=config.evaluator)
    epochs = config.epochs if name == "long" else config.candidate_epochs
    course = search.Course(
        resident,
        data.on_device(test if name in ("short", "long") else validation),
        view,
        plain,
        optimizer(config, images, epochs),
        config.batch_size,
    )
    if name == "long" or config.evaluator != "labels":
        saved, net = checkpoint.load(directory / "variables"), teacher(space, base)
        variables, frozen = (saved["params"], saved["state"]), distill.frozen(net)
        kd = distill.on_logits(losses.kd, temperature=config.temperature)
        ce = distill.on_labels(losses.cross_entropy)
        spec = {"ce": (config.hard_weight, ce), "kd": (config.soft_weight, kd)}
        course = course._replace(spec=spec, teacher=distill.cached)
        if config.augmented:
            course = course._replace(teacher=frozen, teacher_variables=variables)
        else:
            logits = train.cache_teacher(
                frozen, variables, images, view=plain, path=directory / "logits"
            )
            course.resident["teacher"] = jnp.asarray(logits)
    seeds = {
        "finalists": {"seeds": config.seeds, "first_seed": FIRST_FINAL_SEED},
        "short": {"seeds": config.seeds, "first_seed": FIRST_TEST_SEED},
        "long": {"seeds": config.seeds, "first_seed": FIRST_TEST_SEED},
    }
    return search.short_training(
        space, course, epochs=epochs or 1, **seeds.get(name, {})
    )


def draw(
    path: pathlib.Path,
    candidates: list[search.Trial],
    base: search.Trial,
    chosen: search.Tokens,
    cost: Any,
) -> None:
    """Draw the reward of all candidates against their cost, if matplotlib is there."""
    if (pyplot := report.pyplot()) is None:
        return
    figure, axis = pyplot.subplots(figsize=(6, 4))
    groups = {
        "candidates": candidates,
        "base": [base],
        "chosen": [trial for trial in candidates if trial.tokens == chosen],
    }
    for label, trials in groups.items():
        points = [(cost(trial.tokens), trial.reward) for trial in trials]
        style = "." if label == "candidates" else "o"
        axis.plot(*zip(*points, strict=True), style, label=label)
    axis.set(xlabel="MACs of one image", ylabel="reward")
    axis.grid(alpha=0.3)
    axis.legend()
    report.save(figure, path)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
