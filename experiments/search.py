"""Search: a network with fewer multiply-accumulates at no worse accuracy.

The usual ResNet of a space is the base, and candidates may cost at most `share` of its
MACs. The reward of a candidate is its accuracy on the validation images after a short
distillation from one seed. The best candidates are trained again from other seeds, and
the best of these is chosen. It and the base are then trained from other seeds again and
measured on the test images. The teacher is the base with its greatest widths.

    python -m experiments.search --archives DIR
    python -m experiments.search --resume runs/search/TIME --epochs 12
    python -m experiments.search --dataset digits --train-images 1000 --stem-strides 1

Every result is in a journal as soon as it is measured: a resumed run continues with the
same candidates, also with a larger `--budget` or more `--epochs` of the last training.
Needs CIFAR's official archive: in DIR, or from the network; digits needs none.
`jaxkd run cifar10-nas` searches without a teacher, and trains what it chose.
"""

import dataclasses
from typing import Any, Literal

import jax
import numpy as np
import optax
import tyro

from experiments import common
from jaxkd import data, distill, losses, report, train
from jaxkd.compress import search
from jaxkd.data import augment


@dataclasses.dataclass(frozen=True)
class Config(common.Config):
    """Every field can be given on the command line."""

    dataset: Literal["cifar10", "cifar100", "digits"] = "cifar10"
    train_images: int = 6000
    base_blocks: int = 2  # in each stage of the base
    stem_strides: int = 2  # 2 takes a quarter of the MACs of 1
    share: float = 0.83  # of the base's MACs, at most
    budget: int = 50  # candidates
    ahead: int = 2  # candidates proposed before the result of the first is used
    finalists: int = 4
    teacher_epochs: int = 6
    candidate_epochs: int = 6
    epochs: int = 6  # of the networks that are tested
    search_seed: int = 0
    learning_rate: float = 3e-3  # at first; it falls to 0 along half a cosine
    batch_size: int = 100
    temperature: float = 4.0
    hard_weight: float = 0.3  # of the labels
    soft_weight: float = 0.7  # of the teacher


def main(config: Config) -> list[dict[str, Any]]:
    """Run the experiment; return the MACs and the accuracies of base and chosen."""
    # The data: of trainings, of rewards, and of the final tests.
    images, validation, test = common.load_three(
        config, config.dataset, config.train_images
    )
    normalise = augment.normalise(*data.channel_statistics(images))
    view = augment.chain(augment.to_float(), normalise)

    # The space, its usual network, and what candidates may cost.
    space = search.resnet_space(images.num_classes, stem_strides=config.stem_strides)
    base = space.tokens(**search.resnet_base(space, blocks=config.base_blocks))
    cost = search.macs(space, images.images.shape[1:])
    with common.refusing("cannot search"):
        limit = search.limit("MACs", cost, space.sizes, most=config.share * cost(base))
        data.epoch(jax.random.key(0), len(images.images), config.batch_size)

    # The teacher, and its logits for every image.
    def falling(epochs: int) -> optax.GradientTransformation:
        steps = len(images.images) // config.batch_size * epochs
        rate = optax.cosine_decay_schedule(config.learning_rate, max(1, steps))
        return optax.adam(rate)

    wide = [
        n - 1 if name.endswith(("stem", "_width")) else token
        for name, n, token in zip(space.choices, space.sizes, base, strict=True)
    ]
    teacher = space.net(wide)
    directory, log = common.start("search", config, may_change=["budget", "epochs"])
    taught = train.learn(
        teacher,
        images,
        tx=falling(config.teacher_epochs),
        view=view,
        batch_size=config.batch_size,
        epochs=config.teacher_epochs,
        seeds=1,
        together=False,
        test=test,
        checkpoints=directory / "teacher",
        log=log,
        name="teacher",
    )
    frozen, variables = distill.frozen(teacher), taught.seed(0)
    logits = train.cache_teacher(frozen, variables, images, view=view)
    resident = {**data.on_device(images), "teacher": logits}

    # How networks are distilled and measured, by tokens.
    kd = distill.on_logits(losses.kd, temperature=config.temperature)
    spec: distill.Spec = {
        "ce": (config.hard_weight, distill.on_labels(losses.cross_entropy)),
        "kd": (config.soft_weight, kd),
    }

    def distil(on: data.Dataset, epochs: int, **seeds: int) -> search.Evaluate:
        course = search.Course(
            resident,
            data.on_device(on),
            view,
            view,
            falling(epochs),
            config.batch_size,
            spec,
            distill.cached,
        )
        return search.short_training(space, course, epochs=epochs, **seeds)

    # The search. Annealing does not depend on the budget, which may be raised later.
    start = search.within(limit, base, space.sizes)
    candidates = search.run(
        search.anneal(space.sizes, start, reduce_rate=0.9),
        distil(validation, config.candidate_epochs),
        budget=config.budget,
        feasible=limit.feasible,
        seed=config.search_seed,
        ahead=config.ahead,
        journal=directory / "search.jsonl",
        settings={**space.settings, **limit.settings},
        progress=lambda trial: print(f"{trial.tokens}: {trial.reward:.4f}", flush=True),
    )

    # The finalists and the test, each from seeds that chose nothing before.
    def again(
        name: str, networks: list[search.Tokens], on: Any, epochs: int, first_seed: int
    ) -> dict[search.Tokens, list[float]]:
        # A larger search has other finalists: its journal is the same, and grows.
        trials = search.run(
            search.in_order(networks)._replace(settings=space.settings),
            distil(on, epochs, seeds=config.seeds, first_seed=first_seed),
            budget=len(networks),
            journal=directory / f"{name}.jsonl",
        )
        return {trial.tokens: trial.info["accuracy"] for trial in trials}

    ranked = sorted(candidates, key=lambda trial: (-trial.reward, cost(trial.tokens)))
    best = [trial.tokens for trial in ranked[: config.finalists]]
    finalists = again("finalists", best, validation, config.candidate_epochs, 50)
    chosen = max(finalists, key=lambda tokens: np.mean(finalists[tokens]))
    both = [*dict.fromkeys([base, chosen])]
    found = again(f"test_{config.epochs}", both, test, config.epochs, 100)

    # The table.
    networks = {"base": base, "chosen": chosen}
    rows = [
        {
            "network": name,
            "MACs": f"{cost(tokens):,.0f} ({cost(tokens) / cost(base):.1%})",
            "accuracy %": report.mean_sd(found[tokens], scale=100),
            "difference": report.gain(found[tokens], found[base]),
        }
        for name, tokens in networks.items()
    ]
    common.write_report(
        directory,
        f"search: {test.name}, {space.name}, {len(candidates)} candidates",
        {f"{test.split} images after {config.epochs} epochs": rows},
        [f"Chosen: {space.values(chosen)}."],
    )
    return [
        {"network": name, "macs": cost(tokens), "accuracy": found[tokens]}
        for name, tokens in networks.items()
    ]


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
