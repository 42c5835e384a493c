"""evaluate: a model on one of the splits."""

from typing import Annotated, ClassVar, Literal

from jaxkd.pipeline import measuring
from jaxkd.pipeline.networks import Held
from jaxkd.pipeline.parts import about
from jaxkd.pipeline.stages.job import Job, Made, row_of
from jaxkd.pipeline.stages.stage import Stage


class Evaluate(Stage, frozen=True, kw_only=True, tag="evaluate", tag_field="kind"):
    """A model as it is, on the images of one of the splits; nothing changes."""

    split: Annotated[Literal["train", "validation", "test"], about("which images")] = (
        "validation"
    )

    needs_weights: ClassVar = True

    def rehearse(self, job: Job) -> Held:
        """Return the model, which does not change."""
        return job.models[self.model]

    def run(self, job: Job) -> Made:
        """Measure the model and leave a row."""
        held, world = job.models[self.model], job.world
        images = getattr(world, self.split)
        logits = measuring.logits(held, world._replace(test=images))
        found = measuring.quality(logits, images.labels, None)
        row = {
            **row_of(self),
            "split": self.split,
            "images": len(images.labels),
            "accuracy": found["accuracy"],
            "nll": found["nll"],
        }
        job.metrics.reset([])
        job.metrics.add(row)
        return Made(held, [row])
