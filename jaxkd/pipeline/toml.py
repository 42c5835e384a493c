"""Configurations as TOML text, with every default and, if wished, its meaning."""

import json
import typing
from collections.abc import Iterator
from typing import Any, get_args, get_origin

import msgspec

from jaxkd.pipeline import parts
from jaxkd.pipeline.config import Config
from jaxkd.pipeline.parts import Options
from jaxkd.pipeline.stages import KINDS, Train


def dumps(config: Config, *, comments: bool = False) -> str:
    """Return the configuration as TOML, every default written out.

    Args:
      config: what `reading.load` gave.
      comments: whether each key is followed by what it means, where that is not plain,
        and each table preceded by what it is.

    Returns:
      A text that `reading.load` makes the same configuration from.
    """
    return "\n".join(_table(config, "", comments)).strip() + "\n"


def _table(value: Options, path: str, comments: bool) -> Iterator[str]:
    """Return the lines of a value's own keys, then of its tables."""
    kind = type(value)
    if kind.__struct_config__.tag is not None:
        yield f"kind = {_text(kind.__struct_config__.tag)}"
    nested = []
    for field in msgspec.structs.fields(kind):
        item = getattr(value, field.name)
        if _is_table(item):
            nested.append((field.encode_name, item))
            continue
        meaning = _meaning(field.type) if comments else ""
        yield f"{field.encode_name} = {_text(item)}" + (meaning and f"  # {meaning}")
    for name, item in nested:
        yield from _nested(f"{path}.{name}" if path else name, item, comments)


def _is_table(item: Any) -> bool:
    stages = isinstance(item, tuple) and item and isinstance(item[0], Options)
    return isinstance(item, Options | dict) or bool(stages)


def _nested(path: str, item: Any, comments: bool) -> Iterator[str]:
    about = lambda value: [f"# {(type(value).__doc__ or '').splitlines()[0]}"]
    if isinstance(item, Options):
        yield from ["", *(about(item) if comments else []), f"[{path}]"]
        yield from _table(item, path, comments)
    elif isinstance(item, tuple):
        for one in item:
            yield from ["", *(about(one) if comments else []), f"[[{path}]]"]
            yield from _table(one, path, comments)
    elif not item or not all(isinstance(v, dict | Options) for v in item.values()):
        yield from ["", f"[{path}]"]
        yield from (f"{_key(name)} = {_text(v)}" for name, v in item.items())
    else:
        # A header of its own, so that what a loss is called is seen.
        for name, one in item.items():
            if isinstance(one, Options):
                yield from _nested(f"{path}.{_key(name)}", one, comments)
            else:
                yield from ["", f"[{path}.{_key(name)}]"]
                yield from (f"{_key(k)} = {_text(v)}" for k, v in one.items())


def _meaning(kind: Any) -> str:
    """Return the text beside a field, and what it may be."""
    if get_origin(kind) is not typing.Annotated:
        return _choices(kind)
    inner, *notes = get_args(kind)
    texts = [n.description for n in notes if isinstance(n, msgspec.Meta)]
    return "; ".join(filter(None, [*filter(None, texts), _choices(inner)]))


def _choices(kind: Any) -> str:
    if get_origin(kind) is typing.Annotated:
        return _choices(get_args(kind)[0])
    if get_origin(kind) is typing.Literal:
        return ", ".join(map(str, get_args(kind)))
    if get_origin(kind) is tuple:
        return _choices(get_args(kind)[0])
    return ""


def _key(name: str) -> str:
    plain = name and all((c.isalnum() and c.isascii()) or c in "_-" for c in name)
    return name if plain else json.dumps(name)


def _text(value: Any) -> str:
    """Return a value in one line of TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # JSON's escapes are TOML's, but for the delete character.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_text, value))}]"
    if isinstance(value, dict):
        inside = ", ".join(f"{_key(k)} = {_text(v)}" for k, v in value.items())
        return f"{{{inside}}}" if inside else "{}"
    raise TypeError(f"no TOML for {value!r}")


def defaults() -> Config:
    """Return a configuration with one stage of each kind and every default."""
    teacher = parts.Zoo(name="resnet8x4")
    return Config(
        models={
            "teacher": teacher,
            "source": parts.MlpTable(),
            "student": parts.CnnTable(),
            "searched": parts.SpaceTable(),
        },
        stages=(
            Train(model="teacher"),
            Train(model="source"),
            *(kind(**kind.shown) for kind in KINDS),
        ),
    )
