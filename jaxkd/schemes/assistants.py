"""Teacher assistants: from large to small over networks in between (2020).

A student learns badly from a teacher that is far larger; networks of sizes in between,
each taught by the next larger one, lead down to it.

References:
  Mirzadeh, Farajtabar, Li, Levine, Matsukawa, Ghasemzadeh. `Improved Knowledge
  Distillation via Teacher Assistant <https://arxiv.org/abs/1902.03393>`_, 2020.
"""

import math
import os
from collections.abc import Mapping
from typing import Any

import jax
from jaxtyping import Array

from jaxkd import distill
from jaxkd.distill import Spec, Teacher
from jaxkd.models.net import Net
from jaxkd.schemes import chain
from jaxkd.types import Batch


def descend(
    nets: Mapping[str, Net],
    spec: Spec,
    learn: chain.Learn,
    *,
    key: Array,
    example: Batch,
    teacher: Teacher = distill.no_teacher,
    teacher_variables: Any = None,
    directory: str | os.PathLike | None = None,
) -> dict[str, chain.Variables]:
    """Train networks from large to small, each taught by the one before.

    Without a `teacher`, the first is the teacher and learns from the labels alone; with
    one, the first is already an assistant.

    Args:
      nets: by name, from the largest to the student, e.g. `{"teacher": ...,
        "assistant": ..., "student": ...}`.
      spec: the objective of those that are taught.
      learn: how one is trained, e.g. `chain.by_fit(...)`.
      key: each network starts from a different one made from it.
      example: a batch as the networks see it.
      teacher: of the first network, if it is trained already.
      teacher_variables: its variables.
      directory: where the networks are kept, and taken from by the next call.

    Returns:
      The variables by name, in order.

    Raises:
      ValueError: before work, as `chain.chain`, and if the parameters do not become
        fewer from the first to the last network.
    """
    shapes = chain.rehearse(nets, spec, example, teacher, teacher_variables)
    sizes = {name: _size(params) for name, (params, _) in shapes.items()}
    counts = list(sizes.values())
    if len(counts) > 1 and not counts[0] > counts[-1]:
        raise ValueError(f"nets must go from large to small, got parameters {sizes}")
    return chain.chain(
        nets,
        spec,
        learn,
        key=key,
        example=example,
        teacher=teacher,
        teacher_variables=teacher_variables,
        directory=directory,
    )


def _size(params: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
