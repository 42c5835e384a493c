"""Measure a network without some of its units, by masking and without training."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array

from jaxkd import _check, evaluate, store
from jaxkd.compress.prune._recalibrated import IMAGES, averaged, momenta
from jaxkd.compress.prune.plan import Plan
from jaxkd.data.augment import View
from jaxkd.distill import frozen
from jaxkd.models.net import Net
from jaxkd.types import Batch

MEASURES: dict[str, Callable[[Array, Array], Array]] = {
    "accuracy": evaluate.accuracy,
    "nll": lambda logits, labels: -evaluate.nll(logits, labels),
}


class Metric(NamedTuple):
    """A measurement of candidates; greater is better.

    Attributes:
      of: from the units that remain, `bool[units]`, to the metric.
      settings: what identifies it, for JSON: a file of another one is refused.
    """

    of: Callable[[np.ndarray], float]
    settings: Mapping[str, Any]

    def __call__(self, keep: np.ndarray) -> float:
        """Return the metric of the network with these units."""
        return self.of(keep)


def masked_metric(
    net: Net,
    plan: Plan,
    variables: tuple[Any, Any],
    resident: Batch,
    *,
    view: View,
    measure: str | Callable[[Array, Array], Array] = "accuracy",
    eval_rate: float = 1.0,
    seed: int = 0,
    batch_size: int = 500,
    recalibrate_on: Batch | None = None,
) -> Metric:
    """Measure a network whose removed units are zeros, in inference.

    The units are an argument of one compiled program: hundreds of candidates cost one
    compilation. The images are chosen once.

    Args:
      net: the network.
      plan: of it.
      variables: its `(params, state)`.
      resident: data that is neither trained nor tested on, from `data.on_device`.
      view: how the network sees the images; not random.
      measure: "accuracy" in [0, 1], "nll" (the log-likelihood of the labels in nats,
        <= 0) or a function `(logits, labels) -> scalar`, greater for better.
      eval_rate: the share of the images to measure on, in (0, 1].
      seed: of their choice.
      batch_size: images in one pass.
      recalibrate_on: training images, from `data.on_device`, from which BatchNorm has
        its statistics for each candidate anew, see `recalibrated`. None leaves those of
        the whole network.

    Returns:
      The metric.

    Raises:
      ValueError: if an argument is out of its range, or a batch statistic that is to be
        taken anew does not move in training.
    """
    if not 0 < eval_rate <= 1:
        raise ValueError(f"eval_rate must be in (0, 1], got {eval_rate}")
    _check.whole(0)("seed", seed)
    _check.whole(1)("batch_size", batch_size)
    if not callable(measure):
        _check.one_of(*MEASURES)("measure", measure)
    score = measure if callable(measure) else MEASURES[measure]
    chosen = part(resident, max(1, round(eval_rate * len(resident["label"]))), seed)
    kept = None
    if recalibrate_on is not None:
        kept = momenta(net, *variables, recalibrate_on, view)

    @jax.jit
    def run(
        keep: Array, variables: tuple[Any, Any], chosen: Batch, some: Batch | None
    ) -> Array:
        whole = {"params": variables[0], "state": variables[1]}
        tree = plan.mask(whole, keep=keep)
        params, state = tree["params"], tree["state"]
        if some is not None:
            state = averaged(
                net, params, state, kept, some, view=view, batch_size=IMAGES, seed=seed
            )
        answer = frozen(net), (params, state)
        logits = evaluate.predict(*answer, chosen, view=view, batch_size=batch_size)
        return score(logits, chosen["label"])

    name = measure if isinstance(measure, str) else getattr(measure, "__name__", "own")
    settings = {
        "metric": name,
        "plan": plan.hash,
        "variables": store.digest(variables),
        "data": store.digest(chosen),
        "eval_rate": eval_rate,
        "seed": seed,
    }
    if recalibrate_on is not None:
        settings["recalibrated"] = store.digest(recalibrate_on)
    of = lambda keep: float(run(keep, variables, chosen, recalibrate_on))
    return Metric(of, settings)


def part(resident: Batch, n: int, seed: int) -> Batch:
    """Return n examples (or all, if there are fewer), the same for the same seed."""
    rows = np.random.default_rng(seed).permutation(len(resident["label"]))[:n]
    rows = np.sort(rows)
    return jax.tree.map(lambda a: a[rows], resident)
