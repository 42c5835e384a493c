"""CIFAR-100's protocol: data, optimiser, teachers that are trained once, a run."""

import dataclasses
import hashlib
import json
import pathlib
import re
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments._pair import refusing
from jaxkd import checkpoint, data, distill, evaluate, log, losses
from jaxkd.data import augment
from jaxkd.models import ZOO, Net
from jaxkd.schemes import staged
from jaxkd.types import Batch


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How long, on what and how fast; the defaults are RepDistiller's."""

    epochs: int = 240
    batch_size: int = 64
    learning_rate: float | None = (
        None  # None: .01 for Mobile- and ShuffleNets, else .05
    )
    milestones: tuple[float, ...] = (0.625, 0.75, 0.875)  # 150, 180, 210 of 240 epochs
    decay: float = 0.1  # of the learning rate at each
    momentum: float = 0.9
    weight_decay: float = 5e-4
    train_images: int | None = None  # a balanced subset; None is all


FULL = Protocol()
# For a CPU: the same drops of the learning rate, and a fifth of the images.
SHORT = Protocol(epochs=2, train_images=10_000)
SHORT_TEACHER = Protocol(epochs=8)


def chosen(config: Any) -> tuple[Protocol, Protocol]:
    """The student's and the teacher's protocol: the preset's, or what overrides it."""
    short = config.preset == "short"
    student, teacher = (SHORT, SHORT_TEACHER) if short else (FULL, FULL)
    wanted = {
        name: value
        for name in ("epochs", "learning_rate", "batch_size", "train_images")
        if (value := getattr(config, name)) is not None
    }
    teachers = {k: v for k, v in wanted.items() if k in ("batch_size", "learning_rate")}
    if config.teacher_epochs is not None:
        teachers["epochs"] = config.teacher_epochs
    if config.teacher_images is not None:
        teachers["train_images"] = config.teacher_images
    of_student = dataclasses.replace(student, **wanted)
    return of_student, dataclasses.replace(teacher, **teachers)


class World(NamedTuple):
    """The data, and how networks see them when they train and when they are tested."""

    train: data.Dataset
    test: data.Dataset
    resident: Batch
    resident_test: Batch
    view: augment.View
    test_view: augment.View


def world(config: Any, train_images: int | None) -> World:
    """The splits that a Config's `archives`, `data_dir` and `evaluate_on` name.

    Raises:
      SystemExit: if they cannot be had; the message says what to do.
    """
    where = {"archives": config.archives, "data_dir": config.data_dir}
    choosing = config.evaluate_on == "validation"
    with refusing("no data"):
        whole = data.load(
            config.dataset, "train_rest" if choosing else "train", **where
        )
        test = data.load(config.dataset, config.evaluate_on, **where)
        few = data.subset(whole, train_images, seed=0) if train_images else whole
    normalise = augment.normalise(*data.channel_statistics(whole))
    plain = augment.chain(augment.to_float(), normalise)
    # Padding is as large a part of the image as 4 is of CIFAR's 32 pixels.
    padding = whole.images.shape[1] // 8
    view = augment.chain(augment.flip(), augment.crop(padding), plain)
    resident, resident_test = data.on_device(few), data.on_device(test)
    return World(few, test, resident, resident_test, view, plain)


def network(name: str, classes: int) -> Net:
    """A network of the zoo, computing in bfloat16 where there is an accelerator."""
    if name not in ZOO:
        raise SystemExit(f"no network {name!r}; there are {', '.join(sorted(ZOO))}")
    on_cpu = jax.default_backend() == "cpu"
    return ZOO[name](classes=classes, dtype=None if on_cpu else jnp.bfloat16)


def rate(protocol: Protocol, student: str) -> float:
    """The learning rate a network starts with."""
    if protocol.learning_rate is not None:
        return protocol.learning_rate
    return 0.01 if student.startswith(("mobilenet", "shufflenet")) else 0.05


def optimiser(
    protocol: Protocol, learning_rate: float, epochs: int, examples: int
) -> optax.GradientTransformation:
    """SGD with momentum, weight decay on every parameter, a stepwise learning rate."""
    steps = epochs * (examples // protocol.batch_size)
    drops = {int(at * steps): protocol.decay for at in protocol.milestones}
    schedule = optax.piecewise_constant_schedule(learning_rate, drops)
    return optax.chain(
        optax.add_decayed_weights(protocol.weight_decay),
        optax.sgd(schedule, momentum=protocol.momentum),
    )


class Learned(NamedTuple):
    """What a run gives: one network a seed.

    Attributes:
      variables: `(params, state)` with a leading axis of seeds.
      accuracy: on the test images after the last epoch, `[seeds]`.
      nll: likewise, in nats.
      minutes: of training and tests, compilation included.
    """

    variables: tuple[Any, Any]
    accuracy: np.ndarray
    nll: np.ndarray
    minutes: float


def learn(
    name: str,
    world: World,
    net: Net,
    stages: Sequence[staged.Stage],
    *,
    protocol: Protocol,
    seeds: Sequence[int],
    write: log.Log,
    teacher: distill.Teacher = distill.nobody,
    teacher_variables: Any = None,
    every_epoch: bool = True,
) -> Learned:
    """Trains one network a seed through all stages, and tests it.

    Seeds are trained by vmap on accelerators, one after another on a CPU.
    """
    begin = time.perf_counter()
    score = evaluate.scorer(net, world.resident_test, view=world.test_view)
    runs = staged.fit(
        stages,
        net,
        teacher,
        teacher_variables,
        world.resident,
        view=world.view,
        key=jax.vmap(jax.random.key)(jnp.asarray(seeds)),
        batch_size=protocol.batch_size,
        together=jax.default_backend() != "cpu",
        evaluate=score if every_epoch else None,
        log=write,
        name=name,
    )
    if runs[-1].interrupted:
        raise SystemExit(f"interrupted in {name}; the rows so far are in the log")
    state = runs[-1].state
    found = {metric: np.asarray(value) for metric, value in score(state).items()}
    minutes = (time.perf_counter() - begin) / 60
    seeds_of = lambda values: values.round(6).tolist()
    write(
        {"run": name, "epoch": "last", "seconds": round(60 * minutes, 1)}
        | {metric: seeds_of(value) for metric, value in found.items()}
    )
    variables = (state.params["student"], state.state["student"])
    return Learned(variables, found["accuracy"], found["nll"], minutes)


def on_labels(tx: optax.GradientTransformation, epochs: int) -> list[staged.Stage]:
    """The stages of a network that no one teaches."""
    ce = {"ce": (1.0, distill.on_labels(losses.cross_entropy))}
    return [staged.Stage("labels", ce, epochs, tx)]


def trained_teacher(
    name: str, world: World, protocol: Protocol, *, out: str, seed: int, write: log.Log
) -> tuple[Net, Any, float]:
    """The network, its variables and its test accuracy; trained once, then read.

    It is kept under `out/teachers`, in a folder whose name has a hash of everything
    that decides what it becomes.
    """
    net = network(name, world.train.num_classes)
    identity = {
        "network": name,
        "seed": seed,
        "data": data.fingerprint(world.train),
        "protocol": dataclasses.asdict(protocol),
        "backend": jax.default_backend(),
    }
    mark = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[
        :12
    ]
    folder = pathlib.Path(out) / "teachers" / f"{world.train.name}-{name}-{mark}"
    if not (folder / "identity.json").exists():
        tx = optimiser(
            protocol, rate(protocol, name), protocol.epochs, len(world.train.images)
        )
        run = learn(
            f"teacher {name}",
            world,
            net,
            on_labels(tx, protocol.epochs),
            protocol=protocol,
            seeds=[seed],
            write=write,
        )
        params, state = jax.tree.map(lambda leaf: leaf[0], run.variables)
        checkpoint.save(folder / "variables", {"params": params, "state": state})
        # Last: without it the folder does not count as whole.
        (folder / "identity.json").write_text(json.dumps(identity, indent=2))
    saved = checkpoint.load(folder / "variables")
    variables = (saved["params"], saved["state"])
    logits = jax.jit(
        lambda v, resident: evaluate.predict(
            distill.frozen(net), v, resident, view=world.test_view
        )
    )(variables, world.resident_test)
    accuracy = evaluate.accuracy(logits, world.resident_test["label"])
    return net, variables, float(accuracy)


def folder_name(name: str) -> str:
    """A name that any file system takes."""
    return re.sub("[^a-z0-9]+", "_", name.lower())
