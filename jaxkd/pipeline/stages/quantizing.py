"""quantize: BatchNorm is folded, ranges are measured, then it trains."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import jax

from jaxkd.compress import quantize
from jaxkd.models.net import Net
from jaxkd.pipeline import networks
from jaxkd.pipeline.networks import Model, Origin, Step
from jaxkd.pipeline.parts import Patterns, about, whole
from jaxkd.pipeline.stages.context import StageContext, StageResult, row_of
from jaxkd.pipeline.stages.stage import ModelStatus
from jaxkd.pipeline.stages.training import Taught, fit, traced

BATCH = 64  # images in a calibrating pass


def _fold(net: Any, step: Step, origin: Origin) -> Net:
    """Fold BatchNorm, told by the shapes of the variables before."""
    zeros = networks.zeros(step["shapes"])
    net, *_ = quantize.fold(net, *zeros, origin.image_shape)
    return net


def _quantize(net: Any, step: Step, origin: Origin) -> Net:
    """Quantize with the fields of `Quantization`."""
    how = networks.quantization(step["how"])
    net, *_ = quantize.quantized(
        net, origin.params, origin.state, how, origin.image_shape
    )
    return net


class Quantize(Taught, frozen=True, kw_only=True, tag="quantize", tag_field="kind"):
    """Integers for weights and activations; BatchNorm is folded first."""

    epochs: Annotated[
        int, whole("of training; 0: ranges are only measured", 0, 10**6)
    ] = 5
    weights: Annotated[int, whole("bits", 2, 8)] = 8
    activations: Annotated[int, whole("bits", 2, 8)] = 8
    activation: Annotated[
        Literal["static", "dynamic", "float"],
        about("how the ranges of activations are determined"),
    ] = "static"
    per_channel: Annotated[bool, about("a scale for each output channel")] = True
    symmetric: Annotated[bool, about("activations about 0")] = False
    estimator: Annotated[
        Literal["ema", "window_max", "percentile", "mse"], about("of static ranges")
    ] = "ema"
    lsq: Annotated[bool, about("learn the step sizes")] = False
    calibration: Annotated[
        int, whole("training images that ranges are measured on first", 1, 10**6)
    ] = 512
    float_layers: Annotated[Patterns, about("patterns of layers left in float")] = ()

    needs_weights: ClassVar = True
    steps: ClassVar = {"fold": _fold, "quantize": _quantize}

    def check(self, models: Mapping[str, ModelStatus]) -> ModelStatus:
        """Refuse a model that is quantized, and steps of ranges that change."""
        if models[self.model].quantized:
            raise ValueError(f"model: {self.model!r} is quantized already")
        if self.lsq and self.activation == "dynamic":
            raise ValueError(
                "lsq: learns steps of static ranges; activation is dynamic"
            )
        return dataclasses.replace(super().check(models), quantized=True)

    def run(self, context: StageContext) -> StageResult:
        """Folds, quantizes, calibrates; trains if it has epochs."""
        held, splits = context.models[self.model], context.splits
        net, params, state, recipe = _quantized(self, held, context)
        n = min(self.calibration, len(splits.train.labels))
        seen = jax.jit(
            lambda image: splits.plain(context.key, {"image": image})["image"]
        )
        images = splits.resident["image"]
        # The last, smaller batch is one more compilation, and counts as all others do.
        batches = (seen(images[i : min(i + BATCH, n)]) for i in range(0, n, BATCH))
        state = quantize.calibrate(net, params, state, batches)
        if not self.epochs:
            row = {**row_of(self), "calibrated": n}
            context.metrics.reset([])
            context.metrics.add(row)
            return StageResult(Model(net, params, state, recipe), [row])
        (params, state), rows = fit(net, self, context, (params, state))
        return StageResult(Model(net, params, state, recipe), rows, self.epochs)

    def rehearse(self, context: StageContext) -> Model:
        """Fold and quantize zeros of the model's shapes; trace an epoch."""
        held = context.models[self.model]
        zeros = jax.tree.map(lambda a: jax.numpy.zeros(a.shape, a.dtype), held.params)
        state = jax.tree.map(lambda a: jax.numpy.ones(a.shape, a.dtype), held.state)
        filled = held._replace(params=zeros, state=state)
        net, params, state, recipe = _quantized(self, filled, context)
        before, after = quantize.size(net, params, state)
        if before == after:
            raise ValueError(
                f"float_layers: {list(self.float_layers)} fits every layer, so that "
                "nothing is quantized"
            )
        params, state = jax.eval_shape(lambda: (params, state))
        if self.epochs:
            params, state = traced(net, self, context, (params, state))
        return Model(net, params, state, recipe)


def _quantized(
    stage: Quantize, held: Model, context: StageContext
) -> tuple[Net, Any, Any, tuple[networks.Step, ...]]:
    shape = context.splits.image_shape
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
