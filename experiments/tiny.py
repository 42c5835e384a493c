r"""Tiny: MLPerf Tiny's image classifier, distilled and pruned.

The benchmark's network is a ResNet-8 for CIFAR-10, as large as the zoo's `resnet8`. A
teacher is trained from the official archive alone, its scores of a number of random
views of every image are stored once, and there are three lines of students, the first
two of them from the same first weights and for as many epochs:

* alone: on the labels, under views drawn anew in each epoch;
* distilled: on the stored scores of the very view that the student sees;
* pruned: the distilled students, less some of their channels, distilled further.

`experiments.tiny_files` quantizes them to int8, writes their files for LiteRT and ONNX
Runtime, and measures these.

    python -m experiments.tiny --archives DIR
    python -m experiments.tiny --archives DIR --evaluate-on validation --epochs 60

Measured results are in experiments/README.md.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from experiments import common
from jaxkd import cache, data, distill, losses, models, train
from jaxkd.compress import prune
from jaxkd.data import augment
from jaxkd.models import Net
from jaxkd.schemes import offline


@dataclasses.dataclass(frozen=True)
class Config(common.Config):
    """Every field can be given on the command line."""

    dataset: str = "cifar10"
    teacher: str = "resnet32x4"  # of the zoo, as the student
    student: str = "resnet8"
    train_images: int | None = None  # None is all
    teacher_epochs: int = 30
    epochs: int = 200  # of the students
    prune_epochs: int = 100
    teacher_rate: float = 0.2
    rate: float = 0.4
    prune_rate: float = 0.2
    teacher_decay: float = 5e-4  # of the weights
    decay: float = 1e-4
    batch_size: int = 512
    views: int = 40  # of each image, that the teacher scores
    padding: int = 3  # pixels by which a view is shifted at most
    temperature: float = 4.0
    hard_weight: float = 0.1  # of the labels
    soft_weight: float = 0.9  # of the teacher
    fraction: float = 0.43  # of the parameters that pruning leaves
    bfloat16: bool = True


def main(config: Config) -> dict[str, list[float]]:
    """Run the experiment; return the accuracies of each line."""
    # The data, and how networks see them.
    images, test = common.load(config, config.dataset, config.train_images)
    shape = images.images.shape[1:]
    normalise = augment.normalise(*data.channel_statistics(images))
    plain = augment.chain(augment.to_float(), normalise)
    shifted = augment.chain(augment.flip(), augment.crop(config.padding), plain)
    erased = augment.chain(shifted, augment.cutout(shape[0] // 4))
    with common.refusing("cannot train"):
        seen = cache.replayed(shifted, seed=0, views=config.views)

    # The networks, and the objective of those that are taught.
    dtype = jnp.bfloat16 if config.bfloat16 else None
    with common.refusing(f"networks are {', '.join(models.ZOO)}; there is no"):
        teacher, student = (
            models.ZOO[name](classes=images.num_classes, dtype=dtype)
            for name in (config.teacher, config.student)
        )
    kd = distill.on_logits(losses.kd, temperature=config.temperature)
    spec: distill.Spec = {
        "ce": (config.hard_weight, distill.on_labels(losses.cross_entropy)),
        "kd": (config.soft_weight, kd),
    }

    # What is pruned: the same number of channels of each seed's network.
    def pruned(variables: train.Variables) -> train.Variables:
        plan = prune.analyse_net(student, *variables, shape)
        target = prune.target(plan, "parameters", fraction=config.fraction, round_to=4)
        scores = np.asarray(prune.criteria.l2(plan, variables[0]))
        return plan.apply(variables, prune.uniform(plan, scores, target))

    with common.refusing("cannot train"):
        data.epoch(jax.random.key(0), len(images.images), config.batch_size)
        pruned(student.init(jax.random.key(0), jnp.zeros((1, *shape))))
    directory, log = common.start("tiny", config, may_change=["archives", "data_dir"])

    def learn(
        name: str, net: Net, epochs: int, rate: float, decay: float, **how: Any
    ) -> train.Run:
        steps = epochs * (len(images.images) // config.batch_size)
        schedule = optax.warmup_cosine_decay_schedule(0, rate, steps // 20, steps)
        sgd = optax.sgd(schedule, momentum=0.9, nesterov=True)
        return train.learn(
            net,
            tx=optax.chain(optax.add_decayed_weights(decay), sgd),
            epochs=epochs,
            batch_size=config.batch_size,
            together=False,
            checkpoints=directory / name,
            save_epochs=10,
            test=test,
            test_view=plain,
            log=log,
            name=name,
            **how,
        )

    # The teacher, and its scores of the views of every image.
    taught = learn(
        "teacher",
        teacher,
        config.teacher_epochs,
        config.teacher_rate,
        config.teacher_decay,
        examples=images,
        view=erased,
        seeds=1,
    )
    scores = cache.score(
        distill.frozen(teacher),
        taught.seed(0),
        images,
        view=seen,
        path=directory / "scores",
        dtype="float16",
    )

    # The students.
    length = config.epochs, config.rate, config.decay
    several: dict[str, Any] = {"seeds": config.seeds}
    alone = learn("alone", student, *length, examples=images, view=shifted, **several)
    several |= {"examples": offline.on_device(images, scores), "view": seen}
    several |= {"teacher": "cached", "spec": spec}
    distilled = learn("distilled", student, *length, **several)
    small = [pruned(distilled.seed(seed)) for seed in range(config.seeds)]
    net, length = (
        prune.from_variables(student, small[0]),
        (
            config.prune_epochs,
            config.prune_rate,
            config.decay,
        ),
    )
    start = jax.tree.map(lambda *leaves: jnp.stack(leaves), *small)
    half = learn("pruned", net, *length, start=start, **several)

    # The table.
    runs = {
        "teacher": (teacher, taught),
        "alone": (student, alone),
        "distilled": (student, distilled),
        "pruned": (net, half),
    }
    common.write_report(
        directory,
        f"tiny: {config.student} taught by {config.teacher}, {test.name}, "
        f"{len(test.images):,} {test.split} images, {config.seeds} seeds",
        {common.LAST: common.table(runs, test, plain)},
    )
    return {name: run.final().tolist() for name, (_, run) in runs.items()}


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
