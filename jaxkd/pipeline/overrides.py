"""`--set KEY=VALUE`: one change of a configuration that has every default."""

import tomllib
from typing import Any

from jaxkd._text import alternatives, did_you_mean


def changed(config: dict[str, Any], change: str) -> dict[str, Any]:
    """Return the configuration with one value changed.

    Args:
      config: as builtins, with every default.
      change: "key=value". A key is a path of names and places (from 0) with dots:
        "stages.1.temperature"; a stage may also be given by its name, or by its kind
        if only one stage is of it: "stages.distill.temperature". The value is TOML; a
        word that is not, is text.

    Returns:
      A changed copy, its values not yet checked.

    Raises:
      ValueError: if the key leads nowhere, with near names.
    """
    key, equals, text = change.partition("=")
    if not equals or not key.strip():
        raise ValueError(f"--set {change}: must be KEY=VALUE, as stages.0.epochs=5")
    try:
        return _with(config, key.strip().split("."), _value(text), "")
    except ValueError as error:
        raise ValueError(f"--set {change}: {error}") from error


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text.strip()}")["value"]
    except (ValueError, RecursionError, KeyError):
        return text.strip()


def _with(tree: Any, keys: list[str], value: Any, above: str) -> Any:
    if not keys:
        return value
    key, *rest = keys
    here = f"{above}.{key}" if above else key
    if isinstance(tree, dict):
        if key not in tree and rest:
            raise ValueError(f"no {here}{alternatives(key, tree)}")
        # A last name that is new may be right: a loss's knob, say. The types decide.
        return {**tree, key: _with(tree.get(key), rest, value, here)}
    if isinstance(tree, list | tuple):
        place = _place(list(tree), key, here)
        new = _with(tree[place], rest, value, here)
        return [*tree[:place], new, *tree[place + 1 :]]
    raise ValueError(f"{above} is a value, and has no {key!r}")


def _place(items: list[Any], key: str, here: str) -> int:
    """Return the place that a number, a name or a kind stands for."""
    if key.isdecimal() and int(key) < len(items):
        return int(key)
    for field in ("name", "kind"):
        found = [
            i
            for i, item in enumerate(items)
            if isinstance(item, dict) and item.get(field) == key
        ]
        if len(found) == 1:
            return found[0]
        if found:
            raise ValueError(f"{here} could be any of {found}: give its number or name")
    known = [
        item[f]
        for item in items
        if isinstance(item, dict)
        for f in ("name", "kind")
        if item.get(f)
    ]
    raise ValueError(
        f"no {here}: there are {len(items)}, counted from 0{did_you_mean(key, known)}"
    )
