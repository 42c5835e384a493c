"""search: which network of a model's space, by short trainings."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal

import msgspec

from jaxkd import log as logs
from jaxkd.compress import search
from jaxkd.models.net import Net
from jaxkd.pipeline import memory, networks, optimizing
from jaxkd.pipeline.networks import Model, Origin, Step
from jaxkd.pipeline.parts import Optimizer, SpaceTable, about, whole
from jaxkd.pipeline.stages.context import StageContext, StageResult, row_of
from jaxkd.pipeline.stages.stage import ModelStatus, Stage

JOURNAL = "journal.jsonl"


def _choose(net: Any, step: Step, origin: Origin) -> Net:
    """Build the network of the space that was chosen."""
    # JSON made lists of tuples.
    tupled = lambda value: tuple(value) if isinstance(value, list) else value
    values = {name: tupled(value) for name, value in step["values"].items()}
    return networks.space(origin.model, origin.classes).build(**values)


class Search(Stage, frozen=True, kw_only=True, tag="search", tag_field="kind"):
    """Which network of a model's space."""

    controller: Annotated[Literal["anneal", "evolve", "random"], about("how")] = (
        "anneal"
    )
    candidates: Annotated[int, whole("how many are trained", 1, 10**6)] = 20
    epochs: Annotated[int, whole("of each candidate", 1, 10**6)] = 2
    batch_size: Annotated[int, whole("images in a step", 1, 10**6)] = 128
    optimizer: Optimizer = Optimizer()
    limit: Annotated[Literal["macs", "parameters"], about("what is limited")] = "macs"
    most: Annotated[int, whole("the limit, for one image", 1, 10**15)] = 2_000_000

    shown: ClassVar = {"model": "searched"}
    steps: ClassVar = {"choose": _choose}

    def check(self, models: Mapping[str, ModelStatus]) -> ModelStatus:
        """Refuse a model that is no space, or was chosen before."""
        if models[self.model].chosen:
            raise ValueError(
                f"model: {self.model!r} is not a space that has yet to be chosen"
            )
        return dataclasses.replace(models[self.model], chosen=True)

    def run(self, context: StageContext) -> StageResult:
        """Search, or resume from the journal."""
        space, limit, controller = _search(self, context)
        course = _course(self, context)
        settings = {
            **space.settings,
            **limit.settings,
            "begins": context.begins,
            "self": msgspec.to_builtins(self),
        }
        with logs.bar(self.name, self.candidates) as tick:
            found = search.run(
                controller,
                search.short_training(space, course, epochs=self.epochs),
                budget=self.candidates,
                feasible=limit.feasible,
                seed=context.config.seed,
                journal=context.folder / JOURNAL,
                settings=settings,
                progress=lambda trial: tick(
                    {} if trial.error else {"reward": trial.reward}
                ),
            )
        for trial in found:
            if trial.error:
                context.warn(
                    f"{self.name}: candidate {trial.tokens} failed: {trial.error}"
                )
        macs, parameters = (
            _cost(context, self.model, w) for w in ("macs", "parameters")
        )
        rows = [
            {
                **row_of(self),
                "trial": number,
                "tokens": list(trial.tokens),
                "values": space.values(trial.tokens),
                **(
                    {"reward": None, "error": trial.error}
                    if trial.error
                    else {"reward": trial.reward}
                ),
                "macs": int(macs(trial.tokens)),
                "parameters": int(parameters(trial.tokens)),
                "seconds": trial.seconds,
            }
            for number, trial in enumerate(found, start=1)
        ]
        context.metrics.reset(rows)
        values = space.values(search.best(found).tokens)
        told = ", ".join(f"{name} {value}" for name, value in values.items())
        context.warn(f"{self.name}: the best of {len(found)} candidates has {told}")
        recipe: tuple[networks.Step, ...] = ({"step": "choose", "values": values},)
        return StageResult(Model(space.build(**values), recipe=recipe), rows)

    def rehearse(self, context: StageContext) -> Model:
        """Find whether the limit can be met; trace the cheapest one's training."""
        space, limit, _ = _search(self, context)
        net = space.net(search.within(limit, limit.cheapest, space.sizes))
        course = _course(self, context)
        training = search.training_program(net, course, self.epochs)
        memory.traced(
            training, context.key[None], None, course.resident, course.held_out
        )
        return Model(net)


def _course(stage: Search, context: StageContext) -> search.Course:
    """Return how each candidate is trained and measured."""
    splits = context.splits
    return search.Course(
        splits.resident,
        splits.held_out,
        splits.view,
        splits.plain,
        optimizing.transformation(stage.optimizer, stage.optimizer.rate),
        stage.batch_size,
    )


def _search(stage: Search, context: StageContext) -> tuple[Any, Any, Any]:
    """Return the space, the limit and the controller."""
    model, splits = context.config.models[stage.model], context.splits
    assert isinstance(model, SpaceTable)
    space = networks.space(model, splits.classes)
    cost = _cost(context, stage.model, stage.limit)
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


def _cost(
    context: StageContext, name: str, what: str
) -> Callable[[search.Tokens], float]:
    """Return the cost of a candidate, counted once for rehearsal, run and rows."""
    model = context.config.models[name]
    return _counted(model, context.splits.classes, context.splits.image_shape, what)


@functools.lru_cache(maxsize=4)
def _counted(
    model: SpaceTable, classes: int, image_shape: tuple[int, ...], what: str
) -> Callable[[search.Tokens], float]:
    count = {"macs": search.macs, "parameters": search.parameters}[what]
    return count(networks.space(model, classes), image_shape)
