"""search: which network of a model's space, by short trainings."""

from typing import Any

import msgspec

from jaxkd import log as logs
from jaxkd.compress import search
from jaxkd.pipeline import memory, networks, optimizing
from jaxkd.pipeline.config import Search, Space
from jaxkd.pipeline.networks import Held
from jaxkd.pipeline.stages.job import Job, Made, row_of


def run(stage: Search, job: Job) -> Made:
    """Searches; goes on with the journal if there is one."""
    world = job.world
    space, limit, controller = _search(stage, job)
    course = _course(stage, job)
    settings = {
        **space.settings,
        **limit.settings,
        "begins": job.begins,
        "stage": msgspec.to_builtins(stage),
    }
    with logs.bar(stage.name, stage.candidates) as tick:
        found = search.run(
            controller,
            search.short_training(space, course, epochs=stage.epochs),
            budget=stage.candidates,
            feasible=limit.feasible,
            seed=job.config.seed,
            journal=job.folder / "journal.jsonl",
            settings=settings,
            progress=lambda trial: tick(
                {} if trial.error else {"reward": trial.reward}
            ),
        )
    for trial in found:
        if trial.error:
            job.warn(f"{stage.name}: candidate {trial.tokens} failed: {trial.error}")
    cost = search.parameters(space, world.image_shape)
    macs = search.macs(space, world.image_shape)
    rows = [
        {
            **row_of(stage),
            "trial": number,
            "tokens": list(trial.tokens),
            "values": space.values(trial.tokens),
            **(
                {"reward": None, "error": trial.error}
                if trial.error
                else {"reward": trial.reward}
            ),
            "macs": int(macs(trial.tokens)),
            "parameters": int(cost(trial.tokens)),
            "seconds": trial.seconds,
        }
        for number, trial in enumerate(found, start=1)
    ]
    job.metrics.reset(rows)
    values = space.values(search.best(found).tokens)
    told = ", ".join(f"{name} {value}" for name, value in values.items())
    job.warn(f"{stage.name}: the best of {len(found)} candidates has {told}")
    recipe: tuple[networks.Step, ...] = ({"step": "choose", "values": values},)
    return Made(Held(space.build(**values), recipe=recipe), rows)


def rehearse(stage: Search, job: Job) -> Held:
    """Finds whether the limit can be met; traces the cheapest candidate's training."""
    images = len(job.world.train.labels)
    if stage.batch_size > images:
        raise ValueError(
            f"batch_size: {stage.batch_size} is more than the {images} training images"
        )
    space, limit, _ = _search(stage, job)
    net = space.net(search.within(limit, limit.cheapest, space.sizes))
    course = _course(stage, job)
    training = search.training_program(net, course, stage.epochs)
    memory.traced(training, job.key[None], None, course.resident, course.held_out)
    return Held(net)


def _course(stage: Search, job: Job) -> search.Course:
    """How each candidate is trained and measured."""
    world = job.world
    return search.Course(
        world.resident,
        world.held_out,
        world.view,
        world.plain,
        optimizing.transformation(stage.optimizer, stage.optimizer.rate),
        stage.batch_size,
    )


def _search(stage: Search, job: Job) -> tuple[Any, Any, Any]:
    """The space, the limit and the controller."""
    model, world = job.config.models[stage.model], job.world
    assert isinstance(model, Space)
    space = networks.space(model, world.classes)
    count = {"macs": search.macs, "parameters": search.parameters}[stage.limit]
    cost = count(space, world.image_shape)
    limit = search.limit(stage.limit, cost, space.sizes, most=stage.most)
    start = search.within(limit, limit.cheapest, space.sizes)
    controllers = {
        "anneal": lambda: search.anneal(space.sizes, start),
        "evolve": lambda: search.evolve(
            space.sizes, population=max(2, min(20, stage.candidates // 3)), start=start
        ),
        "random": lambda: search.random_search(space.sizes),
    }
    return space, limit, controllers[stage.controller]()
