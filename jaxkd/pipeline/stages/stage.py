"""What every stage is: its options, its checks, and what it does, in one class."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar

from msgspec import Meta

from jaxkd.models.net import Net
from jaxkd.pipeline.networks import Model, Origin, Step
from jaxkd.pipeline.parts import NAME, Options, about
from jaxkd.pipeline.stages.context import StageContext, StageResult

Replay = Callable[[Net | None, Step, Origin], Net]


@dataclasses.dataclass(frozen=True)
class ModelStatus:
    """What has become of a model so far, told by the stages before."""

    trained: bool = False
    chosen: bool = True
    pruned: bool = False
    quantized: bool = False


class Stage(Options, frozen=True, kw_only=True):
    """What every stage has.

    A kind of stage is a subclass with a tag, listed in `jaxkd.pipeline.stages.KINDS`.
    Its fields are the keys of its table.

    Attributes:
      shown: values of its fields in `jaxkd config --defaults`, beside the defaults.
      steps: for each step that it adds to a model's recipe, how the step is replayed
        on the network before it, for a model that is loaded.
      needs_weights: whether its model must have been trained before.
    """

    shown: ClassVar[Mapping[str, Any]] = {}
    steps: ClassVar[Mapping[str, Replay]] = {}
    needs_weights: ClassVar[bool] = False

    name: Annotated[
        str,
        Meta(
            description="unique; empty: the kind, numbered if need be",
            pattern=rf"{NAME}|^\Z",
        ),
    ] = ""
    model: Annotated[str, about("which model it changes")] = "student"

    @property
    def kind(self) -> str:
        """The kind: "train", "distill", ..."""
        return str(self.__struct_config__.tag)

    @property
    def needs_teacher(self) -> bool:
        """Whether `teacher` must name a model."""
        return False

    @property
    def needs_trained_teacher(self) -> bool:
        """Whether the teacher must have been trained."""
        return True

    def names(self, field: str) -> tuple[str, ...]:
        """Return the models that a field names: none, one, or several of a list."""
        value = getattr(self, field, "")
        return tuple(value) if not isinstance(value, str) else (value,) * bool(value)

    def check(self, models: Mapping[str, ModelStatus]) -> ModelStatus:
        """Check that the stage can follow those before it.

        Args:
          models: all models as they are before it; those that it names exist.

        Returns:
          What its model is after it.

        Raises:
          ValueError: naming the key, and what to do.
        """
        model, name = models[self.model], self.model
        if not model.chosen:
            raise ValueError(
                f"model: {name!r} is a space; a search stage must come first"
            )
        others = [(f, other) for f in ("teacher", "source") for other in self.names(f)]
        for field, other in others:
            if field == "teacher" and not self.needs_trained_teacher:
                continue
            if not models[other].trained:
                raise ValueError(
                    f"{field}: {other!r} has not been trained: put a train stage with "
                    f'model = "{other}" before this one, or give models.{other}.weights'
                )
        if self.needs_weights and not model.trained:
            raise ValueError(
                f"model: {name!r} has not been trained; put a train or distill stage "
                "before this one"
            )
        return dataclasses.replace(model, trained=True)

    def rehearse(self, context: StageContext) -> Model:
        """Do what can be done with shapes alone.

        Returns:
          The model as it will be, its variables as shapes.

        Raises:
          ValueError: if the stage cannot work.
        """
        raise NotImplementedError

    def run(self, context: StageContext) -> StageResult:
        """Do the stage, from its checkpoint if there is one."""
        raise NotImplementedError
