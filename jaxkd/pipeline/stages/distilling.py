"""distill: a model by a teacher, by losses or by a published recipe."""

import inspect
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, get_args

import jax
import jax.numpy as jnp
import msgspec
from msgspec import field

from jaxkd import recipes, train
from jaxkd._text import alternatives
from jaxkd.models.net import Net
from jaxkd.pipeline import networks, optimizing, schema
from jaxkd.pipeline.networks import Model, Origin, Step
from jaxkd.pipeline.parts import Losses, ModelTable, about
from jaxkd.pipeline.stages.context import StageContext, StageResult
from jaxkd.pipeline.stages.stage import ModelStatus
from jaxkd.pipeline.stages.training import (
    Taught,
    fit_recipe,
    start_of,
    steps_of,
    trace_recipe,
)

EXAMPLES = 256  # training images that a recipe may look at, for the margins of `ofd`
NOT_HERE = {"assistants": "write a distill stage for each network in between"}
OBJECTS = ("margins", "between")  # arguments that are no values


def _rebuild(net: Any, step: Step, origin: Origin) -> Net:
    """Extend a student as its recipe did, told by the teacher's table and shapes."""
    about = step["teacher"]
    table = msgspec.convert(about["model"], ModelTable)
    zeros = networks.zeros(about["shapes"])
    teacher = networks.build(
        table,
        about["recipe"],
        *zeros,
        classes=origin.classes,
        image_shape=origin.image_shape,
    )
    batch = {"image": jax.ShapeDtypeStruct((2, *origin.image_shape), jnp.float32)}
    return recipes.build(
        step["name"], net, (teacher, zeros), batch, **step["options"]
    ).net


class Distill(Taught, frozen=True, kw_only=True, tag="distill", tag_field="kind"):
    """A model by a teacher; from fresh weights if it has none."""

    teacher: Annotated[
        str | tuple[str, ...],
        about('the model that teaches; of an ensemble, a list: ["a", "b"]'),
    ] = "teacher"
    recipe: Annotated[
        str,
        about("of jaxkd.recipes, in place of losses: kd, dkd, at, crd, simkd, ..."),
    ] = ""
    options: Annotated[dict[str, Any], about("of the recipe, by name")] = field(
        default_factory=dict
    )
    published: Annotated[
        bool, about("the recipe's own optimizer and schedule, not those given here")
    ] = False
    losses: Annotated[
        Losses,
        about("by name: `loss` (the name if left out), `weight`, and its own knobs"),
    ] = field(default_factory=lambda: {"ce": {"weight": 0.1}, "kd": {"weight": 0.9}})

    steps: ClassVar = {"recipe": _rebuild}

    @property
    def needs_teacher(self) -> bool:
        """All need one, but for recipes in which nobody teaches, or the student."""
        if self.recipe not in recipes.names():
            return True
        parameters = inspect.signature(recipes.get(self.recipe)).parameters
        optional = type(None) in get_args(parameters["teacher"].annotation)
        return not optional or self.recipe == "stored"

    @property
    def needs_trained_teacher(self) -> bool:
        """All do, but a peer begins with fresh weights."""
        return self.recipe != "mutual"

    def check(self, models: Mapping[str, ModelStatus]) -> ModelStatus:
        """Check the recipe and its options, too."""
        if self.recipe:
            _check_recipe(self)
        elif self.options or self.published:
            key = "options" if self.options else "published"
            raise ValueError(f"{key}: belongs to a recipe, but none is named")
        # Past the losses, which a recipe does not look at.
        return super(Taught if self.recipe else Distill, self).check(models)

    def rehearse(self, context: StageContext) -> Model:
        """Trace an epoch, or all parts of a recipe."""
        if not self.recipe:
            return super().rehearse(context)
        held = context.models[self.model]
        recipe, steps = _recipe(self, context)
        params, state = trace_recipe(
            recipe, self, context, None, _teacher(self, context)
        )
        net = recipe.net if steps else held.net
        return Model(net, params, state, steps or held.recipe)

    def run(self, context: StageContext) -> StageResult:
        """Train the model for its epochs, or through all parts of a recipe."""
        if not self.recipe:
            return super().run(context)
        held = context.models[self.model]
        recipe, steps = _recipe(self, context)
        (params, state), rows = fit_recipe(
            recipe, self, context, None, _teacher(self, context)
        )
        net = recipe.net if steps else held.net
        return StageResult(
            Model(net, params, state, steps or held.recipe), rows, len(rows)
        )


def _check_recipe(stage: Distill) -> None:
    """Refuse a recipe or an option that does not exist, or does not fit the stage."""
    name, given = stage.recipe, stage.options
    try:
        method = recipes.get(name)
    except ValueError as error:
        raise ValueError(f"recipe: {error}") from error
    if name in NOT_HERE:
        raise ValueError(f"recipe: {name} is for Python; {NOT_HERE[name]}")
    knobs = {k: v for k, v in recipes.knobs(method).items() if k not in OBJECTS}
    for option, value in given.items():
        if option not in knobs:
            hint = alternatives(option, knobs)
            raise ValueError(f"options.{option}: {name} has no such option{hint}")
        wanted = _wanted(knobs[option])
        if not _FITS[wanted](value):
            raise ValueError(
                f"options.{option}: must be {wanted}, got {schema.shown(value)}"
            )
    if len(stage.names("teacher")) > 1 and name != "ensemble":
        raise ValueError(
            f"teacher: names {len(stage.names('teacher'))} models; several are for "
            'recipe = "ensemble"'
        )
    usual = {f.name: f for f in msgspec.structs.fields(type(stage))}
    if stage.losses != usual["losses"].default_factory():
        raise ValueError(f"losses: the recipe {name} has its own: leave them out")
    if stage.trains:
        raise ValueError(f"trains: the recipe {name} decides what moves: leave it out")
    if name == "born_again" and given.get("generations", 3) < 1:
        raise ValueError("options.generations: must be >= 1")


def _wanted(default: Any) -> str:
    """Return what an option must be, told by its default."""
    kinds = {bool: "true or false", str: "text", int: "a whole number"}
    return kinds.get(type(default), "a number")


_FITS = {
    "true or false": lambda value: isinstance(value, bool),
    "text": lambda value: isinstance(value, str),
    "a whole number": lambda value: schema.is_number(value) and isinstance(value, int),
    "a number": schema.is_number,
}


def _teachers(stage: Distill, context: StageContext) -> list[recipes.Trained]:
    found = [context.models[name] for name in stage.names("teacher")]
    return [(held.net, (held.params, held.state)) for held in found]


def _teacher(stage: Distill, context: StageContext) -> recipes.Trained | None:
    return next(iter(_teachers(stage, context)), None)


def _recipe(
    stage: Distill, context: StageContext
) -> tuple[recipes.Recipe, tuple[Step, ...]]:
    """Return the recipe, and the model's steps if it extends the network.

    Raises:
      ValueError: if it does not fit the networks, naming the recipe.
    """
    held, splits, steps = (
        context.models[stage.model],
        context.splits,
        steps_of(stage, context),
    )
    method = recipes.get(stage.recipe)
    usual = inspect.signature(method).parameters["budget"].default
    budget = usual._replace(epochs=stage.epochs, steps_per_epoch=steps)
    teachers: Any = _teachers(stage, context)
    if stage.recipe != "ensemble":
        teachers = _teacher(stage, context)
    view = lambda r: train.example(r, splits.plain, EXAMPLES)
    batch = jax.eval_shape(view, splits.resident)
    if not any(
        isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(teachers)
    ):
        batch = jax.jit(view)(splits.resident)
    student = networks.started(held.net, start_of(held))
    try:
        recipe = recipes.build(
            method,
            student,
            teachers,
            batch,
            dataset=splits.train,
            budget=budget,
            **stage.options,
        )
    except (ValueError, KeyError) as error:
        text = error.args[0] if error.args else error
        raise ValueError(f"recipe: {stage.recipe}: {text}") from error
    if not stage.published:
        parts = [
            part._replace(tx=optimizing.of(stage, steps, epochs=part.epochs))
            for part in recipe.stages
        ]
        recipe = recipe._replace(stages=tuple(parts))
    if recipe.net is student:
        return recipe, ()
    return recipe, (*held.recipe, _step(stage, context))


def _step(stage: Distill, context: StageContext) -> Step:
    """Return what is written down of a recipe that extends the network."""
    (name,) = stage.names("teacher")
    teacher = context.models[name]
    about = {
        "model": msgspec.to_builtins(context.config.models[name]),
        "recipe": list(teacher.recipe),
        "shapes": networks.shapes(teacher.params, teacher.state),
    }
    about["model"]["weights"] = ""
    return {
        "step": "recipe",
        "name": stage.recipe,
        "options": dict(stage.options),
        "teacher": about,
    }
