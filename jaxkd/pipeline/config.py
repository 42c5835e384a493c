"""The whole of a configuration: data, models and stages."""

from typing import Annotated

from msgspec import Meta

from jaxkd.pipeline.data_kinds import Data, Tfds
from jaxkd.pipeline.parts import (
    NAME,
    Checkpoints,
    ModelTable,
    Options,
    SpaceTable,
    about,
    whole,
)
from jaxkd.pipeline.stages import AnyStage

__all__ = ["AnyStage", "Config", "Data", "ModelTable", "Options", "SpaceTable"]


class Config(Options, frozen=True, kw_only=True):
    """A run."""

    name: Annotated[
        str,
        Meta(description="of its directory", pattern=NAME),
    ] = "run"
    seed: Annotated[int, whole("of weights, order and augmentation", 0, 2**31 - 1)] = 0
    out: Annotated[str, about("where run directories are made")] = "runs"
    data: Data = Tfds()
    models: dict[str, ModelTable]
    stages: Annotated[tuple[AnyStage, ...], Meta(min_length=1, max_length=1000)]
    checkpoints: Checkpoints = Checkpoints()
