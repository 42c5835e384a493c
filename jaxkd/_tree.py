"""Paths over a tree of arrays: leaves as "a/b/c", and choosing them by pattern.

A pattern is a shell glob over the whole path, where `*` also matches "/": "stage1/*",
"*/bias", "head/*". Case counts.
"""

import fnmatch
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax

from jaxkd._text import alternatives


def path(keys: Sequence[Any]) -> str:
    """Return the keys that jax gives for a leaf, as "a/b/c"."""
    return jax.tree_util.keystr(tuple(keys), simple=True, separator="/")


def flatten(tree: Any) -> dict[str, Any]:
    """Every leaf by its path, in the tree's order.

    >>> flatten({"head": {"kernel": 1.0, "bias": 2.0}})
    {'head/bias': 2.0, 'head/kernel': 1.0}
    """
    return {
        path(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def map_with_path(change: Callable[..., Any], tree: Any, *others: Any) -> Any:
    """A tree of the same structure, of `change(path, leaf, *leaves of the others)`."""
    return jax.tree_util.tree_map_with_path(
        lambda keys, *leaves: change(path(keys), *leaves), tree, *others
    )


def get(tree: Any, at: str) -> Any:
    """Return the subtree of nested dicts at a path.

    Raises:
      KeyError: if there is none, with the nearest paths there are.
    """
    found = tree
    for key in at.split("/"):
        if not isinstance(found, dict) or key not in found:
            raise KeyError(f"nothing at {at!r}{alternatives(at, _branches(tree))}")
        found = found[key]
    return found


def _branches(tree: Any, above: str = "") -> list[str]:
    """Return the paths of all subtrees of nested dicts."""
    if not isinstance(tree, dict):
        return []
    here = [f"{above}{key}" for key in tree]
    return here + [b for key in tree for b in _branches(tree[key], f"{above}{key}/")]


def matches(path: str, patterns: str | Iterable[str]) -> bool:
    """Return whether a path fits one of the patterns.

    >>> matches("stage1/conv/kernel", ["stage1/*"])
    True
    """
    patterns = (patterns,) if isinstance(patterns, str) else patterns
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)


def mask(tree: Any, patterns: str | Iterable[str]) -> Any:
    """Return the same tree of booleans: which leaves fit one of the patterns.

    Raises:
      ValueError: if a pattern fits no leaf, with the nearest paths there are.
    """
    patterns = (patterns,) if isinstance(patterns, str) else tuple(patterns)
    paths = list(flatten(tree))
    for pattern in patterns:
        if not any(matches(p, pattern) for p in paths):
            hint = alternatives(pattern, paths)
            raise ValueError(f"the pattern {pattern!r} fits no parameter{hint}")
    return map_with_path(lambda p, _: matches(p, patterns), tree)
