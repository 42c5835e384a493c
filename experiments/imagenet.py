"""ImageNet: ResNet-34 teaches ResNet-18, or ResNet-50 MobileNetV1.

    python -m experiments.imagenet --method teacher
    python -m experiments.imagenet --method dkd --teacher-run runs/imagenet/TIME
    python -m experiments.imagenet --fake --batch-size 8

Methods: "teacher" trains the teacher on the labels, "none" the student; "kd" and "dkd"
distil it under the usual protocol (100 epochs of SGD, batch 512, Inception crops and
flips); "patient" is Beyer et al.'s: the teacher sees the very crops and mixtures of
images that the student sees, the loss is the KL divergence at temperature 1 without any
labels, and the schedule is long.

Data are read from the files of TensorFlow Datasets' "imagenet2012", prepared as
array_record (if they are missing, the message says how), decoded and cropped by
threads, and never kept in memory. All devices of all processes are used; on an
accelerator networks compute in bfloat16. A run that was stopped, in the middle of an
epoch too, resumes with `--resume DIRECTORY`, on any number of devices that divides the
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
import os
import pathlib
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from experiments import common
from experiments.bench import fake_images
from jaxkd import checkpoint, data, distill, losses, mesh, processes, train
from jaxkd.data import augment, decode
from jaxkd.data.preprocessing import IMAGENET
from jaxkd.models import ZOO, Net

Pair = Literal["resnet34-resnet18", "resnet50-mobilenet_v1"]
# The share of the non-target classes, as the authors of DKD chose it for each pair.
DKD_BETA = {"resnet34-resnet18": 0.5, "resnet50-mobilenet_v1": 2.0}
# Epochs, batch size, learning rate as published; the rate of "patient" is ours: theirs,
# .03, is for networks without BatchNorm.
SGD, PATIENT = (100, 512, 0.2), (1200, 4096, 3e-3)
MAY_CHANGE = ("data_dir", "workers", "save_every", "model_devices")


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
    resume: str | None = None  # the directory of a run that was stopped
    fake: bool = False  # random images and a random teacher
    fake_images: int = 1024
    fake_classes: int = 1000


def main(config: Config) -> dict[str, Any]:
    """Run the experiment; return the last epoch's row."""
    # How long and fast, on which devices.
    processes.start()
    devices = mesh.make(config.model_devices)
    patient = config.method == "patient"
    epochs, batch_size, rate = PATIENT if patient else SGD
    epochs = config.epochs or (2 if config.fake else epochs)
    batch_size, rate = config.batch_size or batch_size, config.learning_rate or rate

    # The data, and how networks see them.
    examples, test = streams(config, batch_size, devices)
    plain = augment.chain(
        augment.to_float(), augment.normalise(*map(np.array, IMAGENET))
    )
    # Coefficients are uniform in [0, 1]: images between the data, not near them.
    mixed = [augment.mixup(1.0)] if patient else []
    view = augment.chain(augment.flip(), plain, *mixed)

    # The networks.
    classes = len(examples.source.classes)
    teacher, student = (network(name, classes) for name in config.pair.split("-"))
    if config.method == "teacher":
        student = teacher

    # The objective, and the optimiser.
    ce = distill.on_labels(losses.cross_entropy)
    kd = distill.on_logits(losses.kd, temperature=1.0)
    share = {"alpha": 1.0, "beta": DKD_BETA[config.pair]}
    dkd = distill.on_logits_and_labels(losses.dkd, temperature=1.0, **share)
    spec = {
        "teacher": {"ce": (1.0, ce)},
        "none": {"ce": (1.0, ce)},
        "kd": {"ce": (0.5, ce), "kd": (0.5, kd)},
        "dkd": {"ce": (1.0, ce), "dkd": (1.0, dkd)},
        "patient": {"kd": (1.0, kd)},
    }[config.method]

    steps = epochs * examples.steps
    if patient:
        warm = min(5000, steps // 10)
        schedule = optax.warmup_cosine_decay_schedule(0.0, rate, warm, max(steps, 1))
        adam = optax.adamw(schedule, weight_decay=0.01)
        tx = optax.chain(optax.clip_by_global_norm(1.0), adam)
    else:
        drops = {int(at * steps): 0.1 for at in (0.3, 0.6, 0.9)}
        schedule = optax.piecewise_constant_schedule(rate, drops)
        tx = optax.chain(
            optax.add_decayed_weights(1e-4), optax.sgd(schedule, momentum=0.9)
        )

    # The training.
    taught = None
    if config.method not in ("teacher", "none"):
        variables = teacher_variables(config, teacher)
        taught = teacher, mesh.put(variables, mesh.sharded(variables, devices))
    directory, log = common.start("imagenet", config, may_change=MAY_CHANGE)
    run = train.learn(
        student,
        examples,
        spec=spec,
        teacher=taught,
        tx=tx,
        view=view,
        epochs=epochs,
        key=jax.random.key(config.seed),
        test=test,
        test_view=plain,
        checkpoints=directory / "checkpoints",
        save_every=config.save_every,
        log=log,
        name=config.method,
    )

    # The result.
    last = run.history[-1]
    if jax.process_index() == 0:
        print(
            f"{config.pair}, {config.method}: accuracy {100 * last['accuracy']:.2f} %"
            f"{' (fake images)' if config.fake else ''}, "
            f"{last['examples/s']:,.1f} images/s, waited for data "
            f"{100 * last['waited']:.1f} % of the time; {directory}"
        )
    return last


def streams(
    config: Config, batch_size: int, devices: Any
) -> tuple[data.Stream, data.Stream]:
    """Open the training and the test data."""
    size, held_out = config.image_size, config.evaluate_on == "held_out"
    names = ("train[2%:]", "train[:2%]") if held_out else ("train", "validation")
    crops = (decode.random_crop(size), decode.centre_crop(size))
    with common.refusing("no data"):
        if config.fake:
            counts = config.fake_images, max(1, config.fake_images // 8)
            classes = config.fake_classes
            sources = [fake_images.source(n, size, classes) for n in counts]
        else:
            sources = [
                data.records(
                    config.dataset, name, decode=crop, data_dir=config.data_dir
                )
                for name, crop in zip(names, crops, strict=True)
            ]
        if not (steps := sources[0].examples // batch_size):
            raise ValueError(
                f"batch_size must be 1 to the {sources[0].examples} examples, got "
                f"{batch_size}, {steps} steps an epoch"
            )
        examples, test = (
            data.Stream(source, batch_size, workers=config.workers, mesh=devices)
            for source in sources
        )
    return examples, test


def network(name: str, classes: int) -> Net:
    """Make a network of the zoo; on an accelerator it computes in bfloat16."""
    on_cpu = jax.default_backend() == "cpu"
    return ZOO[name](classes=classes, dtype=None if on_cpu else jnp.bfloat16)


def teacher_variables(config: Config, net: Net) -> Any:
    """Read what a run with `--method teacher` trained; random for `--fake`."""
    shape = (1, config.image_size, config.image_size, 3)
    init = jax.jit(lambda: net.init(jax.random.key(config.seed), jnp.zeros(shape)))
    if config.fake:
        return init()
    if config.teacher_run is None:
        raise SystemExit("no teacher: --teacher-run DIRECTORY of a `--method teacher`")
    folder = pathlib.Path(config.teacher_run) / "checkpoints"
    with common.refusing(f"no teacher in {folder}"):
        found = checkpoint.newest(folder, print)
        if found is None:
            raise FileNotFoundError("there is no whole checkpoint")
        # The shapes tell the pair apart. What is the teacher here was a student there.
        trained = {part: found.tree[part]["student"] for part in ("params", "state")}
        wanted = dict(zip(trained, jax.eval_shape(init), strict=True))
        return tuple(checkpoint.like(trained, wanted).values())


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
