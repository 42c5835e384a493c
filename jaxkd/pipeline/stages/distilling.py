"""distill: a model by a teacher."""

from typing import Annotated, ClassVar

from msgspec import field

from jaxkd.pipeline.parts import Losses, about
from jaxkd.pipeline.stages.training import Taught


class Distill(Taught, frozen=True, kw_only=True, tag="distill", tag_field="kind"):
    """A model by a teacher; from fresh weights if it has none."""

    teacher: Annotated[str, about("the model that teaches")] = "teacher"
    losses: Annotated[
        Losses,
        about("by name: `loss` (the name if left out), `weight`, and its own knobs"),
    ] = field(default_factory=lambda: {"ce": {"weight": 0.1}, "kd": {"weight": 0.9}})

    needs_teacher: ClassVar = True
