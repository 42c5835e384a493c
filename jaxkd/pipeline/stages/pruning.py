"""prune: channels leave a trained model."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import jax
import numpy as np
from msgspec import Meta

from jaxkd import losses, store
from jaxkd.compress import prune
from jaxkd.compress.prune.metric import part
from jaxkd.pipeline import memory
from jaxkd.pipeline.networks import Model
from jaxkd.pipeline.parts import Patterns, about, whole
from jaxkd.pipeline.stages.context import StageContext, StageResult, row_of
from jaxkd.pipeline.stages.stage import ModelStatus, Stage

GROUPS, SENSITIVITIES, SEARCH = "groups.txt", "sensitivities.json", "search.jsonl"
LEAST = 0.9  # of the cost that is left: what is far smaller is not worth comparing


class Prune(Stage, frozen=True, kw_only=True, tag="prune", tag_field="kind"):
    """Channels leave a trained model."""

    method: Annotated[
        Literal["uniform", "sensitivity", "search", "global"],
        about("how ratios are chosen"),
    ] = "uniform"
    criterion: Annotated[
        Literal["l1", "l2", "fpgm", "bn_scale", "taylor", "random"],
        about("which channels go first"),
    ] = "l1"
    cost: Annotated[Literal["macs", "parameters", "bytes"], about("what falls")] = (
        "macs"
    )
    ratio: Annotated[
        float, Meta(description="by what share it falls", ge=1e-3, lt=1)
    ] = 0.5
    round_to: Annotated[int, whole("widths are multiples of this", 1, 1024)] = 8
    include: Annotated[Patterns, about("patterns of layers; empty: all")] = ()
    exclude: Annotated[Patterns, about("patterns of layers that stay")] = ()
    step: Annotated[
        float, Meta(description="sensitivity, search: grid of ratios", ge=1e-3, lt=1)
    ] = 0.1
    candidates: Annotated[int, whole("search: how many are measured", 1, 10**6)] = 100
    recalibrate: Annotated[
        int,
        whole("sensitivity, search: images BatchNorm is measured on anew", 0, 10**6),
    ] = 1000
    examples: Annotated[
        int, whole("taylor: training images of its gradient", 1, 10**6)
    ] = 512

    needs_weights: ClassVar = True
    # Widths are those of the variables.
    steps: ClassVar = {"prune": lambda net, step, origin: prune.resized(net)}

    def check(self, models: Mapping[str, ModelStatus]) -> ModelStatus:
        """Refuse a model that is quantized."""
        after = super().check(models)
        if after.quantized:
            raise ValueError(
                f"model: {self.model!r} is quantized already; prune it before it is "
                "quantized"
            )
        return dataclasses.replace(after, pruned=True)

    def run(self, context: StageContext) -> StageResult:
        """Scores the channels, chooses, removes, and checks the result."""
        held, splits = context.models[self.model], context.splits
        net, variables = held.net, (held.params, held.state)
        plan, target = _plan(self, held, context)
        store.write_file(context.folder / GROUPS, f"{plan.listing()}\n".encode())
        dropped = _chosen(self, context, plan, target, held)
        x = splits.plain(context.stage_key, {"image": splits.resident["image"][:8]})[
            "image"
        ]
        prune.check_net(net, plan, *variables, dropped, x)
        params, state = plan.apply(variables, dropped)
        keep = plan.keep(dropped)
        row = {
            **row_of(self),
            "dropped": {
                group.name: [
                    int(u) - group.units.start for u in group.units if not keep[u]
                ]
                for group in plan.groups
            },
            "macs": plan.macs(dropped),
            "parameters": plan.params(dropped),
        }
        context.metrics.reset([])
        context.metrics.add(row)
        pruned = Model(
            prune.resized(net), params, state, (*held.recipe, {"step": "prune"})
        )
        return StageResult(pruned, [row])

    def rehearse(self, context: StageContext) -> Model:
        """Find the groups and whether the target can be met; widths stay."""
        held = context.models[self.model]
        plan, _ = _plan(self, held, context)
        memory.traced(
            lambda p, z: _scores(self, context, plan, held._replace(params=p, state=z)),
            held.params,
            held.state,
        )
        recipe = (*held.recipe, {"step": "prune"})
        return held._replace(net=prune.resized(held.net), recipe=recipe)


def _plan(
    stage: Prune, held: Model, context: StageContext
) -> tuple[prune.Plan, prune.Target]:
    analysed = functools.partial(
        prune.analyse_net, held.net, held.params, held.state, context.splits.image_shape
    )
    plan = analysed(include=stage.include or None, exclude=stage.exclude or None)
    if not plan.groups:
        names = [f"{group.name}/*" for group in analysed().groups]
        if not names:
            raise ValueError(f"{stage.model!r} has no channels that can be removed")
        given = {"include": stage.include, "exclude": stage.exclude}
        told = ", ".join(f"{k} = {list(v)}" for k, v in given.items() if v)
        raise ValueError(
            f"{told} selects no layer of {stage.model!r} that can be pruned; those "
            f"that can be are {', '.join(names)}"
        )
    widest = max(len(group.units) * group.each for group in plan.groups)
    if stage.round_to > widest:
        raise ValueError(
            f"round_to: must be at most {widest}, the channels of the widest layers "
            f"that can be pruned, got {stage.round_to}"
        )
    left = 1 - stage.ratio
    target = prune.target(plan, stage.cost, fraction=left, round_to=stage.round_to)
    return plan, target


def _scores(stage: Prune, context: StageContext, plan: prune.Plan, held: Model) -> Any:
    if stage.criterion == "random":
        key = jax.random.fold_in(context.stage_key, 1)
        return jax.random.uniform(key, (plan.units,))
    if stage.criterion == "taylor":
        return prune.criteria.taylor(plan, held.params, _gradient(stage, context, held))
    criteria = {
        "l1": prune.criteria.l1,
        "l2": prune.criteria.l2,
        "fpgm": prune.criteria.geometric_median,
        "bn_scale": prune.criteria.batch_norm_scale,
    }
    return criteria[stage.criterion](plan, held.params)


def _gradient(stage: Prune, context: StageContext, held: Model) -> Any:
    """Of the mean cross-entropy of the first training images, as they are."""
    first = jax.tree.map(lambda a: a[: stage.examples], context.splits.resident)
    batch = context.splits.plain(context.stage_key, first)

    def loss(params: Any) -> Any:
        outputs, _ = held.net.apply(params, held.state, batch["image"], train=False)
        return losses.cross_entropy(outputs.logits, batch["label"]).mean()

    return jax.grad(loss)(held.params)


def _chosen(
    stage: Prune,
    context: StageContext,
    plan: prune.Plan,
    target: prune.Target,
    held: Model,
) -> np.ndarray:
    """Return the units that go. Accuracies are those on the validation images."""
    scores = _scores(stage, context, plan, held)
    if stage.method == "uniform":
        return prune.uniform(plan, scores, target)
    if stage.method == "global":
        return prune.global_threshold(plan, scores, target)
    some, seed = None, context.config.seed
    if stage.recalibrate:
        some = part(context.splits.resident, stage.recalibrate, seed)
    metric = prune.masked_metric(
        held.net,
        plan,
        (held.params, held.state),
        context.splits.held_out,
        view=context.splits.plain,
        recalibrate_on=some,
    )
    ratios = np.arange(0, 1 - 1e-9, stage.step).round(6).tolist()
    file = context.folder / (SEARCH if stage.method == "search" else SENSITIVITIES)

    def measured() -> np.ndarray:
        if stage.method == "sensitivity":
            return prune.sensitivity(
                plan, scores, target, metric, ratios=ratios, file=file
            )
        return prune.search(
            plan, scores, target, metric,
            grid=ratios, budget=stage.candidates, least=LEAST,
            seed=seed, journal=file,
        ).dropped  # fmt: skip

    try:
        return measured()
    except ValueError as error:
        # A file of another beginning: this folder is being done anew.
        if not file.exists():
            raise
        context.warn(f"{error}; it is measured anew")
        file.unlink()
        return measured()
