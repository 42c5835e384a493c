"""Published methods as data: stages, terms, taps, weights and rates with their sources.

A recipe is made for a student, a trained teacher and an example batch as the networks
see it, and is then trained like any objective of one's own::

    recipe = recipes.dkd(student, (teacher, variables), batch, beta=2.0)
    staged.fit(recipe.stages, recipe.net, recipe.teacher, recipe.teacher_variables,
               resident, view=view, key=key, batch_size=64)

Every figure is that of the authors' program, and the docstring says in which line of
which repository it is; where the library's loss is not the one that a figure belongs
to, the recipe asks for a weight. Lengths and rates are a `Budget`, by default
RepDistiller's for CIFAR-100 or, where they used others, the authors'.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from jaxkd._text import alternatives
from jaxkd.data import Dataset
from jaxkd.models.net import Net
from jaxkd.recipes import features, logits, relations, schemes, two_stages
from jaxkd.recipes._record import Budget, Recipe, Trained
from jaxkd.recipes.features import (
    at,
    cwd,
    hint,
    ickd,
    mgd,
    nst,
    ofd,
    pearson,
    reviewkd,
    simkd,
    srd,
    srrl,
    vid,
    vkd,
    wasserstein,
)
from jaxkd.recipes.logits import (
    ctkd,
    dist,
    dkd,
    kd,
    label_smoothing,
    labels,
    lskd,
    mlkd,
    nkd,
    ofa,
    rld,
    sdd,
    teacher_free,
    ttm,
    wkd_logits,
    wsld,
    wttm,
)
from jaxkd.recipes.relations import cc, crd, pkt, rkd, sp
from jaxkd.recipes.schemes import (
    assistants,
    born_again,
    ensemble,
    mean_teacher,
    mutual,
    stored,
)
from jaxkd.recipes.two_stages import ab, factor_transfer, fitnets, fsp, soft_then_hard
from jaxkd.types import Batch

Method = Callable[..., Recipe]

_METHODS: dict[str, Method] = {
    name: function
    for module in (logits, features, relations, two_stages, schemes)
    for name, function in vars(module).items()
    if inspect.isfunction(function)
    and function.__module__ == module.__name__
    and not name.startswith("_")
}
_COMMON = ("student", "teacher", "batch", "budget", "dataset")

__all__ = [
    "Budget",
    "Method",
    "Recipe",
    "Trained",
    "ab",
    "assistants",
    "at",
    "born_again",
    "build",
    "cc",
    "crd",
    "ctkd",
    "cwd",
    "dist",
    "dkd",
    "ensemble",
    "factor_transfer",
    "fitnets",
    "fsp",
    "get",
    "hint",
    "ickd",
    "kd",
    "knobs",
    "label_smoothing",
    "labels",
    "lskd",
    "mean_teacher",
    "mgd",
    "mlkd",
    "mutual",
    "names",
    "nkd",
    "nst",
    "ofa",
    "ofd",
    "pearson",
    "pkt",
    "reviewkd",
    "rkd",
    "rld",
    "sdd",
    "simkd",
    "soft_then_hard",
    "sp",
    "srd",
    "srrl",
    "stored",
    "summary",
    "teacher_free",
    "ttm",
    "vid",
    "vkd",
    "wasserstein",
    "wkd_logits",
    "wsld",
    "wttm",
]


def names() -> list[str]:
    """Return the names of all recipes, in the order of the documentation."""
    return list(_METHODS)


def get(name: str) -> Method:
    """Return the function that makes a recipe.

    Raises:
      ValueError: if there is none of that name; lists them and the near ones.
    """
    if name not in _METHODS:
        raise ValueError(f"no recipe {name!r}{alternatives(name, _METHODS)}")
    return _METHODS[name]


def summary(method: str | Method) -> str:
    """Return the first line of a recipe's documentation.

    >>> summary("kd")
    'Soft labels: .1 cross-entropy, .9 KL divergence at temperature 4.'
    """
    function = get(method) if isinstance(method, str) else method
    return (inspect.getdoc(function) or function.__name__).split("\n")[0]


def knobs(method: str | Method) -> dict[str, Any]:
    """Return the options of a recipe with their defaults, besides those of all recipes.

    >>> knobs("dkd")
    {'alpha': 1.0, 'beta': 8.0, 'temperature': 4.0}
    """
    function = get(method) if isinstance(method, str) else method
    return {
        name: parameter.default
        for name, parameter in inspect.signature(function).parameters.items()
        if name not in _COMMON
    }


def build(
    method: str | Method,
    student: Net,
    teacher: Trained | Sequence[Trained] | None,
    batch: Batch,
    *,
    dataset: Dataset | None = None,
    budget: Budget | None = None,
    **options: Any,
) -> Recipe:
    """Make a recipe by its name, or by a function of one's own of the same type.

    Args:
      method: one of `names()`, or a function.
      student: the network to train.
      teacher: the trained network and its variables, arrays or only their shapes;
        several for "ensemble", None where nobody teaches.
      batch: an example as the networks see it, arrays or only their shapes.
      dataset: the training data, for recipes that look at its indices and labels.
      budget: how long and how fast; None is the recipe's own.
      **options: of the recipe, see `knobs`.

    Returns:
      The recipe.

    Raises:
      ValueError: if there is no such recipe or option, if a weight or the data that it
        needs are not given, or if it does not fit the networks.
    """
    function = get(method) if isinstance(method, str) else method
    known = knobs(function)
    for name in options:
        if name not in known:
            own = getattr(function, "__name__", "the recipe")
            raise ValueError(f"{own} has no option {name!r}{alternatives(name, known)}")
    takes = inspect.signature(function).parameters
    if "dataset" in takes:
        if dataset is None:
            raise ValueError(f"{method} needs dataset=, the training data")
        options["dataset"] = dataset
    if budget is not None:
        options["budget"] = budget
    return function(student, teacher, batch, **options)
