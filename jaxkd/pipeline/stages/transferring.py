"""transfer: weights from another model, by path and shape."""

import jax

from jaxkd import train, transfer
from jaxkd.pipeline.config import Transfer
from jaxkd.pipeline.networks import Held
from jaxkd.pipeline.stages.job import Job, Made, row_of


def run(stage: Transfer, job: Job) -> Made:
    """Copies what fits into the stage's model, fresh where it has no weights."""
    held, source = job.models[stage.model], job.models[stage.source]
    (params, state), report = transfer.copy(
        (source.params, source.state),
        _own(held, job),
        rename=stage.rename,
        strict=stage.strict,
        exclude=stage.exclude,
    )
    row = {**row_of(stage), "copied": len(report.copied)}
    row["fresh"] = sorted({*report.missing, *(m[0] for m in report.mismatched)})
    job.metrics.reset([])
    job.metrics.add(row)
    return Made(held._replace(params=params, state=state), [row])


def rehearse(stage: Transfer, job: Job) -> Held:
    """Matches the two models' paths and shapes."""
    held, source = job.models[stage.model], job.models[stage.source]
    own = jax.eval_shape(lambda: _own(held, job))
    theirs = (source.params, source.state)
    report = transfer.match(theirs, own, rename=stage.rename, exclude=stage.exclude)
    if not report.copied:
        raise ValueError(f"nothing of {stage.source!r} fits {stage.model!r}:\n{report}")
    if stage.strict and not report.complete:
        raise ValueError(f"strict: something is left over:\n{report}")
    return held._replace(params=own[0], state=own[1])


def _own(held: Held, job: Job):
    """The model's variables; fresh ones as a training would begin with."""
    if held.params is not None:
        return held.params, held.state
    image = train.example(job.world.resident, job.world.plain)["image"]
    # As `distill.distiller` splits it, so that fresh leaves are those of a training.
    _, key, _ = jax.random.split(job.key, 3)
    return jax.jit(held.net.init)(key, image)
