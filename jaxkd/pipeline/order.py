"""Whether the stages of a configuration make sense, one after another."""

import dataclasses
import importlib.util
import re
from collections import Counter
from collections.abc import Iterable

import msgspec

from jaxkd._text import alternatives
from jaxkd.pipeline.config import (
    NAME,
    AnyStage,
    Config,
    Distill,
    Export,
    Finetune,
    Prune,
    Quantize,
    Search,
    Space,
    Stage,
    Taught,
    Train,
    Transfer,
    Zoo,
)

PACKAGES = {
    "tflite": ("litert_converter", "litert"),
    "onnx": ("onnx", "onnx"),
}


def kind_of(stage: Stage) -> str:
    """A stage's kind: "train", "distill", ..."""
    return str(stage.__struct_config__.tag)


def named(config: Config) -> Config:
    """The configuration with a name for each stage: its kind, numbered if need be."""
    counts = Counter(kind_of(s) for s in config.stages if not s.name)
    seen: Counter = Counter()
    stages = []
    for stage in config.stages:
        kind = kind_of(stage)
        if not stage.name:
            seen[kind] += 1
            name = f"{kind}-{seen[kind]}" if counts[kind] > 1 else kind
            stage = msgspec.structs.replace(stage, name=name)
        stages.append(stage)
    return msgspec.structs.replace(config, stages=tuple(stages))


@dataclasses.dataclass(frozen=True)
class Known:
    """What has become of a model so far."""

    trained: bool = False
    chosen: bool = True
    pruned: bool = False
    quantized: bool = False


def check(config: Config) -> None:
    """Check that each stage can follow those before it.

    Args:
      config: whose stages are `named`.

    Raises:
      ValueError: naming the stage, and what to do.
    """
    _names(config)
    models = {
        name: Known(
            trained=bool(getattr(model, "weights", "")),
            chosen=not isinstance(model, Space),
        )
        for name, model in config.models.items()
    }
    for place, stage in enumerate(config.stages):
        here = f"stages.{place} ({kind_of(stage)})"
        try:
            _models_exist(stage, models)
            models[stage.model] = _after(stage, models)
            _losses(stage)
        except ValueError as error:
            raise ValueError(f"{here}: {error}") from error


def _names(config: Config) -> None:
    if not config.models:
        raise ValueError("models: is empty; name at least one")
    for name, model in config.models.items():
        if isinstance(model, Zoo):
            _zoo(f"models.{name}.name", model.name)
        if isinstance(model, Space):
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


def _widths(key: str, model: Space) -> None:
    if model.widths and model.space == "mobilenet":
        raise ValueError(f"{key}: only the resnet space takes widths")
    if len(model.widths) not in (0, 4):
        raise ValueError(
            f"{key}: must be 4 widths, of the stem and three stages, got "
            f"{list(model.widths)}"
        )


def _used(stages: Iterable[AnyStage]) -> set[str]:
    fields = ("model", "teacher", "source")
    return {getattr(stage, field, "") for stage in stages for field in fields}


def _zoo(key: str, name: str) -> None:
    from jaxkd.models import ZOO

    if name not in ZOO:
        hint = alternatives(name, sorted(ZOO))
        raise ValueError(f"{key}: no network {name!r} in the zoo{hint}")


def _models_exist(stage: AnyStage, models: dict[str, Known]) -> None:
    for field in ("model", "teacher", "source"):
        name = getattr(stage, field, "")
        if not name and (field == "teacher" and not isinstance(stage, Distill)):
            continue
        if field != "model" and not hasattr(stage, field):
            continue
        if name not in models:
            raise ValueError(f"{field}: no model {name!r}{alternatives(name, models)}")
        if field != "model" and name == stage.model:
            raise ValueError(f"{field}: {name!r} is the model itself")


def _after(stage: AnyStage, models: dict[str, Known]) -> Known:
    """What the stage makes of its model.

    Raises:
      ValueError: if it cannot.
    """
    model, name = models[stage.model], stage.model
    if isinstance(stage, Search):
        if model.chosen:
            raise ValueError(
                f"model: {name!r} is not a space that has yet to be chosen"
            )
        return dataclasses.replace(model, chosen=True)
    if not model.chosen:
        raise ValueError(f"model: {name!r} is a space; a search stage must come first")
    for field in ("teacher", "source"):
        other = getattr(stage, field, "")
        if other and not models[other].trained:
            raise ValueError(
                f"{field}: {other!r} has not been trained: put a train stage with "
                f'model = "{other}" before this one, or give models.{other}.weights'
            )
    if isinstance(stage, Train) and model.trained:
        raise ValueError(
            f"model: {name!r} has weights already, which train would throw away; "
            "finetune goes on from them"
        )
    if isinstance(stage, Transfer) and (model.pruned or model.quantized):
        raise ValueError(f"model: {name!r} no longer has the shapes to copy into")
    if isinstance(stage, Finetune | Prune | Quantize | Export) and not model.trained:
        raise ValueError(
            f"model: {name!r} has not been trained; put a train or distill stage "
            "before this one"
        )
    if isinstance(stage, Prune) and model.quantized:
        raise ValueError(
            f"model: {name!r} is quantized already; prune it before it is quantized"
        )
    if isinstance(stage, Quantize) and model.quantized:
        raise ValueError(f"model: {name!r} is quantized already")
    if isinstance(stage, Export):
        _exportable(stage, model, name)
    return dataclasses.replace(
        model,
        trained=True,
        pruned=model.pruned or isinstance(stage, Prune),
        quantized=model.quantized or isinstance(stage, Quantize),
    )


def _exportable(stage: Export, model: Known, name: str) -> None:
    if stage.int8 and not model.quantized:
        raise ValueError(
            f"int8: {name!r} is not quantized; put a quantize stage before this one"
        )
    if len(set(stage.formats)) < len(stage.formats):
        raise ValueError(f"formats: names one twice, {list(stage.formats)}")
    if not stage.batch and "tflite" in stage.formats:
        raise ValueError("batch: a tflite file takes a fixed number of images, not 0")
    for format in stage.formats:
        package, extra = PACKAGES.get(format, ("", ""))
        if package and importlib.util.find_spec(package) is None:
            raise ValueError(
                f"formats: {format} needs {package}: "
                f"pip install 'jaxkd-distill[{extra}]'"
            )


def _losses(stage: AnyStage) -> None:
    if isinstance(stage, Quantize) and stage.lsq and stage.activation == "dynamic":
        raise ValueError("lsq: learns steps of static ranges; activation is dynamic")
    if isinstance(stage, Taught):
        from jaxkd.pipeline import objective

        objective.check(stage.losses, stage.temperature, teacher=stage.teacher)
