"""The pairs that the benches train: networks, shapes, costs, and how rows are shown."""

import contextlib
import functools
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax

from experiments.bench import hardware
from jaxkd import cost, data
from jaxkd.models import CNNS, MLPS, ZOO, cnn, mlp
from jaxkd.report import show

# experiment -> student, teacher, image shape, batch, temperature and weights (hard,
# soft). These have a counterpart in against_torch.py.
EXPERIMENTS: dict[str, dict[str, Any]] = {
    "mnist_mlp": {
        "student": functools.partial(mlp, **MLPS["student"]),
        "teacher": functools.partial(mlp, **MLPS["teacher"]),
        "shape": (28, 28, 1),
        "batch_size": 64,
        "steps": 937,
        "kd": (5.0, 0.1, 0.9),
        "teachers": ("live", "cached", "none"),
    },
    "cifar10_cnn": {
        "student": functools.partial(cnn, **CNNS["student"]),
        "teacher": functools.partial(cnn, **CNNS["teacher"]),
        "shape": (32, 32, 3),
        "batch_size": 128,
        "steps": 20,
        "kd": (2.0, 0.75, 0.25),
        "teachers": ("live", "cached", "none"),
    },
    "cifar10_cnn_teacher": {
        "student": functools.partial(cnn, **CNNS["teacher"]),
        "teacher": None,
        "shape": (32, 32, 3),
        "batch_size": 128,
        "steps": 8,
        "kd": None,
        "teachers": ("none",),
    },
}


def of_zoo(student: str, teacher: str | None, **case: Any) -> dict[str, Any]:
    """A case of networks of the zoo, trained by SGD as they are in the literature."""
    make = lambda name: functools.partial(ZOO[name], classes=case["classes"])
    return {
        "student": make(student),
        "teacher": teacher and make(teacher),
        "teachers": ("live", "cached", "none") if teacher else ("none",),
        "tx": optax.sgd(1e-3, momentum=0.9),
        **case,
    }


_SMALL = {"classes": 100, "shape": (32, 32, 3), "batch_size": 64, "steps": 50}
_SMALL |= {"kd": (4.0, 0.1, 0.9)}
_LARGE = {"classes": 1000, "shape": (224, 224, 3), "batch_size": 256, "steps": 10}
_LARGE |= {"kd": (1.0, 0.5, 0.5)}
CIFAR = {
    "resnet32x4-resnet8x4": of_zoo("resnet8x4", "resnet32x4", **_SMALL),
    "resnet56-resnet20": of_zoo("resnet20", "resnet56", **_SMALL),
    "wrn_40_2-wrn_16_2": of_zoo("wrn_16_2", "wrn_40_2", **_SMALL),
    "vgg13-vgg8": of_zoo("vgg8", "vgg13", **_SMALL),
    "resnet32x4": of_zoo("resnet32x4", None, **_SMALL),  # the teacher's own training
}
IMAGENET = {
    "resnet50-resnet18": of_zoo("resnet18", "resnet50", **_LARGE),
    "resnet34-resnet18": of_zoo("resnet18", "resnet34", **_LARGE),
    "resnet50-mobilenet_v1": of_zoo("mobilenet_v1", "resnet50", **_LARGE),
    "resnet50": of_zoo("resnet50", None, **_LARGE),
}
CASES = EXPERIMENTS | CIFAR | IMAGENET
# For a look on a CPU; what takes longest there is compiling.
SHORT = {
    "mnist_mlp": CASES["mnist_mlp"] | {"steps": 100},
    "resnet32x4-resnet8x4": CASES["resnet32x4-resnet8x4"]
    | {"steps": 2, "batch_size": 8},
}
PRESETS = {
    "own": EXPERIMENTS,
    "cifar": CIFAR,
    "imagenet": IMAGENET,
    "all": CASES,
    "short": SHORT,
}


def chosen(config: Any) -> dict[str, dict[str, Any]]:
    """The cases that a configuration asks for, with its batch size and steps.

    Raises:
      SystemExit: for a name that there is not, or a number below 1.
    """
    own = PRESETS[config.preset]
    if unknown := sorted(set(config.experiments) - set(CASES)):
        raise SystemExit(f"no experiment {unknown[0]!r}; there are {sorted(CASES)}")
    given = {"batch_size": config.batch_size, "steps": config.steps}
    given = {name: value for name, value in given.items() if value is not None}
    for name, value in {**given, "repeats": config.repeats}.items():
        if value < 1:
            raise SystemExit(f"{name} must be >= 1, got {value}")
    names = config.experiments or tuple(own)
    return {name: {**CASES[name], **own.get(name, {}), **given} for name in names}


def line(row: dict[str, Any], case: dict[str, Any], config: Any) -> dict[str, Any]:
    """The row with what it was measured on, printed as a line of JSON."""
    whole = {
        **row,
        "dtype": config.dtype,
        "batch_size": case["batch_size"],
        "steps": case["steps"],
        "device": hardware.kind(),
        "jax": jax.__version__,
    }
    print(json.dumps(whole), flush=True)
    return whole


def table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> None:
    """A table of the JSON lines, on the terminal, beside their stream.

    Args:
      rows: what was printed.
      columns: the keys to show and their heads; one that no row has is left out.
    """
    used = [key for key in columns if any(row.get(key) is not None for row in rows)]
    cell = lambda value: "" if value is None else str(value)
    with contextlib.redirect_stdout(sys.stderr):
        if rows:
            show([{columns[key]: cell(row.get(key)) for key in used} for row in rows])


def images(shape: tuple[int, ...], n: int, classes: int = 10) -> data.Dataset:
    """Random bytes in the shape of a data set."""
    rng = np.random.default_rng(0)
    return data.Dataset.of_images(
        name="random",
        split="train",
        images=rng.integers(0, 256, (n, *shape), dtype=np.uint8),
        labels=rng.integers(0, classes, n).astype(np.int32),
        index=np.arange(n, dtype=np.int32),
        classes=tuple(map(str, range(classes))),
    )


def networks(case: dict[str, Any], dtype: Any = None) -> tuple[Any, Any]:
    """The student and, where there is one, the teacher of a case."""
    student, teacher = case["student"], case["teacher"]
    return student(dtype=dtype), teacher and teacher(dtype=dtype)


def flops(case: dict[str, Any], teacher: str) -> int:
    """Of the model, a step: the student 6 a multiply-accumulate, a live teacher 2.

    The backward pass counts as two forward ones; it is a little less, as nothing needs
    the gradient of the images.
    """
    of = lambda net: cost.of(net, case["shape"]).macs
    each = 6 * of(case["student"]())
    each += 2 * of(case["teacher"]()) if teacher == "live" else 0
    return case["batch_size"] * each
