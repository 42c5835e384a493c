"""evaluate: a model on one of the splits."""

from typing import Annotated, ClassVar, Literal

from jaxkd.pipeline import measuring
from jaxkd.pipeline.networks import Model
from jaxkd.pipeline.parts import about
from jaxkd.pipeline.stages.context import StageContext, StageResult, row_of
from jaxkd.pipeline.stages.stage import Stage


class Evaluate(Stage, frozen=True, kw_only=True, tag="evaluate", tag_field="kind"):
    """A model as it is, on the images of one of the splits; nothing changes."""

    split: Annotated[Literal["train", "validation", "test"], about("which images")] = (
        "validation"
    )

    needs_weights: ClassVar = True

    def rehearse(self, context: StageContext) -> Model:
        """Return the model, which does not change."""
        return context.models[self.model]

    def run(self, context: StageContext) -> StageResult:
        """Measure the model and leave a row."""
        held, splits = context.models[self.model], context.splits
        images = getattr(splits, self.split)
        logits = measuring.logits(held, splits._replace(test=images))
        found = measuring.quality(logits, images.labels, None)
        row = {
            **row_of(self),
            "split": self.split,
            "images": len(images.labels),
            "accuracy": found["accuracy"],
            "nll": found["nll"],
        }
        context.metrics.reset([])
        context.metrics.add(row)
        return StageResult(held, [row])
