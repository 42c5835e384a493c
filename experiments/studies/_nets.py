"""The networks of the studies, as data, by data set."""

from typing import Any

from jaxkd import models

Spec = dict[str, Any]  # the arguments of `models.mlp` or `models.cnn`


def _mlp(*widths: int) -> Spec:
    return {"widths": widths, "classes": 10}


def _cnn(first: int, second: int, hidden: int) -> Spec:
    return {"stages": ((first,), (second,)), "hidden": (hidden,), "classes": 10}


TEACHERS: dict[str, Spec] = {
    "digits": _mlp(128, 128),
    "mnist": models.MLPS["teacher"],
    "fashion_mnist": models.MLPS["teacher"],
    "cifar10": models.CNNS["wide"],
}
STUDENTS: dict[str, Spec] = {
    "digits": _mlp(16, 16),
    "mnist": models.MLPS["student"],
    "fashion_mnist": models.MLPS["student"],
    "cifar10": models.CNNS["narrow"],
}
_MLPS = [_mlp(200, 200), _mlp(50, 50), _mlp(200), _mlp(50), _mlp(10), _mlp()]
# From the study's student down to one hidden layer and none.
LADDERS: dict[str, list[Spec]] = {
    "digits": [_mlp(16, 16), _mlp(16), _mlp(4), _mlp()],
    "mnist": _MLPS,
    "fashion_mnist": _MLPS,
    "cifar10": [
        models.CNNS["narrow"],
        _cnn(16, 32, 64),
        _cnn(8, 16, 32),
        _mlp(128),
        _mlp(),
    ],
}


def build(spec: Spec) -> models.Net:
    """The network that these arguments make."""
    return models.mlp(**spec) if "widths" in spec else models.cnn(**spec)


def title(spec: Spec) -> str:
    """A short name, e.g. "200-200", "conv 32-64, 128", "linear"."""
    widths = spec["hidden" if "stages" in spec else "widths"]
    hidden = "-".join(map(str, widths))
    if "stages" not in spec:
        return hidden or "linear"
    stages = "-".join(str(width) for stage in spec["stages"] for width in stage)
    return f"conv {stages}, {hidden}"
