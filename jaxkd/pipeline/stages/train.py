"""train: a model on the labels."""

from collections.abc import Mapping
from typing import ClassVar

from jaxkd import distill, losses
from jaxkd.pipeline.parts import Rate
from jaxkd.pipeline.stages.context import StageContext
from jaxkd.pipeline.stages.stage import ModelStatus
from jaxkd.pipeline.stages.training import Training


class Train(Training, frozen=True, kw_only=True, tag="train", tag_field="kind"):
    """A model on the labels, from fresh weights."""

    label_smoothing: Rate = 0.0

    shown: ClassVar = {"model": "searched"}

    def check(self, models: Mapping[str, ModelStatus]) -> ModelStatus:
        """Refuse a model that has weights already."""
        after = super().check(models)
        if models[self.model].trained:
            raise ValueError(
                f"model: {self.model!r} has weights already, which train would throw "
                "away; finetune goes on from them"
            )
        return after

    def objective(self, context: StageContext, steps: int) -> distill.Spec:
        """Return the cross-entropy, its labels smoothed if asked for."""
        if not self.label_smoothing:
            return super().objective(context, steps)
        smooth = distill.on_labels(losses.label_smoothing, epsilon=self.label_smoothing)
        return {"ce": (1.0, smooth)}
