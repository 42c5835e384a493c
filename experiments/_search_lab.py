"""What the search experiment trains: its options, data, teacher and evaluators."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments import _pair as pair
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
class Config:
    """Every field can be given on the command line; None is the preset's."""

    dataset: Literal["cifar10", "cifar100", "digits"] = "cifar10"
    preset: Literal["full", "short"] = "full"
    archives: str | None = None  # folder of the official archives
    data_dir: str | None = None  # where prepared data are kept
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
    return lab.space.tokens(
        **search.resnet_base(lab.space, blocks=lab.config.base_blocks)
    )


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


def rewarded(lab: Lab) -> search.Evaluate:
    """What a candidate is rewarded by."""
    config = lab.config
    if config.evaluator in ("naswot", "synflow"):
        images = train.example(lab.task.resident, lab.plain, 64)["image"]
        return search.proxy(lab.space, images, kind=config.evaluator)
    lesson, epochs = short_course(lab, lab.validation)
    return search.short_training(lab.space, lesson, epochs=epochs)


def short_course(lab: Lab, measured_on: Any) -> tuple[search.Course, int]:
    """The training of the candidates, and its epochs."""
    epochs = lab.config.candidate_epochs or 1
    taught = lab.config.evaluator != "labels"
    return course(lab, epochs, measured_on=measured_on, taught=taught), epochs


def trained_again(lab: Lab) -> search.Evaluate:
    """What decides among the finalists: several new seeds, the held-out slice.

    The greatest of many rewards of one seed each is mostly luck; the test set has no
    part in the choice.
    """
    lesson, epochs = short_course(lab, lab.validation)
    seeds = {"seeds": lab.config.seeds, "first_seed": FIRST_FINAL_SEED}
    return search.short_training(lab.space, lesson, epochs=epochs, **seeds)


def tested(lab: Lab) -> search.Evaluate:
    """The candidates' training from seeds that decided nothing, on the test set."""
    lesson, epochs = short_course(lab, lab.task.resident_test)
    seeds = {"seeds": lab.config.seeds, "first_seed": FIRST_TEST_SEED}
    return search.short_training(lab.space, lesson, epochs=epochs, **seeds)


def tested_longer(lab: Lab) -> search.Evaluate:
    """The longer distillation, likewise."""
    epochs = lab.config.epochs or 1
    lesson = course(lab, epochs, measured_on=lab.task.resident_test, taught=True)
    seeds = {"seeds": lab.config.seeds, "first_seed": FIRST_TEST_SEED}
    return search.short_training(lab.space, lesson, epochs=epochs, **seeds)


# By the names of their journals.
EVALUATORS: dict[str, Callable[[Lab], search.Evaluate]] = {
    "search": rewarded,
    "finalists": trained_again,
    "base": rewarded,
    "short": tested,
    "long": tested_longer,
}


def recipe(config: Config) -> dict[str, Any]:
    """The fields that decide what an evaluation says: they identify its journal."""
    paths = {"archives", "data_dir", "out", "resume"}
    elsewhere = {"workers", "budget", "preset", "share", "controller", "search_seed"}
    apart = paths | elsewhere | {"space", "finalists"}
    fields = dataclasses.asdict(config)
    return {name: value for name, value in fields.items() if name not in apart}
