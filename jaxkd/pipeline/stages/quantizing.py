"""quantize: BatchNorm is folded, ranges are measured, then it trains."""

import dataclasses
from typing import Any

import jax

from jaxkd.compress import quantize
from jaxkd.models.net import Net
from jaxkd.pipeline import networks
from jaxkd.pipeline.config import Quantize
from jaxkd.pipeline.networks import Held
from jaxkd.pipeline.stages.job import Job, Made, row_of
from jaxkd.pipeline.stages.training import fit, traced

BATCH = 64  # images in a calibrating pass


def run(stage: Quantize, job: Job) -> Made:
    """Folds, quantizes, calibrates; trains if it has epochs."""
    held, world = job.models[stage.model], job.world
    net, params, state, recipe = _quantized(stage, held, job)
    n = min(stage.calibration, len(world.train.labels))
    seen = jax.jit(lambda image: world.plain(job.key, {"image": image})["image"])
    images = world.resident["image"]
    # The last, smaller batch is one more compilation, and counts as all others do.
    batches = (seen(images[i : min(i + BATCH, n)]) for i in range(0, n, BATCH))
    state = quantize.calibrate(net, params, state, batches)
    if not stage.epochs:
        row = {**row_of(stage), "calibrated": n}
        job.metrics.reset([])
        job.metrics.add(row)
        return Made(Held(net, params, state, recipe), [row])
    (params, state), rows = fit(net, stage, job, (params, state))
    return Made(Held(net, params, state, recipe), rows, stage.epochs)


def rehearse(stage: Quantize, job: Job) -> Held:
    """Folds and quantizes zeros of the model's shapes; traces an epoch."""
    held = job.models[stage.model]
    zeros = jax.tree.map(lambda a: jax.numpy.zeros(a.shape, a.dtype), held.params)
    state = jax.tree.map(lambda a: jax.numpy.ones(a.shape, a.dtype), held.state)
    whole = held._replace(params=zeros, state=state)
    net, params, state, recipe = _quantized(stage, whole, job)
    before, after = quantize.size(net, params, state)
    if before == after:
        raise ValueError(
            f"float_layers: {list(stage.float_layers)} fits every layer, so that "
            "nothing is quantized"
        )
    params, state = jax.eval_shape(lambda: (params, state))
    if stage.epochs:
        params, state = traced(net, stage, job, (params, state))
    return Held(net, params, state, recipe)


def _quantized(
    stage: Quantize, held: Held, job: Job
) -> tuple[Net, Any, Any, tuple[networks.Step, ...]]:
    shape = job.world.image_shape
    how = quantize.Quantization(
        weights=stage.weights,
        per_channel=stage.per_channel,
        activation=stage.activation,
        activations=stage.activations,
        symmetric=stage.symmetric,
        estimator=stage.estimator,
        lsq=stage.lsq,
        layers=dict.fromkeys(stage.float_layers, quantize.FLOAT),
    )
    net, params, state = quantize.fold(held.net, held.params, held.state, shape)
    net, params, state = quantize.quantized(net, params, state, how, shape)
    fields = {f.name: getattr(how, f.name) for f in dataclasses.fields(how)}
    fields["layers"] = {name: list(bits) for name, bits in how.layers.items()}
    recipe = (
        *held.recipe,
        {"step": "fold", "shapes": networks.shapes(held.params, held.state)},
        {"step": "quantize", "how": fields},
    )
    return net, params, state, recipe
