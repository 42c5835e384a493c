"""CIFAR-100: methods against each other, for any teacher and student of the zoo.

RepDistiller's protocol: 240 epochs of SGD at batch 64, crops and flips, the accuracy
after the last epoch. Methods are those of `jaxkd.recipes` with their published options,
or others after a colon, or functions of your own, of the same type. The teacher is
trained once and kept under OUT/teachers. Students of one seed start from the same
weights and see the same batches. On an accelerator networks compute in bfloat16.

    python -m experiments.cifar100 --teacher resnet32x4 --student resnet8x4
    python -m experiments.cifar100 --methods kd dkd:beta=2.0 crd mymodule:myfunction

What a CPU can do: a resnet20 that has seen all images teaches a resnet8 on a fifth.

    python -m experiments.cifar100 --teacher resnet20 --student resnet8 \
        --teacher-epochs 8 --epochs 2 --train-images 10000 --no-every-epoch

Needs the official archive. Choose hyper-parameters with `--evaluate-on validation`.
Measured results are in experiments/README.md.
"""

import ast
import dataclasses
import importlib
import pathlib
import re
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments import common
from jaxkd import checkpoint, cost, data, evaluate, models, recipes, report, train
from jaxkd.data import augment
from jaxkd.schemes import staged


@dataclasses.dataclass(frozen=True)
class Config(common.Config):
    """Every field can be given on the command line."""

    teacher: str = "resnet56"  # of the zoo, as the student
    student: str = "resnet20"
    methods: tuple[str, ...] = ("kd",)
    dataset: str = "cifar100"
    train_images: int | None = None  # number of the students' images; None is all
    epochs: int = 240  # of the students
    teacher_epochs: int = 240
    learning_rate: float | None = None  # None: .01 for Mobile- and ShuffleNets, or .05
    batch_size: int = 64
    every_epoch: bool = True  # measure after each epoch, or only after the last


def main(config: Config) -> list[dict[str, Any]]:
    """Run the experiment; return what was measured of each method, the best first."""
    # The data, and how networks see them when they train and when they are measured.
    whole, test = common.load(config, config.dataset)
    images = common.some(whole, config.train_images)
    normalise = augment.normalise(*data.channel_statistics(whole))
    plain = augment.chain(augment.to_float(), normalise)
    padding = whole.images.shape[1] // 8  # 4 pixels of CIFAR's 32
    view = augment.chain(augment.flip(), augment.crop(padding), plain)
    resident = data.on_device(images)

    # The networks.
    dtype = None if jax.default_backend() == "cpu" else jnp.bfloat16
    with common.refusing(f"networks are {', '.join(models.ZOO)}; there is no"):
        teacher, student = (
            models.ZOO[name](classes=test.num_classes, dtype=dtype)
            for name in (config.teacher, config.student)
        )

    # The objectives: a recipe for each method, tried on shapes before a teacher is
    # trained.
    batch = train.example(resident, plain, 256)
    length = budget(config, config.student, config.epochs, images)

    def make(method: str, variables: Any) -> recipes.Recipe:
        function, options = read(method)
        options["budget"] = length
        taught = (teacher, variables)
        return recipes.build(
            function, student, taught, batch, dataset=images, **options
        )

    methods = list(dict.fromkeys(["labels", *config.methods]))
    shapes = jax.eval_shape(teacher.init, jax.random.key(0), batch["image"])
    with common.refusing("cannot train"):
        data.epoch(jax.random.key(0), len(images.images), config.batch_size)
        for method in methods:
            if (scheme := make(method, shapes).scheme) != "staged":
                raise ValueError(f"{method} is for schemes.{scheme}")

    # The teacher.
    directory, log = common.start("cifar100", config, may_change=["methods"])
    how: dict[str, Any] = {"view": view, "batch_size": config.batch_size, "log": log}
    how["together"] = False  # convolutions are faster so
    kept = f"{config.dataset}-{config.teacher}-{config.teacher_epochs}-epochs"
    taught = train.learn(
        teacher,
        whole,
        tx=budget(config, config.teacher, config.teacher_epochs, whole).optimizer(),
        epochs=config.teacher_epochs,
        seeds=1,
        test=test,
        test_view=plain,
        checkpoints=pathlib.Path(config.out) / "teachers" / kept,
        save_epochs=10,
        name="teacher",
        **how,
    )

    # The students of each method; a resumed run reads those of finished methods.
    results: list[dict[str, Any]] = []
    for method in methods:
        folder = directory / re.sub("[^a-z0-9]+", "_", method)
        if checkpoint.has_notes(folder):
            results.append(checkpoint.read(folder).meta)
            continue
        begin, made = time.perf_counter(), make(method, taught.seed(0))
        score = evaluate.scorer(made.net, data.on_device(test), view=plain)
        run = staged.fit(
            made.stages,
            made.net,
            made.teacher,
            made.teacher_variables,
            resident,
            key=jax.vmap(jax.random.key)(jnp.arange(config.seeds)),
            evaluate=score if config.every_epoch else None,
            name=method,
            **how,
        )[-1]
        if run.interrupted:
            raise KeyboardInterrupt(f"in {method}: --resume {directory}")
        params, state = run.variables
        result: dict[str, Any] = {k: v.tolist() for k, v in score(run.state).items()}
        result["method"] = method
        result["parameters"] = cost.parameters(params) // config.seeds
        result["minutes"] = (time.perf_counter() - begin) / 60
        checkpoint.write(folder, {"params": params, "state": state}, result)
        results.append(result)
    results.sort(key=lambda result: -float(np.mean(result["accuracy"])))

    # The table and the picture.
    percent = {r["method"]: 100 * np.array(r["accuracy"]) for r in results}
    rows = [
        {
            "method": r["method"],
            "test accuracy %": report.mean_sd(r["accuracy"], scale=100),
            "gain ± s.e.": report.gain(r["accuracy"], percent["labels"] / 100),
            "NLL": report.mean_sd(r["nll"], digits=3),
            "parameters": f"{r['parameters']:,}",
            "minutes": f"{r['minutes']:.1f}",
        }
        for r in results
    ]
    alone, axis = float(percent["labels"].mean()), "test accuracy, %"
    report.dots(directory / "methods.svg", percent, x_label=axis, line=alone)
    common.write_report(
        directory,
        f"cifar100: {config.teacher} to {config.student}, {len(images.images):,} "
        f"images of {config.dataset}, {config.seeds} seeds",
        {common.LAST: rows},
        [
            f"Test accuracy of the teacher: {100 * taught.final()[0]:.2f} %.",
            "Gains over `labels`, the student alone, are paired.",
        ],
    )
    return results


def budget(
    config: Config, name: str, epochs: int, examples: data.Dataset
) -> recipes.Budget:
    """Return how long and how fast a network of the zoo is trained."""
    slow = name.startswith(("mobilenet", "shufflenet"))
    rate = config.learning_rate or (0.01 if slow else 0.05)
    return recipes.Budget(epochs, len(examples.images) // config.batch_size, rate)


def read(method: str) -> tuple[recipes.Method, dict[str, Any]]:
    """Read "dkd", "dkd:beta=2.0" or "module:function": a function and its options."""
    name, _, rest = method.partition(":")
    if rest and "=" not in rest:
        return getattr(importlib.import_module(name), rest), {}
    pairs = (pair.split("=") for pair in rest.split(",") if pair)
    return recipes.get(name), {key: ast.literal_eval(value) for key, value in pairs}


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
