"""Recipes that compare how the examples lie to one another, in one stage."""

import numpy as np

from jaxkd import data, terms
from jaxkd.models.net import Net
from jaxkd.recipes import _taps as taps
from jaxkd.recipes._record import (
    CIFAR,
    Budget,
    Recipe,
    Trained,
    beside_labels,
    needed,
)
from jaxkd.types import Batch


def sp(
    student: Net,
    teacher: Trained,
    batch: Batch,
    *,
    budget: Budget = CIFAR,
    weight: float = 3000.0,
) -> Recipe:
    """Similarities between examples in the last map, weight 3000, beside the labels.

    Source: HobbitLong/RepDistiller scripts/run_cifar_distill.sh:11 (weight),
    helper/loops.py:144-148 (layer).
    """
    term = terms.sp(taps.last(taps.match_stages(student, teacher, batch)))
    return beside_labels(student, teacher, "sp", weight, term, budget)


def rkd(
    student: Net,
    teacher: Trained,
    batch: Batch,
    *,
    budget: Budget = CIFAR,
    weight: float = 1.0,
    distance: float = 25.0,
    angle: float = 50.0,
) -> Recipe:
    """Distances (25) and angles (50) between embeddings, beside the labels.

    Source: HobbitLong/RepDistiller scripts/run_cifar_distill.sh:17 (weight),
    distiller_zoo/RKD.py:10 (25 and 50), helper/loops.py:149-152 (layer).
    """
    term = terms.rkd("pooled", distance=distance, angle=angle)
    return beside_labels(student, teacher, "rkd", weight, term, budget)


def pkt(
    student: Net,
    teacher: Trained,
    batch: Batch,
    *,
    budget: Budget = CIFAR,
    weight: float = 3e4,
) -> Recipe:
    """Neighbour probabilities of the embeddings, weight 30000, beside the labels.

    Source: HobbitLong/RepDistiller scripts/run_cifar_distill.sh:19 (weight),
    helper/loops.py:153-156 (layer).
    """
    return beside_labels(student, teacher, "pkt", weight, terms.pkt("pooled"), budget)


def cc(
    student: Net,
    teacher: Trained,
    batch: Batch,
    *,
    budget: Budget = CIFAR,
    weight: float | None = None,
) -> Recipe:
    """Gaussian kernels between embeddings, beside the labels.

    There is no published weight for the paper's loss: RepDistiller's .02 belongs to a
    program of that name which multiplies differences of neighbours in the batch.

    Source: Peng et al. 2019, arXiv:1904.01802 (loss); HobbitLong/RepDistiller
    distiller_zoo/CC.py:14-17 (the other one).
    """
    reason = "RepDistiller's .02 belongs to another loss of that name"
    w = needed("cc", weight, reason)
    return beside_labels(student, teacher, "cc", w, terms.cc("pooled"), budget)


def crd(
    student: Net,
    teacher: Trained,
    batch: Batch,
    *,
    dataset: data.Dataset,
    budget: Budget = CIFAR,
    weight: float = 0.8,
    negatives: int = 16384,
) -> Recipe:
    """Contrastive representations, weight .8, beside the labels.

    128 dimensions, 16384 negatives of other classes (at most a third of the data),
    temperature .07, momentum .5. `dataset` is the training data, whose indices and
    labels say what is a negative of what.

    Source: HobbitLong/RepDistiller scripts/run_cifar_distill.sh:29 (weight),
    train_student.py:81-85.
    """
    index, classes = np.asarray(dataset.index), np.asarray(dataset.labels)
    term = terms.crd(
        "pooled",
        index=index,
        labels=classes,
        dims=128,
        negatives=min(negatives, len(index) // 3),
        momentum=0.5,
        temperature=0.07,
    )
    return beside_labels(student, teacher, "crd", weight, term, budget)
