"""From a TOML file to a `Config`, or one sentence that names file and key."""

import importlib.resources
import os
import pathlib
import re
import tomllib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from jaxkd._text import did_you_mean
from jaxkd.pipeline import overrides, schema

# Configurations know their stages, and so load JAX: only once there is a file to read.
if TYPE_CHECKING:
    from jaxkd.pipeline.config import Config

SUFFIX = ".toml"


def shipped() -> list[str]:
    """Return the names of the configurations inside the package."""
    folder = importlib.resources.files("jaxkd.pipeline") / "configs"
    names = (item.name for item in folder.iterdir())
    return sorted(n.removesuffix(SUFFIX) for n in names if n.endswith(SUFFIX))


def load(path: str | os.PathLike, changes: Sequence[str] = ()) -> "Config":
    """Return a configuration from a file, with changes from the command line.

    Args:
      path: of a TOML file, or the name of a shipped configuration.
      changes: "key=value", such as "stages.1.temperature=2"; see `overrides.changed`.

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
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits, too
        raise ValueError(f"{name} is not TOML: {error}") from error
    config = decoded(raw, name)
    for change in changes:
        where = f"--set {change}"
        raw = overrides.changed(msgspec.to_builtins(config), change)
        config = decoded(raw, where)
    return resolved(config, name)


def resolved(config: "Config", name: str) -> "Config":
    """Give each stage a name and check that the stages can follow each other.

    Raises:
      ValueError: naming the file, the stage, and what to do.
    """
    from jaxkd.pipeline import validate

    config = validate.named(config)
    try:
        validate.check(config)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    return config


def _text(path: str | os.PathLike) -> tuple[str, str]:
    """Return the content of a file, or of the shipped configuration of that name."""
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


def decoded(raw: Any, name: str) -> "Config":
    """Return the configuration of what a TOML file holds.

    Raises:
      ValueError: naming the file, the key, what was expected, and near names.
    """
    from jaxkd.pipeline.config import Config

    if isinstance(raw, dict) and isinstance(raw.get("data"), dict):
        raw = {**raw, "data": {"kind": "tfds", **raw["data"]}}
    try:
        for problem in schema.problems(raw, Config):
            raise ValueError(f"{name}: {problem}")
        return msgspec.convert(raw, Config)
    except (msgspec.ValidationError, OverflowError) as error:
        text = re.sub(r"(.*) - at `\$\.(.*)`", r"\2: \1", str(error))
        raise ValueError(f"{name}: {text}") from error
    except RecursionError as error:
        raise ValueError(f"{name} is nested too deeply") from error
