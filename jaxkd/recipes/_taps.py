"""Which taps of two networks a recipe compares, and which parameters lie below."""

import math
import re
from collections.abc import Mapping
from typing import Any

import jax
from jaxtyping import Array

from jaxkd.models.net import Net
from jaxkd.recipes._record import Trained
from jaxkd.types import Batch, Outputs

Pairs = dict[str, str]  # the student's tap: the teacher's


def outputs(student: Net, teacher: Trained, batch: Batch) -> tuple[Outputs, Outputs]:
    """Return the shapes of what the two networks return for a batch."""
    net, variables = teacher

    def both(variables: Any, x: Array) -> tuple[Outputs, Outputs]:
        fresh = student.init(jax.random.key(0), x)
        s, _ = student.apply(*fresh, x, train=False)
        t, _ = net.apply(*variables, x, train=False)
        return s, t

    return jax.eval_shape(both, variables, batch["image"])


def match_stages(
    student: Net,
    teacher: Trained,
    batch: Batch,
    *,
    suffix: str = "",
    teacher_suffix: str | None = None,
) -> Pairs:
    """Pair each stage of the student with the teacher's last one of the same map size.

    Args:
      student: the network to train.
      teacher: the trained network.
      batch: an example, as the networks see it.
      suffix: of the taps' names after "stage1", such as "_pre" for those before the
        activation.
      teacher_suffix: of the teacher's, if it is another.

    Raises:
      ValueError: if no two stages have maps of equal size; lists the sizes.
    """
    s, t = outputs(student, teacher, batch)
    ours = _sizes(s, suffix)
    theirs = _sizes(t, suffix if teacher_suffix is None else teacher_suffix)
    found = {
        name: alike[-1]
        for name, size in ours.items()
        if (alike := [other for other in theirs if theirs[other] == size])
    }
    if not found:
        raise ValueError(
            f"no stages have maps of equal size: student {ours}, teacher {theirs}"
        )
    return found


def _sizes(outputs: Outputs, suffix: str) -> dict[str, tuple[int, ...]]:
    """Height and width of the stages' maps, in order."""
    return {
        name: tap.shape[1:3]
        for name, tap in outputs.taps.items()
        if re.fullmatch(rf"stage\d+{suffix}", name)
    }


def last(pairs: Pairs) -> Pairs:
    """Return the deepest pair."""
    return dict(list(pairs.items())[-1:])


def second(pairs: Pairs) -> Pairs:
    """Return the second pair, RepDistiller's hint layer; the first of only one."""
    return dict(list(pairs.items())[:2][-1:])


def units(tap: Any) -> int:
    """Return how many features of an example a tap has."""
    return math.prod(tap.shape[1:])


def parameters(student: Net, batch: Batch) -> dict[str, str]:
    """Return for each top-level name of the student's parameters its path pattern."""
    params, _ = jax.eval_shape(student.init, jax.random.key(0), batch["image"])
    return {
        name: f"student/{name}/*" if isinstance(tree, Mapping) else f"student/{name}"
        for name, tree in params.items()
    }


def without_head(student: Net, batch: Batch) -> tuple[str, ...]:
    """Return the patterns of all parameters but those of the layer called "head"."""
    found = parameters(student, batch)
    return ("terms/*", *(p for name, p in found.items() if name != "head"))


def up_to(student: Net, batch: Batch, stages: list[str]) -> tuple[str, ...]:
    """Return the patterns of the stem's and these stages' parameters.

    Raises:
      ValueError: if none is named after them.
    """
    found = parameters(student, batch)
    below = tuple(
        pattern
        for name, pattern in found.items()
        if re.match(rf"(stem|{'|'.join(stages)})(?!\d)", name)
    )
    if not below:
        raise ValueError(
            f"no parameters of the student are named after stem or {stages}: give "
            f"trains= patterns of those up to the hint; there are {sorted(found)}"
        )
    return ("terms/*", *below)
