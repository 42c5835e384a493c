"""transfer: weights from another model, by path and shape."""

from collections.abc import Mapping
from typing import Annotated, ClassVar

import jax
from msgspec import field

from jaxkd import train, transfer
from jaxkd.pipeline.networks import Model
from jaxkd.pipeline.parts import Patterns, about
from jaxkd.pipeline.stages.context import StageContext, StageResult, row_of
from jaxkd.pipeline.stages.stage import ModelStatus, Stage


class Transfer(Stage, frozen=True, kw_only=True, tag="transfer", tag_field="kind"):
    """Weights from another model, by path and shape."""

    source: Annotated[str, about("the model that they come from")] = "teacher"
    rename: Annotated[dict[str, str], about("from the source's paths to its own")] = (
        field(default_factory=dict)
    )
    exclude: Annotated[Patterns, about("patterns of paths that stay fresh")] = ()
    strict: Annotated[bool, about("refuse if anything is left over")] = False

    shown: ClassVar = {"source": "source"}

    def check(self, models: Mapping[str, ModelStatus]) -> ModelStatus:
        """Refuse a model whose shapes have changed."""
        after = super().check(models)
        if after.pruned or after.quantized:
            raise ValueError(
                f"model: {self.model!r} no longer has the shapes to copy into"
            )
        return after

    def run(self, context: StageContext) -> StageResult:
        """Copy what fits into the self's model, fresh where it has no weights."""
        held, source = context.models[self.model], context.models[self.source]
        (params, state), report = transfer.copy(
            (source.params, source.state),
            _own(held, context),
            rename=self.rename,
            strict=self.strict,
            exclude=self.exclude,
        )
        row = {**row_of(self), "copied": len(report.copied)}
        row["fresh"] = sorted({*report.missing, *(m[0] for m in report.mismatched)})
        context.metrics.reset([])
        context.metrics.add(row)
        return StageResult(held._replace(params=params, state=state), [row])

    def rehearse(self, context: StageContext) -> Model:
        """Match the two models' paths and shapes."""
        held, source = context.models[self.model], context.models[self.source]
        own = jax.eval_shape(lambda: _own(held, context))
        theirs = (source.params, source.state)
        report = transfer.match(theirs, own, rename=self.rename, exclude=self.exclude)
        if not report.copied:
            raise ValueError(
                f"nothing of {self.source!r} fits {self.model!r}:\n{report}"
            )
        if self.strict and not report.complete:
            raise ValueError(f"strict: something is left over:\n{report}")
        return held._replace(params=own[0], state=own[1])


def _own(held: Model, context: StageContext):
    """Return the model's variables; fresh ones as a training would begin with."""
    if held.params is not None:
        return held.params, held.state
    image = train.example(context.splits.resident, context.splits.plain)["image"]
    # As `distill.distiller` splits it, so that fresh leaves are those of a training.
    _, key, _ = jax.random.split(context.key, 3)
    return jax.jit(held.net.init)(key, image)
