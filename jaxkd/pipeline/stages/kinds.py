"""From a stage to the file that does it."""

from typing import Any

from jaxkd.pipeline.config import AnyStage
from jaxkd.pipeline.networks import Held
from jaxkd.pipeline.order import kind_of
from jaxkd.pipeline.stages import (
    exporting,
    pruning,
    quantizing,
    searching,
    training,
    transferring,
)
from jaxkd.pipeline.stages.job import Job, Made

_ROOMS: dict[str, Any] = {
    "train": training,
    "distill": training,
    "finetune": training,
    "transfer": transferring,
    "prune": pruning,
    "quantize": quantizing,
    "search": searching,
    "export": exporting,
}


def run(stage: AnyStage, job: Job) -> Made:
    """Does a stage, from its checkpoint if there is one."""
    return _ROOMS[kind_of(stage)].run(stage, job)


def rehearse(stage: AnyStage, job: Job) -> Held:
    """The model as it will be, in shapes.

    Raises:
      ValueError: if the stage cannot work.
    """
    return _ROOMS[kind_of(stage)].rehearse(stage, job)
