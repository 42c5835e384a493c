"""Components: the labels that ties bind together, and what is known of each."""

from typing import NamedTuple

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from jaxkd.compress.prune.trace.labels import Ledger


class Axes(NamedTuple):
    """The axes of all variables, one behind the other.

    Attributes:
      leaf: of which variable.
      axis: which of its axes.
      start: the first label; the labels are consecutive.
      length: how many.
    """

    leaf: list[int]
    axis: list[int]
    start: np.ndarray
    length: np.ndarray


class Parts(NamedTuple):
    """Components: labels that are dropped together.

    Attributes:
      of: the component of each label.
      kind: of each component; those of one kind have as many labels in each axis.
      stays: of each component, whether it must stay.
      maker: of each component the first convolution or product that makes it, in the
        program's order, else a large number.
      made: of each component the axis (in `axes`) that makes it.
      axes: of the variables.
    """

    of: np.ndarray
    kind: np.ndarray
    stays: np.ndarray
    maker: np.ndarray
    made: np.ndarray
    axes: Axes


def components(ledger: Ledger, axes: Axes) -> Parts:
    """Return the connected components of the ledger's ties."""
    n = ledger.labels
    a, b = (
        np.concatenate([np.zeros(0, int), *(pair[side] for pair in ledger.ties)])
        for side in (0, 1)
    )
    graph = coo_matrix((np.ones(len(a), bool), (a, b)), shape=(n, n))
    count, of = connected_components(graph, directed=False)
    # Numbered by their first label, so that nothing depends on the graph's library.
    _, first = np.unique(of, return_index=True)
    rank = np.empty(count, int)
    rank[np.argsort(first)] = np.arange(count)
    of = rank[of]
    stays = np.zeros(count, bool)
    for labels, _ in ledger.stays:
        stays[of[labels]] = True
    maker, made = np.full(count, len(ledger.makers)), np.full(count, -1)
    for i, labels in reversed(list(enumerate(ledger.makers))):
        maker[of[labels[labels >= 0]]] = i
        owner = np.searchsorted(axes.start, labels[labels >= 0], side="right") - 1
        made[of[labels[labels >= 0]]] = owner
    return Parts(of, _kinds(ledger, axes, of, count), stays, maker, made, axes)


def _kinds(ledger: Ledger, axes: Axes, of: np.ndarray, count: int) -> np.ndarray:
    """Components of one kind have the same number of labels in every axis."""
    kind, new = np.zeros(count, int), 1
    rows = [np.arange(s, s + n) for s, n in zip(axes.start, axes.length, strict=True)]
    for labels in [*rows, *(x for product in ledger.products for x in product.axes)]:
        seen, counts = np.unique(of[labels[labels >= 0]], return_counts=True)
        pairs = np.stack([kind[seen], counts], axis=1)
        _, inverse = np.unique(pairs, axis=0, return_inverse=True)
        kind[seen] = new + inverse.reshape(-1)
        new += len(seen)
    return kind
