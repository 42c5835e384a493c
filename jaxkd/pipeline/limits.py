"""Numbers of a configuration that its data or its other numbers limit.

What a number can be at all stands beside it, in `parts` and in the stages.
"""

from collections.abc import Iterator
from typing import Any

import msgspec

from jaxkd.pipeline.config import AnyStage, Config
from jaxkd.pipeline.parts import Augment, Ramp
from jaxkd.pipeline.run_data import RunData


def check(config: Config, splits: RunData) -> None:
    """Refuse numbers that pass by themselves, but can have no effect or no sense here.

    Args:
      config: whose data is `splits`.
      splits: the data.

    Raises:
      ValueError: naming the key, the number, and the limit.
    """
    problems = list(_augment(config.data.augment, min(splits.image_shape[:2])))
    for place, stage in enumerate(config.stages):
        here = f"stages.{place} ({stage.kind}): "
        problems += [here + text for text in _stage(stage, len(splits.train.labels))]
    for problem in problems:
        raise ValueError(problem)


def _augment(augment: Augment, side: int) -> Iterator[str]:
    """Of what images of this side go through."""
    for name, limit in (("crop", side - 1), ("cutout", side)):
        if (got := getattr(augment, name)) > limit:
            yield (
                f"data.augment.{name}: must be at most {limit} for images of {side} "
                f"pixels, got {got}"
            )
    if augment.mixup and augment.cutmix:
        yield "data.augment: mixup and cutmix would mix images twice: set one of them"


def _stage(stage: AnyStage, images: int) -> Iterator[str]:
    """Of a stage that trains on so many images."""
    epochs = getattr(stage, "epochs", 0)
    if not epochs:
        return
    size = getattr(stage, "batch_size", 1)
    if size > images:
        yield f"batch_size: {size} is more than the {images} training images"
    schedule: Any = getattr(stage, "schedule", None)
    if schedule is not None and schedule.warmup > epochs:
        yield (
            f"schedule.warmup: must be at most the {epochs} epochs of the stage, got "
            f"{schedule.warmup:g}"
        )
    for name, entry in getattr(stage, "losses", {}).items():
        ramp = entry.get("weight")
        if not isinstance(ramp, dict):
            continue
        ramp = msgspec.convert(ramp, Ramp)
        # A step changes the weight at `last`, the other forms from `first` on.
        key = "last" if ramp.form == "step" else "first"
        last_step = epochs - 1 / max(1, images // size)  # where the last step begins
        if (got := getattr(ramp, key)) >= epochs or (key == "last" and got > last_step):
            yield (
                f"losses.{name}.weight.{key}: must be less than the {epochs} epochs of "
                f"the stage, and not within its last step, got {got:g}: the weight "
                "would never change"
            )
