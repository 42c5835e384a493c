"""prune: channels leave a trained model."""

from typing import Any

import jax
import numpy as np

from jaxkd import distill, store
from jaxkd.compress import prune
from jaxkd.compress.prune.metric import part
from jaxkd.pipeline import memory
from jaxkd.pipeline.config import Prune
from jaxkd.pipeline.networks import Held
from jaxkd.pipeline.stages.job import Job, Made, row_of

SENSITIVITIES = "sensitivities.json"
LEAST = 0.9  # of the cost that is left: what is far smaller is not worth comparing


def run(stage: Prune, job: Job) -> Made:
    """Scores the channels, chooses, removes, and checks the result."""
    held, world = job.models[stage.model], job.world
    net, variables = held.net, (held.params, held.state)
    plan, target = _plan(stage, held, job)
    store.write_file(job.folder / "groups.txt", f"{plan.listing()}\n".encode())
    dropped = _chosen(stage, job, plan, target, held)
    x = world.plain(job.stage_key, {"image": world.resident["image"][:8]})["image"]
    prune.check_net(net, plan, *variables, dropped, x)
    params, state = plan.apply(variables, dropped)
    keep = plan.keep(dropped)
    row = {
        **row_of(stage),
        "dropped": {
            group.name: [int(u) - group.units.start for u in group.units if not keep[u]]
            for group in plan.groups
        },
        "macs": plan.macs(dropped),
        "parameters": plan.params(dropped),
    }
    job.metrics.reset([])
    job.metrics.add(row)
    pruned = Held(prune.resized(net), params, state, (*held.recipe, {"step": "prune"}))
    return Made(pruned, [row])


def rehearse(stage: Prune, job: Job) -> Held:
    """Finds the groups and whether the target can be met; widths stay."""
    held = job.models[stage.model]
    plan, _ = _plan(stage, held, job)
    memory.traced(
        lambda p, z: _scores(stage, job, plan, held._replace(params=p, state=z)),
        held.params,
        held.state,
    )
    recipe = (*held.recipe, {"step": "prune"})
    return held._replace(net=prune.resized(held.net), recipe=recipe)


def _plan(stage: Prune, held: Held, job: Job) -> tuple[prune.Plan, prune.Target]:
    plan = prune.analyse_net(
        held.net,
        held.params,
        held.state,
        job.world.image_shape,
        include=stage.include or None,
        exclude=stage.exclude or None,
    )
    if not plan.groups:
        raise ValueError(f"{stage.model!r} has no channels that can be removed")
    left = 1 - stage.ratio
    target = prune.target(plan, stage.cost, fraction=left, round_to=stage.round_to)
    return plan, target


def _scores(stage: Prune, job: Job, plan: prune.Plan, held: Held) -> Any:
    if stage.criterion == "random":
        key = jax.random.fold_in(job.stage_key, 1)
        return jax.random.uniform(key, (plan.units,))
    if stage.criterion == "taylor":
        return prune.criteria.taylor(plan, held.params, _gradient(stage, job, held))
    criteria = {
        "l1": prune.criteria.l1,
        "l2": prune.criteria.l2,
        "fpgm": prune.criteria.geometric_median,
        "bn_scale": prune.criteria.batch_norm_scale,
    }
    return criteria[stage.criterion](plan, held.params)


def _gradient(stage: Prune, job: Job, held: Held) -> Any:
    """Of the mean cross-entropy of the first training images, as they are."""
    first = jax.tree.map(lambda a: a[: stage.examples], job.world.resident)
    batch = job.world.plain(job.stage_key, first)

    def loss(params: Any) -> Any:
        outputs, _ = held.net.apply(params, held.state, batch["image"], train=False)
        return distill.cross_entropy(outputs.logits, batch["label"]).mean()

    return jax.grad(loss)(held.params)


def _chosen(
    stage: Prune, job: Job, plan: prune.Plan, target: prune.Target, held: Held
) -> np.ndarray:
    """The units that go. Accuracies are those on the validation images."""
    scores = _scores(stage, job, plan, held)
    if stage.method == "uniform":
        return prune.uniform(plan, scores, target)
    if stage.method == "global":
        return prune.global_threshold(plan, scores, target)
    some, seed = None, job.config.seed
    if stage.recalibrate:
        some = part(job.world.resident, stage.recalibrate, seed)
    metric = prune.masked_metric(
        held.net,
        plan,
        (held.params, held.state),
        job.world.held_out,
        view=job.world.plain,
        recalibrate_on=some,
    )
    ratios = np.arange(0, 1 - 1e-9, stage.step).round(6).tolist()
    file = job.folder / ("search.jsonl" if stage.method == "search" else SENSITIVITIES)

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
        job.warn(f"{error}; it is measured anew")
        file.unlink()
        return measured()
