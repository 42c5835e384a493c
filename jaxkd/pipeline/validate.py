"""Whether the stages of a configuration make sense, one after another."""

import re
from collections import Counter
from collections.abc import Iterable

import msgspec

from jaxkd._text import alternatives
from jaxkd.pipeline.config import AnyStage, Config
from jaxkd.pipeline.parts import NAME, SpaceTable, Zoo
from jaxkd.pipeline.stages.stage import ModelStatus


def named(config: Config) -> Config:
    """The configuration with a name for each stage: its kind, numbered if need be."""
    counts = Counter(s.kind for s in config.stages if not s.name)
    seen: Counter = Counter()
    stages = []
    for stage in config.stages:
        kind = stage.kind
        if not stage.name:
            seen[kind] += 1
            name = f"{kind}-{seen[kind]}" if counts[kind] > 1 else kind
            stage = msgspec.structs.replace(stage, name=name)
        stages.append(stage)
    return msgspec.structs.replace(config, stages=tuple(stages))


def check(config: Config) -> None:
    """Check that each stage can follow those before it.

    Args:
      config: whose stages are `named`.

    Raises:
      ValueError: naming the stage, and what to do.
    """
    _names(config)
    models = {
        name: ModelStatus(
            trained=bool(getattr(model, "weights", "")),
            chosen=not isinstance(model, SpaceTable),
        )
        for name, model in config.models.items()
    }
    for place, stage in enumerate(config.stages):
        here = f"stages.{place} ({stage.kind})"
        try:
            _models_exist(stage, models)
            models[stage.model] = stage.check(models)
        except ValueError as error:
            raise ValueError(f"{here}: {error}") from error


def _names(config: Config) -> None:
    if not config.models:
        raise ValueError("models: is empty; name at least one")
    for name, model in config.models.items():
        if isinstance(model, Zoo):
            _zoo(f"models.{name}.name", model.name)
        if isinstance(model, SpaceTable):
            _widths(f"models.{name}.widths", model)
    _file_names("models", config.models)
    _file_names("stages", [stage.name for stage in config.stages])
    unused = set(config.models) - _used(config.stages)
    if unused:
        raise ValueError(f"models.{min(unused)}: no stage uses it")


def _file_names(key: str, names: Iterable[str]) -> None:
    """Check names that become names of files, side by side in one folder.

    On some systems "A" and "a" are one file.

    Raises:
      ValueError: if a name cannot be that of a file, or is another's.
    """
    taken: dict[str, str] = {}
    for name in names:
        if not re.match(NAME, name):
            raise ValueError(
                f"{key}: {name!r} must be a name of letters, digits and . _ + -, "
                "beginning with a letter or a digit, at most 60"
            )
        other = taken.setdefault(name.lower(), name)
        if other != name:
            raise ValueError(
                f"{key}: the names {other!r} and {name!r} differ in case only, and "
                "would be one file on some systems"
            )
    for name, n in Counter(list(names)).items():
        if n > 1:
            raise ValueError(f"{key}: the name {name!r} is given to more than one")


def _widths(key: str, model: SpaceTable) -> None:
    if model.widths and model.space == "mobilenet":
        raise ValueError(f"{key}: only the resnet space takes widths")
    if len(model.widths) not in (0, 4):
        raise ValueError(
            f"{key}: must be 4 widths, of the stem and three stages, got "
            f"{list(model.widths)}"
        )


def _used(stages: Iterable[AnyStage]) -> set[str]:
    fields = ("model", "teacher", "source")
    return {name for stage in stages for f in fields for name in stage.names(f)}


def _zoo(key: str, name: str) -> None:
    from jaxkd.models import ZOO

    if name not in ZOO:
        hint = alternatives(name, sorted(ZOO))
        raise ValueError(f"{key}: no network {name!r} in the zoo{hint}")


def _models_exist(stage: AnyStage, models: dict[str, ModelStatus]) -> None:
    if stage.needs_teacher and not stage.names("teacher"):
        raise ValueError(f"teacher: no model {''!r}{alternatives('', models)}")
    for field in ("model", "teacher", "source"):
        if field != "teacher" and hasattr(stage, field) and not stage.names(field):
            raise ValueError(f"{field}: no model {''!r}{alternatives('', models)}")
        for name in stage.names(field):
            if name not in models:
                hint = alternatives(name, models)
                raise ValueError(f"{field}: no model {name!r}{hint}")
            if field != "model" and name == stage.model:
                raise ValueError(f"{field}: {name!r} is the model itself")
