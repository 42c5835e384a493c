"""Moving the biases of classes that a student never saw, or saw too much of."""

from collections.abc import Sequence
from typing import Any

import numpy as np

GRID = np.round(np.arange(-20, 20.05, 0.1), 1)  # biases tried on the test set


def moved(logits: np.ndarray, classes: Sequence[int], bias: Any) -> np.ndarray:
    """Adds a bias, one for each seed, to some classes of `[seeds, examples, classes]`.

    >>> moved(np.zeros((1, 1, 3)), [1], [2.5]).tolist()
    [[[0.0, 2.5, 0.0]]]
    """
    chosen = np.isin(np.arange(logits.shape[-1]), classes)
    return logits + np.asarray(bias)[:, None, None] * chosen


def bias_for_share(logits: np.ndarray, classes: Sequence[int], share: float) -> Any:
    """The bias with which some classes together win a given share of the examples.

    It needs no labels. An example is won if its margin, the largest logit of these
    classes less the largest of the others, exceeds minus the bias.

    Args:
      logits: `[seeds, examples, classes]`.
      classes: which get the bias.
      share: of the examples, in (0, 1).

    Returns:
      One bias for each seed.

    >>> margins = np.array([[[0.0, 1.0], [0.0, 3.0], [0.0, -5.0], [0.0, -7.0]]])
    >>> bias_for_share(margins, [1], 0.5).tolist()  # two are won: between -1 and 5
    [2.0]
    """
    chosen = np.isin(np.arange(logits.shape[-1]), classes)
    margin = logits[..., chosen].max(-1) - logits[..., ~chosen].max(-1)
    return -np.quantile(margin, 1 - share, axis=-1)


def best_bias(logits: np.ndarray, labels: np.ndarray, classes: Sequence[int]) -> Any:
    """The bias of GRID with the fewest errors, for each seed; of several the smallest.

    The paper chose it so, on the test set: an optimistic number, made to compare.
    """
    tries = GRID[np.argsort(np.abs(GRID), kind="stable")]
    seeds = len(logits)
    wrong = [errors(moved(logits, classes, [b] * seeds), labels) for b in tries]
    return tries[np.argmin(wrong, axis=0)]


def errors(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How many examples each seed gets wrong, of `[seeds, examples, classes]`."""
    return (logits.argmax(-1) != labels).sum(-1)
