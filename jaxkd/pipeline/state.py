"""Models in checkpoints, and the digest that says whether two are the same."""

import hashlib
import json
from typing import Any

import jax
import numpy as np

from jaxkd import store
from jaxkd.pipeline.networks import Model


def digest(held: Model) -> str:
    """Return the SHA-256 of a model's variables and recipe."""
    recipe = json.dumps(held.recipe, sort_keys=True)
    variables = store.digest({"params": held.params, "state": held.state})
    return hashlib.sha256(f"{recipe}\0{variables}".encode()).hexdigest()


def tree(held: Model) -> dict[str, Any]:
    """What a checkpoint keeps of a model as arrays; of none, one that says so."""
    if held.params is None:
        return {"untrained": np.ones(())}
    return {"params": held.params, "state": held.state}


def meta(held: Model) -> dict[str, Any]:
    """What it keeps beside them; empty dicts, which a tree of arrays cannot hold."""
    return {"recipe": list(held.recipe), "empty": _empty(tree(held), ())}


def variables(tree: dict[str, Any], meta: dict[str, Any]) -> tuple[Any, Any]:
    """Parameters and state from a checkpoint, on the device."""
    arrays = {name: tree.get(name, {}) for name in ("params", "state")}
    nested: dict[str, Any] = jax.tree.map(jax.numpy.asarray, arrays)
    for path in meta["empty"]:
        inside = nested
        for key in path:
            inside = inside.setdefault(key, {})
    return nested["params"], nested["state"]


def _empty(tree: Any, above: tuple[str, ...]) -> list[list[str]]:
    if not isinstance(tree, dict):
        return []
    if not tree:
        return [list(above)]
    return [path for key in tree for path in _empty(tree[key], (*above, key))]
