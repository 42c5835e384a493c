"""What a stage is given, and what it gives back."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
from jaxtyping import Array

from jaxkd.pipeline.networks import Model
from jaxkd.pipeline.run_data import RunData

if TYPE_CHECKING:  # they have stages themselves
    from jaxkd.pipeline.config import Config
    from jaxkd.pipeline.directory import Metrics
    from jaxkd.pipeline.stages.stage import Stage


class StageContext(NamedTuple):
    """What a stage works with.

    Attributes:
      config: of the run.
      place: of the stage, from 0.
      splits: the data.
      models: all models as they are.
      folder: the stage's own.
      begins: digest of what the stage begins with: its checkpoints must have the same.
      metrics: where rows go; `reset` takes the stage's rows so far.
      warn: told of what the user should know.
    """

    config: Config
    place: int
    splits: RunData
    models: Mapping[str, Model]
    folder: pathlib.Path
    begins: str
    metrics: Metrics
    warn: Callable[[str], None]

    @property
    def key(self) -> Array:
        """Of the run: initial weights, the same for all models."""
        return jax.random.key(self.config.seed)

    @property
    def stage_key(self) -> Array:
        """Of the stage: data order and augmentation."""
        return jax.random.fold_in(self.key, self.place)


class StageResult(NamedTuple):
    """What a stage has made.

    Attributes:
      held: the model.
      rows: of metrics.jsonl.
      epochs: how many were trained.
      files: of an export.
    """

    held: Model
    rows: list[dict[str, Any]]
    epochs: int = 0
    files: tuple[dict[str, Any], ...] = ()


def row_of(stage: Stage) -> dict[str, Any]:
    """Return how each row of a stage begins."""
    return {"stage": stage.name, "kind": stage.kind, "model": stage.model}
