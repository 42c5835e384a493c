"""The parts of a configuration that are no stages: values, ranges and meanings.

The texts beside the fields are what `python -m jaxkd config --defaults` prints.
"""

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

Patterns = tuple[str, ...]
NAME = r"^[A-Za-z0-9][A-Za-z0-9_.+-]{0,59}\Z"  # what may be the name of a file
Weight = Annotated[float, Meta(ge=0, le=1e6)]


def whole(text: str, low: int, high: int) -> Meta:
    """Describe a whole number and its range."""
    return Meta(description=text, ge=low, le=high)


def about(text: str) -> Meta:
    """Describe a value."""
    return Meta(description=text)


class Options(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The base of all parts of a configuration."""


class Augment(Options, frozen=True, kw_only=True):
    """What training images go through; validation and test images do not."""

    flip: Annotated[bool, about("mirror left to right, half of the images")] = False
    crop: Annotated[int, whole("pixels of padding for a random crop", 0, 64)] = 0
    cutout: Annotated[int, whole("side of the square erased, pixels", 0, 512)] = 0
    mixup: Annotated[
        float, Meta(description="alpha of mixup; 0: none", ge=0, le=100)
    ] = 0.0
    cutmix: Annotated[
        float, Meta(description="alpha of CutMix; 0: none", ge=0, le=100)
    ] = 0.0
    resized_crop: Annotated[
        float, Meta(description="least area of a random part; 0: none", ge=0, le=1)
    ] = 0.0
    colour_jitter: Annotated[
        float,
        Meta(description="of brightness, contrast and saturation; 0: none", ge=0, le=1),
    ] = 0.0
    rand_augment: Annotated[
        float, Meta(description="magnitude of 2 operations; 0: none", ge=0, le=30)
    ] = 0.0


Weights = Annotated[str, about("folder of trained variables to start from")]
Dtype = Annotated[
    Literal["float32", "bfloat16"], about("what to compute in; variables are float32")
]


class Zoo(Options, frozen=True, kw_only=True, tag="zoo", tag_field="kind"):
    """A network of `jaxkd.models.ZOO`."""

    name: Annotated[str, about('its name, e.g. "resnet8x4", "mobilenetv2"')]
    dtype: Dtype = "float32"
    weights: Weights = ""


Width = Annotated[int, Meta(ge=1, le=65536)]
Rate = Annotated[float, Meta(ge=0, lt=1)]


class CnnTable(Options, frozen=True, kw_only=True, tag="cnn", tag_field="kind"):
    """Stages of 3x3 convolutions, each ended by a pooling; `jaxkd.models.cnn`."""

    stages: Annotated[
        tuple[Annotated[tuple[Width, ...], Meta(min_length=1, max_length=64)], ...],
        Meta(description="widths of each stage's layers", min_length=1, max_length=16),
    ] = ((16,), (32,))
    hidden: Annotated[
        tuple[Width, ...], Meta(description="units of hidden layers", max_length=64)
    ] = (64,)
    dropout: Rate = 0.0
    dtype: Dtype = "float32"
    weights: Weights = ""


class MlpTable(Options, frozen=True, kw_only=True, tag="mlp", tag_field="kind"):
    """A multilayer perceptron; `jaxkd.models.mlp`."""

    widths: Annotated[
        tuple[Width, ...], Meta(description="units of hidden layers", max_length=64)
    ] = (64,)
    dropout: Rate = 0.0
    input_dropout: Rate = 0.0
    dtype: Dtype = "float32"
    weights: Weights = ""


class SpaceTable(Options, frozen=True, kw_only=True, tag="space", tag_field="kind"):
    """A space of networks, of which a `search` stage chooses one."""

    space: Annotated[Literal["resnet", "mobilenet"], about("which space")] = "resnet"
    widths: Annotated[
        tuple[Width, ...],
        Meta(description="usual widths of stem and stages; empty: the space's own"),
    ] = ()


ModelTable = Zoo | CnnTable | MlpTable | SpaceTable


class Optimizer(Options, frozen=True, kw_only=True):
    """What moves the parameters."""

    kind: Annotated[Literal["adam", "adamw", "sgd"], about("which")] = "adam"
    rate: Annotated[float, Meta(description="learning rate", ge=1e-12, le=1e3)] = 1e-3
    momentum: Annotated[float, Meta(description="of sgd", ge=0, lt=1)] = 0.9
    nesterov: Annotated[bool, about("of sgd")] = False
    weight_decay: Annotated[float, Meta(ge=0, le=10)] = 0.0
    clip: Annotated[
        float, Meta(description="largest norm of the gradient; 0: any", ge=0, le=1e6)
    ] = 0.0


class Schedule(Options, frozen=True, kw_only=True):
    """How the learning rate changes over a stage."""

    kind: Annotated[
        Literal["constant", "cosine", "linear", "steps"], about("its form")
    ] = "constant"
    warmup: Annotated[
        float, Meta(description="epochs of linear rise at the start", ge=0, le=1e5)
    ] = 0.0
    end: Annotated[
        float, Meta(description="cosine, linear: last share of the rate", ge=0, le=1)
    ] = 0.0
    at: Annotated[
        tuple[Annotated[float, Meta(gt=0, lt=1)], ...],
        Meta(description="steps: where, as shares of the stage", max_length=64),
    ] = (0.625, 0.75, 0.875)
    factor: Annotated[float, Meta(description="steps: at each", ge=1e-6, le=1)] = 0.1


class Ramp(Options, frozen=True, kw_only=True):
    """A loss's weight that changes: from `start` to `end` between two epochs."""

    start: Weight = 0.0
    end: Weight = 1.0
    first: Annotated[float, Meta(description="until then `start`", ge=0, le=1e5)] = 0.0
    last: Annotated[float, Meta(description="from then on `end`", ge=0, le=1e5)] = 1.0
    form: Literal["linear", "cosine", "step"] = "linear"


Losses = dict[str, dict[str, Any]]


class Checkpoints(Options, frozen=True, kw_only=True):
    """What is kept of a stage while it trains."""

    every: Annotated[int, whole("epochs between two", 1, 10**6)] = 1
    keep: Annotated[int, whole("how many of the latest", 1, 1000)] = 2
    best: Annotated[bool, about("and the best on the validation images")] = True
