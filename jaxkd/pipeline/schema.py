"""What is wrong with the values of a table, told by the types of `config`.

msgspec would refuse the same values, but of a union or a table with free names it does
not say where the value is, and of a range it names one end only.
"""

import math
import re
import types
import typing
from collections.abc import Iterator
from typing import Any, get_args, get_origin

import msgspec

from jaxkd._text import alternatives, did_you_mean
from jaxkd.pipeline.parts import Options

LEAST = 1e-30  # the least number beside 0: float32 makes 0 of what is far smaller
# A path cannot hold all of them, and a terminal obeys them.
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def problems(raw: Any, kind: Any, key: str = "") -> Iterator[str]:
    """Yield "KEY: what was expected, what came" for each value that is wrong.

    Args:
      raw: what a TOML file holds.
      kind: the type that it should have: `config.Config`, or the type of a part.
      key: where `raw` is, as `--set` takes it: "stages.1.optimizer".
    """
    kind, bounds = _bare(kind)
    if get_origin(kind) is types.UnionType and str in get_args(kind):
        # A text, or a list of them.
        kind = tuple[str, ...] if isinstance(raw, list | tuple) else str
    tables = _tables(kind)
    if tables:
        yield from _table(raw, tables, key)
    elif get_origin(kind) is dict:
        yield from _names(raw, get_args(kind)[1], key)
    elif get_origin(kind) is tuple:
        yield from _list(raw, get_args(kind)[0], bounds, key)
    elif get_origin(kind) in (typing.Union, types.UnionType):
        yield from _one_of(raw, get_args(kind), key)
    elif kind is Any:
        yield from _anything(raw, key)
    elif (wanted := _refused(raw, kind, bounds)) is not None:
        literal = get_origin(kind) is typing.Literal
        hint = did_you_mean(raw, get_args(kind)) if literal else ""
        yield f"{key}: must be {wanted}, got {shown(raw)}{hint}"


def _one_of(raw: Any, kinds: tuple[Any, ...], key: str) -> Iterator[str]:
    """Return a value or a list: what is wrong is told of the form that it has."""
    if all(any(True for _ in problems(raw, kind, key)) for kind in kinds):
        listed = isinstance(raw, list | tuple)
        is_list = lambda kind: get_origin(_bare(kind)[0]) is tuple
        yield from problems(raw, next(k for k in kinds if is_list(k) == listed), key)


def shown(value: Any) -> str:
    """Return a value as an error shows it: never longer than a line."""
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _bare(kind: Any) -> tuple[Any, list[msgspec.Meta]]:
    """Return a type without its annotations, and those."""
    bounds: list[msgspec.Meta] = []
    while get_origin(kind) is typing.Annotated:
        kind, *notes = get_args(kind)
        bounds += [note for note in notes if isinstance(note, msgspec.Meta)]
    return kind, bounds


def _tables(kind: Any) -> dict[Any, Any]:
    """Return the parts of a configuration that a table may be, by their kind."""
    union = get_origin(kind) in (typing.Union, types.UnionType)
    parts = get_args(kind) if union else (kind,)
    return {
        part.__struct_config__.tag: part
        for part in parts
        if isinstance(part, type) and issubclass(part, Options)
    }


def _table(raw: Any, tables: dict[Any, Any], key: str) -> Iterator[str]:
    if not isinstance(raw, dict):
        yield f"{key or 'the file'}: must be a table, got {shown(raw)}"
        return
    tagged = None not in tables
    tag = raw.get("kind") if tagged else None
    if not isinstance(tag, str | None) or tag not in tables:
        names = ", ".join(sorted(tables))
        got = f"got {shown(tag)}{did_you_mean(tag, tables)}" if tag else "is missing"
        yield f"{_join(key, 'kind')}: must be one of {names}; {got}"
        return
    fields = {f.encode_name: f for f in msgspec.structs.fields(tables[tag])}
    for name, item in raw.items():
        if name in fields:
            yield from problems(item, fields[name].type, _join(key, name))
        elif not (tagged and name == "kind"):
            known = [*(["kind"] if tagged else []), *fields]
            yield f"{_join(key, name)}: no such key{alternatives(name, known)}"
    for name, field in fields.items():
        if field.required and name not in raw:
            yield f"{_join(key, name)}: is missing"


def _names(raw: Any, of: Any, key: str) -> Iterator[str]:
    """Return a table with free names."""
    if not isinstance(raw, dict):
        yield f"{key}: must be a table, got {shown(raw)}"
        return
    for name, item in raw.items():
        if CONTROL.search(name):
            yield f"{_join(key, name)}: must be a name without control characters"
        yield from problems(item, of, _join(key, name))


def _list(raw: Any, of: Any, bounds: list[msgspec.Meta], key: str) -> Iterator[str]:
    if not isinstance(raw, list | tuple):
        yield f"{key}: must be a list, got {shown(raw)}"
        return
    for bound in bounds:
        least, most = bound.min_length or 0, bound.max_length or math.inf
        if not least <= len(raw) <= most:
            yield f"{key}: must be a list of {least} to {most} values, got {len(raw)}"
            return
    for place, item in enumerate(raw):
        yield from problems(item, of, _join(key, place))


def _anything(raw: Any, key: str) -> Iterator[str]:
    """Values whose meaning is known later: numbers and texts in them must be sound."""
    if isinstance(raw, dict):
        yield from _names(raw, Any, key)
    elif isinstance(raw, list | tuple):
        yield from _list(raw, Any, [], key)
    elif not isinstance(raw, bool | int | float | str):
        yield f"{key}: must be text, a number, true or false, got {shown(raw)}"
    elif (wanted := _refused(raw, type(raw), [])) is not None:
        yield f"{key}: must be {wanted}, got {shown(raw)}"


def _refused(raw: Any, kind: Any, bounds: list[msgspec.Meta]) -> str | None:
    """Return what a value should be, or None if it is that."""
    if get_origin(kind) is typing.Literal:
        names = get_args(kind)
        if raw in names and type(raw) in map(type, names):
            return None
        return f"one of {', '.join(map(str, names))}"
    if kind is bool:
        return None if isinstance(raw, bool) else "true or false"
    if kind is str:
        patterns = [bound.pattern for bound in bounds if bound.pattern]
        return _refused_text(raw, patterns)
    ranges = " and ".join(filter(None, map(_range, bounds)))
    if kind is int:
        sound = isinstance(raw, int) and not isinstance(raw, bool)
        fits = sound and all(_within(raw, bound) for bound in bounds)
        return None if fits else f"a whole number {ranges}".rstrip()
    if not is_number(raw):
        return f"a finite number {ranges}".rstrip()
    if raw and abs(raw) < LEAST:
        return f"0 or at least {LEAST:g} in size"
    fits = all(_within(raw, bound) for bound in bounds)
    return None if fits else f"a number {ranges}"


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number; true and false are none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return isinstance(value, int) or math.isfinite(value)


def _refused_text(raw: Any, patterns: list[str]) -> str | None:
    if not isinstance(raw, str):
        return "text"
    if CONTROL.search(raw):
        return "text without control characters"
    if all(re.search(pattern, raw) for pattern in patterns):
        return None
    return "a name of letters, digits and . _ + -, beginning with a letter or a digit"


def _within(value: float, bound: msgspec.Meta) -> bool:
    return (
        (bound.ge is None or value >= bound.ge)
        and (bound.gt is None or value > bound.gt)
        and (bound.le is None or value <= bound.le)
        and (bound.lt is None or value < bound.lt)
    )


def _range(bound: msgspec.Meta) -> str:
    ends = {">=": bound.ge, ">": bound.gt, "<=": bound.le, "<": bound.lt}
    told = [f"{sign} {end:.15g}" for sign, end in ends.items() if end is not None]
    return " and ".join(told)


def _join(key: str, name: Any) -> str:
    plain = isinstance(name, int) or re.fullmatch(r"[\w.+-]+", name)
    last = str(name) if plain else shown(name)
    return f"{key}.{last}" if key else last
