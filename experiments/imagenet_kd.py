"""ImageNet: ResNet-34 teaches ResNet-18, or ResNet-50 MobileNetV1.

    python -m experiments.imagenet_kd --method teacher
    python -m experiments.imagenet_kd --method dkd --teacher-run runs/imagenet_kd/TIME
    python -m experiments.imagenet_kd --fake --batch-size 8

Methods: "teacher" trains the teacher on the labels, "none" the student; "kd" and "dkd"
distil it under the usual protocol (100 epochs of SGD, batch 512, Inception crops and
flips); "patient" is Beyer et al.'s: the teacher sees the very crops and mixtures of
images that the student sees, the loss is the KL divergence at temperature 1 without any
labels, and the schedule is long.

Data are read from the files of TensorFlow Datasets' "imagenet2012", prepared as
array_record (the message says how, if they are not there), decoded and cropped by
threads, and never kept in memory. All devices of all processes are used; on an
accelerator networks compute in bfloat16. A run that was cut short, in the middle of an
epoch too, goes on with `--resume DIRECTORY`, on any number of devices that divides the
batch.

`--fake` needs no data and no teacher: random pixels, so that accuracies mean nothing,
and the last epoch's row tells how fast the step is.

References:
  L. Beyer et al., Knowledge distillation: A good teacher is patient and consistent,
  2022, https://arxiv.org/abs/2106.05237.
  B. Zhao et al., Decoupled Knowledge Distillation, 2022,
  https://arxiv.org/abs/2203.08679, section 4.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from experiments import _fake_images as fake, _outcome as outcome, _protocol as protocol
from experiments._pair import refusing
from jaxkd import (
    checkpoint,
    data,
    distill,
    evaluate,
    log,
    losses,
    mesh,
    processes,
    train,
)
from jaxkd.data import augment, decode
from jaxkd.models import Net

PAIRS = {
    "resnet34-resnet18": ("resnet34", "resnet18"),
    "resnet50-mobilenet_v1": ("resnet50", "mobilenet_v1"),
}
Pair = Literal["resnet34-resnet18", "resnet50-mobilenet_v1"]
# The share of the non-target classes, as the authors of DKD chose it for each pair.
DKD_BETA = {"resnet34-resnet18": 0.5, "resnet50-mobilenet_v1": 2.0}
# Of ImageNet's pixels, by channel.
MEAN, SD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
# What may differ between a run and its continuation.
FREE = {"resume", "out", "data_dir", "workers", "save_every", "model_devices"}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How long, on what and how fast."""

    epochs: int
    batch_size: int
    learning_rate: float


# Published values; the learning rate of "patient" is ours: theirs, .03, is for networks
# without BatchNorm.
SGD = Recipe(epochs=100, batch_size=512, learning_rate=0.2)
PATIENT = Recipe(epochs=1200, batch_size=4096, learning_rate=3e-3)


@dataclasses.dataclass(frozen=True)
class Config:
    """Every field can be given on the command line."""

    pair: Pair = "resnet34-resnet18"
    method: Literal["teacher", "none", "kd", "dkd", "patient"] = "kd"
    teacher_run: str | None = None  # the directory of a run with `--method teacher`
    dataset: str = "imagenet2012"
    data_dir: str | None = None  # where prepared data are kept
    evaluate_on: Literal["validation", "held_out"] = "validation"  # 2 % of train
    epochs: int | None = None  # None is the method's, as for the next two
    batch_size: int | None = None  # of all devices together
    learning_rate: float | None = None
    image_size: int = 224
    workers: int = os.cpu_count() or 1  # threads of a process that decode
    model_devices: int = 1  # over how many devices the teacher is split
    seed: int = 0
    save_every: int = 1000  # steps
    out: str = "runs"
    resume: str | None = None  # the directory of a run that was cut short
    fake: bool = False  # random images and a random teacher
    fake_images: int = 1024
    fake_classes: int = 1000

    def recipe(self) -> Recipe:
        """The method's, or what overrides it."""
        usual = PATIENT if self.method == "patient" else SGD
        usual = dataclasses.replace(usual, epochs=2) if self.fake else usual
        given = {f.name: getattr(self, f.name) for f in dataclasses.fields(Recipe)}
        chosen = {name: value for name, value in given.items() if value is not None}
        return dataclasses.replace(usual, **chosen)


def streams(config: Config, devices: Any) -> tuple[data.Stream, data.Stream]:
    """The training and the test data.

    Raises:
      SystemExit: if they are not prepared; says how to.
    """
    size = config.image_size
    if config.fake:
        few = max(1, config.fake_images // 8)
        sources = [
            fake.source(n, size, config.fake_classes) for n in (config.fake_images, few)
        ]
        workers = 1
    else:
        held_out = config.evaluate_on == "held_out"
        names = ("train[2%:]", "train[:2%]") if held_out else ("train", "validation")
        crops = (decode.random_crop(size), decode.centre_crop(size))
        with refusing("no data"):
            sources = [
                data.records(
                    config.dataset, split, decode=crop, data_dir=config.data_dir
                )
                for split, crop in zip(names, crops, strict=True)
            ]
        workers = config.workers
    batch = config.recipe().batch_size
    examples, test = (
        data.Stream(source, batch, workers=workers, mesh=devices) for source in sources
    )
    return examples, test


def views(config: Config) -> tuple[augment.View, augment.View]:
    """How networks see images that were cropped when decoded: to train, and to test."""
    plain = augment.chain(augment.to_float(), augment.normalise(MEAN, SD))
    # Coefficients are uniform in [0, 1]: images between the data, not near them.
    mixed = [augment.mixup(1.0)] if config.method == "patient" else []
    return augment.chain(augment.flip(), plain, *mixed), plain


def spec(config: Config) -> distill.Spec:
    """The objective of a method."""
    ce = distill.on_labels(distill.cross_entropy)
    kd = distill.on_logits(losses.kd, temperature=1.0)
    dkd = distill.on_logits_and_labels(
        losses.dkd, alpha=1.0, beta=DKD_BETA[config.pair], temperature=1.0
    )
    return {
        "teacher": {"ce": (1.0, ce)},
        "none": {"ce": (1.0, ce)},
        "kd": {"ce": (0.5, ce), "kd": (0.5, kd)},
        "dkd": {"ce": (1.0, ce), "dkd": (1.0, dkd)},
        "patient": {"kd": (1.0, kd)},
    }[config.method]


def optimiser(config: Config, steps: int) -> optax.GradientTransformation:
    """SGD with three drops of its rate; for "patient" Adam, warmed up, with a cosine.

    Args:
      config: chooses.
      steps: of an epoch.
    """
    recipe = config.recipe()
    total, rate = recipe.epochs * steps, recipe.learning_rate
    if config.method == "patient":
        warm = min(5000, total // 10)
        schedule = optax.warmup_cosine_decay_schedule(0.0, rate, warm, max(total, 1))
        return optax.chain(
            optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=0.01)
        )
    drops = {int(at * total): 0.1 for at in (0.3, 0.6, 0.9)}
    return optax.chain(
        optax.add_decayed_weights(1e-4),
        optax.sgd(optax.piecewise_constant_schedule(rate, drops), momentum=0.9),
    )


def teacher(config: Config, net: Net, devices: Any) -> Any:
    """The teacher's variables, on the devices; None where nobody teaches.

    Raises:
      SystemExit: if they cannot be read.
    """
    if config.method in ("teacher", "none"):
        return None
    shape = (1, config.image_size, config.image_size, 3)
    blank = jax.ShapeDtypeStruct(shape, "float32")
    key = jax.random.key(config.seed + 1)
    wanted = jax.eval_shape(net.init, key, blank)
    if config.fake:
        variables = jax.jit(lambda key: net.init(key, jnp.zeros(shape)))(key)
    elif config.teacher_run is None:
        raise SystemExit("no teacher: --teacher-run DIRECTORY of a `--method teacher`")
    else:
        folder = pathlib.Path(config.teacher_run) / "checkpoints"
        with refusing(f"no teacher in {folder}"):
            found = checkpoint.newest(folder, print)
            if found is None:
                raise FileNotFoundError("there is no whole checkpoint")
            # The shapes tell the pair apart; the state of the teacher is the student's
            # of the run that trained it.
            params, state = (
                found.tree[part]["student"] for part in ("params", "state")
            )
            variables = (
                checkpoint.like(params, wanted[0]),
                checkpoint.like(state, wanted[1]),
            )
    return mesh.put(variables, mesh.sharded(variables, devices))


def opened(config: Config) -> tuple[pathlib.Path, log.Log]:
    """The run's directory and its log; a resumed run writes on in its own.

    Raises:
      SystemExit: if the run that is to be resumed was another one.
    """
    if config.resume is None:
        directory = outcome.run_directory(config.out, "imagenet_kd")
        return directory, log.start(directory, config)
    directory = pathlib.Path(config.resume)
    with refusing("cannot resume"):
        before = json.loads((directory / "config.json").read_text())
    now = json.loads(json.dumps(dataclasses.asdict(config)))
    for field in sorted(set(now) - FREE):
        if before.get(field) != now[field]:
            raise SystemExit(
                f"cannot resume {directory}: its {field} was {before.get(field)!r}, "
                f"now it is {now[field]!r}"
            )

    def write(row: log.Row) -> None:
        if jax.process_index() == 0:
            with (directory / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")

    return directory, write


def begin(
    directory: pathlib.Path,
    init: Callable[..., distill.TrainState],
    arguments: tuple[Any, ...],
    devices: Any,
) -> tuple[distill.TrainState, train.Place]:
    """The state of the newest checkpoint and where it stands, or a new one."""
    everywhere = mesh.replicated(devices)
    found = checkpoint.newest(directory / "checkpoints", print)
    if found is None:
        made = jax.jit(init, out_shardings=everywhere)
        return made(*arguments), train.Place()
    state = checkpoint.like(found.tree, jax.eval_shape(init, *arguments))
    return mesh.put(state, everywhere), train.Place(*found.meta["place"])


def main(config: Config) -> dict[str, Any]:
    """Runs the experiment; returns the last epoch's row."""
    processes.start()
    devices = mesh.make(config.model_devices)
    examples, test = streams(config, devices)
    classes = len(examples.source.classes)
    nets = [protocol.network(name, classes) for name in PAIRS[config.pair]]
    student = nets[0] if config.method == "teacher" else nets[1]
    variables = teacher(config, nets[0], devices)
    answers = distill.nobody if variables is None else distill.frozen(nets[0])
    view, test_view = views(config)
    tx = optimiser(config, examples.steps)
    d = distill.distiller(student, answers, spec(config), tx)
    with refusing("cannot train"):
        step = train.make_step(d, examples, view=view)
        batch = train.example(examples, view)
        score = evaluate.scorer(student, test, view=test_view)
    directory, write = opened(config)
    key = jax.random.key(config.seed)
    shared, example = mesh.put((key, batch), mesh.replicated(devices))
    state, place = begin(directory, d.init, (shared, variables, example), devices)
    with checkpoint.writer(directory / "checkpoints", keep=2) as saving:
        run = train.fit(
            step,
            state,
            variables,
            examples,
            key=key,
            epochs=config.recipe().epochs,
            evaluate=score,
            log=write,
            name=config.method,
            start=place,
            save=lambda state, place: saving.save(
                int(state.step), state, {"place": list(place)}
            ),
            save_every=config.save_every,
        )
    if run.interrupted:
        raise SystemExit(f"interrupted; --resume {directory} goes on")
    return finish(config, directory, run.history)


def finish(
    config: Config, directory: pathlib.Path, history: list[log.Row]
) -> dict[str, Any]:
    """Writes and prints what came out: the last row, if anything was left to do."""
    if not history:
        print(f"{directory} had all its epochs already")
        return {}
    last = history[-1]
    if jax.process_index() == 0:
        result = {"pair": config.pair, **last, **log.versions()}
        result |= {"batch_size": config.recipe().batch_size, "fake": config.fake}
        (directory / "result.json").write_text(json.dumps(result, indent=2) + "\n")
        print(
            f"{config.pair}, {config.method}: accuracy {100 * last['accuracy']:.2f} %"
            f"{' (fake images)' if config.fake else ''}, "
            f"{last['examples/s']:,.1f} images/s, waited for data "
            f"{100 * last['waited']:.1f} % of the time; {directory}"
        )
    return last


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
