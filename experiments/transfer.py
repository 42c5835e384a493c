"""Few images of a new task: train from scratch, fine-tune, distil, or both at once.

A large and a small network learn a source task with all its images. Then there are n
images of a target task, n small, and five ways to a classifier:

* teacher: the large network, fine-tuned on these n images;
* from scratch: the small network, on their labels alone;
* fine-tuned: the small network, from its own source weights and with a new head;
* distilled: from scratch, but taught by the teacher as well;
* fused: fine-tuned and distilled at once.

All see the same n images, for the same number of steps. The seeds differ in the
images, in the fresh weights and in the order of the batches; there is one pair of
source networks for all. The new head learns at `learning_rate`, copied layers at
`body_rate`.

    python -m experiments.transfer
    python -m experiments.transfer --task mnist --archives DIR
    python -m experiments.transfer --task cifar --sizes 100 500 2500

Tasks: "digits" goes from the digits 0-4 to 5-9 (they come with the package), "mnist"
from Fashion-MNIST to MNIST, "cifar" from CIFAR-10 to ten classes of CIFAR-100 that
CIFAR-10 has not. The last two need the official archives: in DIR, or from the network.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from experiments import _outcome as outcome, _pair as pair, _transfer_report as reports
from jaxkd import _check, data, distill, evaluate, log, losses, models, train, transfer
from jaxkd.data import augment, dataset as datasets
from jaxkd.models import Net
from jaxkd.types import Batch

SOURCE_BATCH = 128
TAUGHT = ("distilled", "fused")
NEW_IN_CIFAR100 = (
    "bed",
    "bicycle",
    "bottle",
    "bridge",
    "elephant",
    "mushroom",
    "rose",
    "skyscraper",
    "tiger",
    "whale",
)


class Plan(NamedTuple):
    """A task as data. A data set is its name, and its classes if not all."""

    source: tuple[str, tuple[str, ...] | None]
    target: tuple[str, tuple[str, ...] | None]
    large: dict[str, Any]
    small: dict[str, Any]
    sizes: tuple[int, ...]
    source_epochs: int
    steps: int  # on the target

    @property
    def rows(self) -> int:
        """How many images an epoch has, repeated ones included: see `few`."""
        return 2 * max(self.sizes)


_CNN_32 = {"stages": ((32,), (64,)), "hidden": (128,)}
_CNN_16 = {"stages": ((16,), (32,)), "hidden": (64,)}
_CNN_8 = {"stages": ((8,), (16,)), "hidden": (32,)}
PLANS = {
    "digits": Plan(
        ("digits", tuple("01234")),
        ("digits", tuple("56789")),
        large=_CNN_32,
        small=_CNN_8,
        sizes=(10, 25, 50, 100, 250, 500),
        source_epochs=20,
        steps=400,
    ),
    "mnist": Plan(
        ("fashion_mnist", None),
        ("mnist", None),
        large=_CNN_32,
        small=_CNN_8,
        sizes=(50, 100, 250, 500, 1000, 2500),
        source_epochs=2,
        steps=400,
    ),
    "cifar": Plan(
        ("cifar10", None),
        ("cifar100", NEW_IN_CIFAR100),
        large=_CNN_32,
        small=_CNN_16,
        sizes=(50, 100, 250, 500, 1000, 2500),
        source_epochs=4,
        steps=400,
    ),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Every field can be given on the command line; None is the task's own."""

    task: Literal["digits", "mnist", "cifar"] = "digits"
    preset: Literal["full", "short"] = "full"  # short: two sizes, two seeds, few steps
    archives: str | None = None  # folder of the official archives
    data_dir: str | None = None  # where prepared data are kept
    sizes: tuple[int, ...] | None = None  # numbers of target images
    seeds: int = 3
    source_epochs: int | None = None
    source_images: int | None = None  # only so many of them; None is all
    steps: int | None = None  # updates on the target, whatever its size
    learning_rate: float = 1e-3  # of fresh weights
    body_rate: float = 1e-3  # of copied weights
    temperature: float = 4.0
    hard_weight: float = 0.1  # of the labels
    soft_weight: float = 0.9  # of the teacher
    batch_size: int = 50
    evaluate_on: Literal["test", "validation"] = "test"
    out: str = "runs"

    @property
    def plan(self) -> Plan:
        """The task with what this configuration says differently."""
        plan = PLANS[self.task]
        if self.preset == "short":
            plan = plan._replace(
                sizes=plan.sizes[1:4:2],
                source_epochs=max(1, plan.source_epochs // 4),
                steps=plan.steps // 4,
            )
        said = {
            name: getattr(self, name) for name in ("sizes", "source_epochs", "steps")
        }
        return plan._replace(**{k: v for k, v in said.items() if v is not None})

    @property
    def runs(self) -> int:
        """How many seeds."""
        return min(self.seeds, 2) if self.preset == "short" else self.seeds


def only(dataset: data.Dataset, classes: tuple[str, ...] | None) -> data.Dataset:
    """The examples of these classes, labelled anew in their order."""
    if classes is None:
        return dataset
    places = [dataset.classes.index(name) for name in classes]
    keep = np.flatnonzero(np.isin(dataset.labels, places))
    part = datasets.take(dataset, keep, dataset.split)
    new = np.full(dataset.num_classes, -1, np.int32)
    new[places] = np.arange(len(places))
    return part.replace(label=new[part.labels], classes=classes)


def tasks(config: Config) -> tuple[pair.Task, pair.Task]:
    """Source and target, seen alike: in units of the source's channel statistics."""
    rest = "train_rest" if config.evaluate_on == "validation" else "train"

    def load(which: tuple[str, tuple[str, ...] | None], split: str) -> data.Dataset:
        name, classes = which
        where = {"archives": config.archives, "data_dir": config.data_dir}
        return only(data.load(name, split, **where), classes)

    with pair.refusing("no data"):
        source, target = config.plan.source, config.plan.target
        images = load(source, "train")
        if config.source_images is not None:
            images = data.subset(images, config.source_images, seed=0)
        view = augment.chain(
            augment.to_float(), augment.normalise(*data.channel_statistics(images))
        )
        return (
            pair.task(images, load(source, "test"), view),
            pair.task(load(target, rest), load(target, config.evaluate_on), view),
        )


def few(dataset: data.Dataset, n: int, *, seeds: int, rows: int) -> Batch:
    """For each seed another n images, repeated to fill `rows`: `[seeds, rows, ...]`.

    With the same shape for every n, one compiled program serves them all. Each image
    occurs as often as any other, to within one.
    """

    def of(seed: int) -> Batch:
        chosen = data.subset(dataset, n, seed=seed)
        return jax.tree.map(
            lambda a: np.asarray(a)[np.arange(rows) % n], data.on_device(chosen)
        )

    chosen = [of(seed) for seed in range(seeds)]
    return jax.tree.map(lambda *each: jnp.stack(each), *chosen)


def with_own_data(epoch: train.Epoch, *, together: bool) -> train.Epoch:
    """An epoch of several seeds, each with images of its own."""
    if together:
        return jax.vmap(epoch, in_axes=(0, None, 0, 0))

    def one_by_one(states: Any, variables: Any, residents: Batch, keys: Any) -> tuple:
        return jax.lax.map(
            lambda each: epoch(each[0], variables, each[1], each[2]),
            (states, residents, keys),
        )

    return one_by_one


def starter(
    d: distill.Distiller,
    tx: optax.GradientTransformation | None,
    view: augment.View,
) -> Callable[[jax.Array, Any, Batch], distill.TrainState]:
    """The compiled start of several seeds: `(keys, source variables, residents)`.

    With `tx`, the distiller's optimiser, they start from the source under a head of
    their own; without it, from scratch.
    """

    def new_head(source: Any, fresh: Any) -> Any:
        return transfer.copy(source, fresh, exclude="head/*", strict=True)[0]

    @jax.jit
    def start(keys: jax.Array, source: Any, residents: Batch) -> distill.TrainState:
        batch = train.example(jax.tree.map(lambda a: a[0], residents), view)
        states = jax.vmap(d.init, in_axes=(0, None, None))(keys, None, batch)
        if tx is None:
            return states
        fresh = (states.params["student"], states.state["student"])
        copied = jax.vmap(new_head, in_axes=(None, 0))(source, fresh)
        return transfer.warm_start(states, copied, tx)

    return start


class Arena(NamedTuple):
    """What all trainings on the target share."""

    config: Config
    test: Batch
    view: augment.View
    write: log.Log
    together: bool

    def learner(
        self, net: Net, spec: distill.Spec, *, copying: bool
    ) -> Callable[[str, Batch, Any], tuple[np.ndarray, Any]]:
        """Builds one way of learning the target, compiled once for all sizes.

        Args:
          net: the network to train.
          spec: what on; with a term of a teacher, its logits lie beside the images.
          copying: whether to start from source weights.

        Returns:
          `(name, residents, source variables) -> (accuracies [seeds], variables)`.
        """
        config = self.config
        tx = optax.adam(config.learning_rate)
        if copying:
            heads = {"student/head/*": config.learning_rate}
            tx = transfer.layer_wise(optax.adam, heads, default=config.body_rate)
        teacher = distill.cached if "kd" in spec else distill.nobody
        d = distill.distiller(net, teacher, spec, tx)

        start = starter(d, tx if copying else None, self.view)
        epoch = with_own_data(
            train.make_epoch(d, view=self.view, batch_size=config.batch_size),
            together=self.together,
        )
        score = evaluate.scorer(net, self.test, view=self.view)
        keys = jax.vmap(jax.random.key)(jnp.arange(config.runs))

        def learn(name: str, residents: Batch, source: Any) -> tuple[np.ndarray, Any]:
            steps = residents["label"].shape[1] // config.batch_size
            run = train.fit(
                epoch,
                start(keys, source, residents),
                None,
                residents,
                key=keys,
                epochs=-(-config.plan.steps // steps),
                log=self.write,
                name=name,
            )
            if run.interrupted:
                raise SystemExit(f"interrupted in {name}")
            found = {k: v.tolist() for k, v in score(run.state).items()}
            self.write({"run": name, "final": True, **found})
            variables = (run.state.params["student"], run.state.state["student"])
            return np.asarray(found["accuracy"]), variables

        return learn


def measure(
    arena: Arena, target: data.Dataset, nets: tuple[Net, Net], sources: tuple[Any, Any]
) -> dict[str, dict[int, np.ndarray]]:
    """The accuracies `[seeds]` of all ways at all sizes: way -> size -> accuracies."""
    config, (large, small) = arena.config, nets
    spec, labels = pair.kd_spec(config), distill.on_labels(losses.cross_entropy)
    alone: distill.Spec = {"ce": (1.0, labels)}
    teach = arena.learner(large, alone, copying=True)
    learners = {
        "from scratch": arena.learner(small, alone, copying=False),
        "fine-tuned": arena.learner(small, alone, copying=True),
        "distilled": arena.learner(small, spec, copying=False),
        "fused": arena.learner(small, spec, copying=True),
    }

    @jax.jit
    def opinions(variables: Any, residents: Batch) -> jax.Array:
        return jax.lax.map(
            lambda each: evaluate.predict(
                distill.frozen(large), *each, view=arena.view
            ),
            (variables, residents),
        )

    found: dict[str, dict[int, np.ndarray]] = {
        way: {} for way in ("teacher", *learners)
    }
    plan = config.plan
    for n in plan.sizes:
        images = few(target, n, seeds=config.runs, rows=plan.rows)
        found["teacher"][n], variables = teach(f"teacher, {n}", images, sources[0])
        taught_images = {**images, "teacher": opinions(variables, images)}
        for way, learn in learners.items():
            seen = taught_images if way in TAUGHT else images
            found[way][n], _ = learn(f"{way}, {n}", seen, sources[1])
    return found


def main(config: Config) -> dict[str, float]:
    """Runs the experiment; returns the mean accuracies by way and size."""
    plan = config.plan
    source, target = tasks(config)
    with pair.refusing("cannot choose images"):
        _check.whole(1)("seeds", config.seeds)
        chosen = [few(target.train, n, seeds=1, rows=plan.rows) for n in plan.sizes]
    cnn = lambda shape, task: models.cnn(**shape, classes=task.train.num_classes)
    nets = lambda task: (cnn(plan.large, task), cnn(plan.small, task))
    directory = outcome.run_directory(config.out, "transfer")
    write = log.start(directory, config)
    # vmap makes grouped convolutions of seeds, which XLA:CPU runs slowly.
    together = jax.default_backend() != "cpu"
    trainer = pair.Trainer(
        optax.adam(config.learning_rate), SOURCE_BATCH, write, directory, together
    )
    large, small = nets(target)
    least = target._replace(resident=jax.tree.map(lambda a: a[0], chosen[0]))
    rehearsal = trainer._replace(batch_size=config.batch_size)
    rehearsal.rehearse(large, small, least, pair.kd_spec(config))
    trained = {
        f"source, {name}": trainer(
            f"source, {name}", net, source, seeds=1, epochs=plan.source_epochs
        )
        for name, net in zip(("large", "small"), nets(source), strict=True)
    }
    arena = Arena(config, target.resident_test, target.view, write, together)
    weights = [outcome.first(run) for run in trained.values()]
    found = measure(arena, target.train, (large, small), (weights[0], weights[1]))
    before = {name: float(outcome.final(run)[0]) for name, run in trained.items()}
    title = (
        f"transfer: {config.task}, {len(target.test.images):,} {target.test.split} "
        f"images, {config.runs} seeds"
    )
    reports.write_up(directory, title, found, before)
    return before | {
        f"{way}, {n}": float(values.mean())
        for way, by_size in found.items()
        for n, values in by_size.items()
    }


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
