"""Born-again networks: each generation is taught by the one before (2018).

    found = born_again.generations(
        net, 3, spec, learn, key=key, example=train.example(resident, view)
    )

and the generations together are one more teacher, or the best classifier::

    ensemble.mean(born_again.committee(net, len(found))), tuple(found.values())

References:
  Furlanello, Lipton, Tschannen, Itti, Anandkumar. `Born-Again Neural Networks
  <https://arxiv.org/abs/1805.04770>`_, 2018.
"""

import os
from typing import Any

from jaxtyping import Array

from jaxkd import _check, distill
from jaxkd.distill import Spec, Teacher
from jaxkd.models.net import Net
from jaxkd.schemes import chain, ensemble
from jaxkd.types import Batch


def generations(
    net: Net,
    count: int,
    spec: Spec,
    learn: chain.Learn,
    *,
    key: Array,
    example: Batch,
    teacher: Teacher = distill.no_teacher,
    teacher_variables: Any = None,
    directory: str | os.PathLike | None = None,
) -> dict[str, chain.Variables]:
    """Train one network again and again, each time taught by the last.

    Without a `teacher`, generation 0 learns from the labels alone. In the paper the
    students' objective is the cross-entropy with the labels and the KL divergence from
    the teacher at temperature 1.

    Args:
      net: the network of every generation.
      count: generations, >= 1, the first included.
      spec: the objective of the generations that are taught.
      learn: how one is trained, e.g. `chain.by_fit(...)`.
      key: each generation starts from a different one made from it.
      example: a batch as the network sees it.
      teacher: of the first generation, e.g. a network trained before.
      teacher_variables: its variables.
      directory: where the generations are kept, and taken from by the next call.

    Returns:
      The variables of all generations: "generation0", "generation1", ...

    Raises:
      ValueError: as `chain.chain`, before work.
    """
    _check.whole(1)("count", count)
    return chain.chain(
        {f"generation{i}": net for i in range(count)},
        spec,
        learn,
        key=key,
        example=example,
        teacher=teacher,
        teacher_variables=teacher_variables,
        directory=directory,
    )


def committee(net: Net, count: int) -> Teacher:
    """Return the generations side by side, whose variables are the tuple of theirs.

    The paper's BAN ensemble is `ensemble.mean` of this.

    Args:
      net: the network of every generation.
      count: generations, >= 1.
    """
    _check.whole(1)("count", count)
    names = [f"generation{i}" for i in range(count)]
    return ensemble.of([distill.frozen(net)] * count, names=names)
