"""What is measured of a trained network, on its own and beside the teacher's."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array

from jaxkd import distill, evaluate
from jaxkd.data import augment
from jaxkd.models import Net
from jaxkd.types import Batch, Outputs

CKA_IMAGES = 2000  # the first of the test set: its cost grows with their features

Metrics = dict[str, np.ndarray]  # by name; of students `[seeds]`


class Seen(NamedTuple):
    """What a network says about a test set.

    Attributes:
      logits: `[examples, classes]`.
      pooled: what its head sees of the first images, `[<= CKA_IMAGES, features]`.
    """

    logits: Array
    pooled: Array


Probe = Callable[[Any, Batch], Seen]  # (variables, resident test data)


def prober(net: Net, view: augment.View) -> Probe:
    """Builds the compiled function from variables and test data to `Seen`."""
    answer = distill.frozen(net)

    def pooled(variables: Any, batch: Batch) -> Outputs:
        # In the logits' place, which is what `predict` collects; a network without
        # hidden layers has its image there.
        return Outputs(answer(variables, batch).tap("pooled"), {})

    @jax.jit
    def probe(variables: Any, resident: Batch) -> Seen:
        first = jax.tree.map(lambda a: a[:CKA_IMAGES], resident)
        return Seen(
            evaluate.predict(answer, variables, resident, view=view),
            evaluate.predict(pooled, variables, first, view=view),
        )

    return probe


@jax.jit
def _against(own: Seen, teacher: Seen, label: Array) -> dict[str, Array]:
    return {
        "accuracy": evaluate.accuracy(own.logits, label),
        "agreement": evaluate.agreement(own.logits, teacher.logits),
        "nll": evaluate.nll(own.logits, label),
        "ece": evaluate.ece(own.logits, label),
        "cka": evaluate.cka(own.pooled, teacher.pooled),
    }


def against(own: Seen, teacher: Seen, label: Array) -> Metrics:
    """Accuracy, NLL and ECE of a network; its agreement and CKA with the teacher."""
    measured = _against(own, teacher, label)
    return {name: np.asarray(value) for name, value in measured.items()}


def stack(of_seeds: list[Metrics]) -> Metrics:
    """One array `[seeds]` for each name."""
    return {name: np.stack([m[name] for m in of_seeds]) for name in of_seeds[0]}


def listed(metrics: Metrics) -> dict[str, Any]:
    """The same for the log."""
    return {f"measured/{name}": value.tolist() for name, value in metrics.items()}
