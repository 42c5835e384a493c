"""From a TOML file to a `Config`, or one sentence that names file and key."""

import importlib.resources
import math
import os
import pathlib
import tomllib
import types
import typing
from collections.abc import Iterator, Sequence
from typing import Any, get_args, get_origin

import msgspec

from jaxkd._text import alternatives, did_you_mean
from jaxkd.pipeline import order, settings
from jaxkd.pipeline.config import Config, Model, Value

SUFFIX = ".toml"


def shipped() -> list[str]:
    """The names of the configurations inside the package."""
    folder = importlib.resources.files("jaxkd.pipeline") / "configs"
    names = (item.name for item in folder.iterdir())
    return sorted(n.removesuffix(SUFFIX) for n in names if n.endswith(SUFFIX))


def load(path: str | os.PathLike, changes: Sequence[str] = ()) -> Config:
    """A configuration from a file, with changes from the command line.

    Args:
      path: of a TOML file, or the name of a shipped configuration.
      changes: "key=value", such as "stages.1.temperature=2"; see `settings.changed`.

    Returns:
      The configuration, each stage with a name, checked as far as is possible without
      networks and data: names, types, ranges and the order of the stages.

    Raises:
      ValueError: naming the file, the key, what was expected, and near names.
      FileNotFoundError: if there is no such file.
    """
    text, name = _text(path)
    try:
        raw = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ValueError(f"{name} is not TOML: {error}") from error
    config = decoded(raw, name)
    for change in changes:
        where = f"--set {change}"
        raw = settings.changed(msgspec.to_builtins(config), change)
        config = decoded(raw, where)
    return resolved(config, name)


def resolved(config: Config, name: str) -> Config:
    """Give each stage a name and check that the stages can follow each other.

    Raises:
      ValueError: naming the file, the stage, and what to do.
    """
    config = order.named(config)
    try:
        order.check(config)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    return config


def _text(path: str | os.PathLike) -> tuple[str, str]:
    """The content of a file, or of the shipped configuration of that name."""
    file = pathlib.Path(path)
    if not file.exists() and str(path) in shipped():
        inside = importlib.resources.files("jaxkd.pipeline") / "configs"
        return (inside / f"{path}{SUFFIX}").read_text("utf-8"), f"{path}{SUFFIX}"
    if not file.exists():
        hint = did_you_mean(file.stem, shipped())
        raise FileNotFoundError(
            f"no configuration {path}: give a TOML file, or one of "
            f"{', '.join(shipped())}{hint}"
        )
    try:
        return file.read_text("utf-8-sig"), str(path)  # a BOM is skipped
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error


def decoded(raw: Any, name: str) -> Config:
    """The configuration of what a TOML file holds.

    Raises:
      ValueError: naming the file, the key, what was expected, and near names.
    """
    try:
        for complaint in _unknown(raw, Config, ""):
            raise ValueError(f"{name}: {complaint}")
        for key, model in raw.get("models", {}).items():
            _model(model, f"{name}: models.{key}")
        config = msgspec.convert(raw, Config)
        for key in _not_finite(msgspec.to_builtins(config), ""):
            raise ValueError(f"{name}: {key[1:]} must be a finite number")
    except (msgspec.ValidationError, OverflowError) as error:
        raise ValueError(f"{name}: {_readable(str(error))}") from error
    except RecursionError as error:
        raise ValueError(f"{name} is nested too deeply") from error
    return config


def _model(raw: Any, here: str) -> None:
    """One model alone: of a table with free names msgspec does not say which it is."""
    try:
        msgspec.convert(raw, Model)
    except msgspec.ValidationError as error:
        what = _readable(str(error))
        dot = "." if " - at `$" in str(error) else ": "
        raise ValueError(f"{here}{dot}{what[0].lower()}{what[1:]}") from error


def _readable(text: str) -> str:
    """The "... - at `$.stages[1].epochs`" of msgspec, its key as `--set` has it."""
    what, found, key = text.partition(" - at `$")
    if not found:
        return what
    key = key.rstrip("`").replace("[", ".").replace("]", "").removeprefix(".")
    what = what.replace("`int`", "a whole number").replace("`float`", "a number")
    return f"{key}: {what[0].lower()}{what[1:]}"


def _unknown(raw: Any, kind: Any, key: str) -> Iterator[str]:
    """What is wrong with the names in a value, deepest parts included."""
    kind = _plain(kind)
    tables = _tables(kind)
    if (tables or get_origin(kind) is dict) and not isinstance(raw, dict):
        yield f"{key}: must be a table, got {raw!r}"
    elif tables:
        if None not in tables:
            yield from _untagged(raw, tables, key)
        value = tables[None if None in tables else raw["kind"]]
        fields = {f.encode_name: f.type for f in msgspec.structs.fields(value)}
        tagged = {"kind"} if value.__struct_config__.tag is not None else set()
        for name, item in raw.items():
            if name in fields:
                yield from _unknown(item, fields[name], _join(key, name))
            elif name not in tagged:
                hint = alternatives(name, [*tagged, *fields])
                yield f"{_join(key, name)}: no such key{hint}"
    elif get_origin(kind) is dict:
        of = get_args(kind)[1]
        for name, item in raw.items():
            if of is str and not isinstance(item, str):
                yield f"{_join(key, name)}: must be text, got {item!r}"
            yield from _unknown(item, of, _join(key, name))
    elif get_origin(kind) is tuple and isinstance(raw, list):
        for place, item in enumerate(raw):
            yield from _unknown(item, get_args(kind)[0], _join(key, place))


def _tables(kind: Any) -> dict[str | None, Any]:
    """The parts of a configuration that a table may be, by their kind."""
    union = get_origin(kind) in (typing.Union, types.UnionType)
    parts = get_args(kind) if union else (kind,)
    return {p.__struct_config__.tag: p for p in parts if _is_value(p)}


def _untagged(raw: dict, tagged: dict[Any, Any], key: str) -> Iterator[str]:
    kind = raw.get("kind")
    if kind is None:
        yield f"{key}: needs a kind, one of {', '.join(sorted(tagged))}"
    if not isinstance(kind, str) or kind not in tagged:
        names = ", ".join(sorted(tagged))
        hint = did_you_mean(kind, tagged)
        yield f"{_join(key, 'kind')}: must be one of {names}; got {kind!r}{hint}"


def _plain(kind: Any) -> Any:
    """A type without its annotations."""
    while get_origin(kind) is typing.Annotated:
        kind = get_args(kind)[0]
    return kind


def _is_value(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Value)


def _join(key: str, name: Any) -> str:
    return f"{key}.{name}" if key else str(name)


def _not_finite(value: Any, key: str) -> Iterator[str]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _not_finite(item, f"{key}.{name}")
    elif isinstance(value, list | tuple):
        for place, item in enumerate(value):
            yield from _not_finite(item, f"{key}.{place}")
    elif isinstance(value, float) and not math.isfinite(value):
        yield key
