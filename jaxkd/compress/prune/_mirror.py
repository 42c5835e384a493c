"""Finding the variables again in other trees: optimiser moments, averages, states.

A subtree mirrors the variables if its leaves have the same paths. Optimisers copy the
parameters' tree for each moment; where `optax.masked` leaves some out, an
`optax.MaskedNode` stands in the place of each or of a whole branch.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import optax

from jaxkd import _tree

Keys = tuple[str, ...]


def flatten(tree: Any) -> tuple[list[tuple[Keys, Any]], Any]:
    """((keys, leaf) of each leaf, structure); what is masked counts as a leaf."""
    pairs, structure = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_masked)
    return [(_keys(keys), leaf) for keys, leaf in pairs], structure


def _keys(keys: Sequence[Any]) -> Keys:
    # Some modules put a "/" into a variable's name (linen's WeightNorm).
    return tuple(_tree.path(keys).split("/")) if keys else ()


def references(paths: Sequence[Keys]) -> list[dict[Keys, int]]:
    """The trees that may be mirrored: all variables, and each collection of them.

    A collection is what lies directly under the root, or under its key "state", where
    jaxkd's networks have linen's collections.
    """
    found: dict[Keys, dict[Keys, int]] = defaultdict(dict)
    for i, path in enumerate(paths):
        for depth in (0, 1, 2):
            if depth < len(path) and (depth < 2 or path[0] == "state"):
                found[path[:depth]][path[depth:]] = i
    return list(found.values())


def find(
    paths: Sequence[Keys], shapes: Sequence[tuple[int, ...]], leaves: list
) -> list[int | None]:
    """Return for each leaf, such as a moment of Adam's, the number of its variable.

    None for a leaf that is of no variable, such as a counter.

    Args:
      paths: of the variables.
      shapes: of the variables.
      leaves: `(keys, leaf)` of the tree.

    Raises:
      ValueError: if nothing mirrors the variables, if it is not clear which of them a
        subtree mirrors, or if a leaf in a mirror has another shape.
    """
    known = references(paths)
    exact: dict[frozenset, list[dict[Keys, int]]] = defaultdict(list)
    for reference in known:
        if reference not in exact[frozenset(reference)]:
            exact[frozenset(reference)].append(reference)
    below: dict[Keys, list[int]] = defaultdict(list)
    for i, (keys, _) in enumerate(leaves):
        for depth in range(len(keys) + 1):
            below[keys[:depth]].append(i)
    out: list[int | None] = [None] * len(leaves)
    for node in sorted(below, key=len):
        inside = {leaves[i][0][len(node) :]: i for i in below[node]}
        if any(out[i] is not None for i in inside.values()):
            continue
        absent = {k for k, i in inside.items() if _masked(leaves[i][1])}
        there = {k: i for k, i in inside.items() if k not in absent}
        candidates = exact.get(frozenset(inside), [])
        if absent and there:
            candidates = [r for r in known if _without(r, absent) == set(there)]
        if candidates:
            reference = _fitting(node, there, candidates, shapes, leaves)
            for keys, i in there.items():
                out[i] = reference[keys]
    if all(i is None for i in out) and paths:
        raise ValueError(
            "the tree holds nothing with the structure of the variables; it has "
            f"{['/'.join(keys) for keys, _ in leaves[:4]]} ..., the variables "
            f"{['/'.join(path) for path in paths[:4]]} ..."
        )
    return out


def _masked(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)


def _without(reference: dict[Keys, int], absent: set[Keys]) -> set[Keys]:
    """Return the paths of a reference that are not at or below one of these."""
    above = lambda path: (path[:depth] for depth in range(len(path) + 1))
    return {path for path in reference if absent.isdisjoint(above(path))}


def _fitting(node, inside, candidates, shapes, leaves):
    """Return the one of the candidates whose shapes a subtree has."""
    problems = [_misfit(node, inside, r, shapes, leaves) for r in candidates]
    fitting = [r for r, p in zip(candidates, problems, strict=True) if p is None]
    if not fitting:
        raise ValueError(problems[0])
    if len(fitting) > 1:
        raise ValueError(
            f"{'/'.join(node) or 'the tree'} may be a copy of more than one collection "
            "of the variables; prune a tree that holds them all"
        )
    return fitting[0]


def _misfit(node, inside, reference, shapes, leaves) -> str | None:
    for keys, i in inside.items():
        leaf, wanted = leaves[i][1], shapes[reference[keys]]
        if np.shape(leaf) in ((), wanted):
            continue
        return (
            f"{'/'.join(node + keys)} has shape {np.shape(leaf)}, but the variable "
            f"that it seems to be a copy of has {wanted}: the tree is of another "
            "network (or is pruned already), or an optimiser keeps something smaller "
            "for each parameter (as Adafactor does); then make its state anew"
        )
    return None
