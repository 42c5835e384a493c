"""What a configuration may say: frozen values with their ranges and meanings.

The texts beside the fields are what `python -m jaxkd config --defaults` prints.
"""

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field

Pattern = tuple[str, ...]
NAME = r"^[A-Za-z0-9][A-Za-z0-9_.+-]{0,59}\Z"  # what may be the name of a file
Weight = Annotated[float, Meta(ge=-1e6, le=1e6)]


def _whole(text: str, low: int, high: int) -> Meta:
    return Meta(description=text, ge=low, le=high)


def _text(text: str) -> Meta:
    return Meta(description=text)


class Value(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The base of all parts of a configuration."""


class Augment(Value, frozen=True, kw_only=True):
    """What training images go through; validation and test images do not."""

    flip: Annotated[bool, _text("mirror left to right, half of the images")] = False
    crop: Annotated[int, _whole("pixels of padding for a random crop", 0, 64)] = 0
    cutout: Annotated[int, _whole("side of the square erased, pixels", 0, 512)] = 0
    mixup: Annotated[
        float, Meta(description="alpha of mixup; 0: none", ge=0, le=100)
    ] = 0.0


class Data(Value, frozen=True, kw_only=True):
    """Which images."""

    name: Annotated[str, _text('"digits" is embedded; "cifar10", "mnist", ...')] = (
        "digits"
    )
    train_images: Annotated[
        int, _whole("a balanced subset of so many training images; 0: all", 0, 10**8)
    ] = 0
    archives: Annotated[str, _text("folder of the official archives")] = ""
    data_dir: Annotated[str, _text("where prepared data is kept")] = ""
    augment: Augment = Augment()


Weights = Annotated[str, _text("folder of trained variables to start from")]
Dtype = Annotated[
    Literal["float32", "bfloat16"], _text("what to compute in; variables are float32")
]


class Zoo(Value, frozen=True, kw_only=True, tag="zoo", tag_field="kind"):
    """A network of `jaxkd.models.ZOO`."""

    name: Annotated[str, _text('its name, e.g. "resnet8x4", "mobilenetv2"')]
    dtype: Dtype = "float32"
    weights: Weights = ""


Width = Annotated[int, Meta(ge=1, le=65536)]
Rate = Annotated[float, Meta(ge=0, lt=1)]


class Cnn(Value, frozen=True, kw_only=True, tag="cnn", tag_field="kind"):
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


class Mlp(Value, frozen=True, kw_only=True, tag="mlp", tag_field="kind"):
    """A multilayer perceptron; `jaxkd.models.mlp`."""

    widths: Annotated[
        tuple[Width, ...], Meta(description="units of hidden layers", max_length=64)
    ] = (64,)
    dropout: Rate = 0.0
    input_dropout: Rate = 0.0
    dtype: Dtype = "float32"
    weights: Weights = ""


class Space(Value, frozen=True, kw_only=True, tag="space", tag_field="kind"):
    """A space of networks, of which a `search` stage chooses one."""

    space: Annotated[Literal["resnet", "mobilenet"], _text("which space")] = "resnet"
    widths: Annotated[
        tuple[Width, ...],
        Meta(description="usual widths of stem and stages; empty: the space's own"),
    ] = ()


Model = Zoo | Cnn | Mlp | Space


class Optimizer(Value, frozen=True, kw_only=True):
    """What moves the parameters."""

    kind: Annotated[Literal["adam", "adamw", "sgd"], _text("which")] = "adam"
    rate: Annotated[float, Meta(description="learning rate", ge=1e-12, le=1e3)] = 1e-3
    momentum: Annotated[float, Meta(description="of sgd", ge=0, lt=1)] = 0.9
    nesterov: Annotated[bool, _text("of sgd")] = False
    weight_decay: Annotated[float, Meta(ge=0, le=10)] = 0.0
    clip: Annotated[
        float, Meta(description="largest norm of the gradient; 0: any", ge=0, le=1e6)
    ] = 0.0


class Schedule(Value, frozen=True, kw_only=True):
    """How the learning rate changes over a stage."""

    kind: Annotated[
        Literal["constant", "cosine", "linear", "steps"], _text("its form")
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


class Ramp(Value, frozen=True, kw_only=True):
    """A loss's weight that changes: from `start` to `end` between two epochs."""

    start: Weight = 0.0
    end: Weight = 1.0
    first: Annotated[float, Meta(description="until then `start`", ge=0, le=1e5)] = 0.0
    last: Annotated[float, Meta(description="from then on `end`", ge=0, le=1e5)] = 1.0
    form: Literal["linear", "cosine", "step"] = "linear"


Losses = dict[str, dict[str, Any]]


class Stage(Value, frozen=True, kw_only=True):
    """What every stage has."""

    name: Annotated[
        str,
        Meta(
            description="unique; empty: the kind, numbered if need be",
            pattern=rf"{NAME}|^\Z",
        ),
    ] = ""
    model: Annotated[str, _text("which model it changes")] = "student"


class Training(Stage, frozen=True, kw_only=True):
    """What every stage has that trains."""

    epochs: Annotated[int, _whole("its budget", 1, 10**6)] = 20
    batch_size: Annotated[int, _whole("images in a step", 1, 10**6)] = 128
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    trains: Annotated[
        Pattern, _text('patterns of what moves, e.g. "head/*"; empty: all')
    ] = ()
    take: Annotated[
        Literal["last", "best"], _text("which epoch's variables, by validation")
    ] = "last"


class Taught(Training, frozen=True, kw_only=True):
    """What every stage has that may be taught."""

    teacher: Annotated[
        str, _text("the model that teaches; empty: the labels alone")
    ] = ""
    temperature: Annotated[
        float, Meta(description="of each loss that has one", ge=1e-3, le=1e4)
    ] = 4.0
    losses: Annotated[
        Losses,
        _text("by name: `loss` (the name if left out), `weight`, and its own knobs"),
    ] = field(default_factory=lambda: {"ce": {"weight": 1.0}})


class Train(Training, frozen=True, kw_only=True, tag="train", tag_field="kind"):
    """A model on the labels, from fresh weights."""

    label_smoothing: Rate = 0.0


class Distill(Taught, frozen=True, kw_only=True, tag="distill", tag_field="kind"):
    """A model by a teacher; from fresh weights if it has none."""

    teacher: Annotated[str, _text("the model that teaches")] = "teacher"
    losses: Annotated[
        Losses,
        _text("by name: `loss` (the name if left out), `weight`, and its own knobs"),
    ] = field(default_factory=lambda: {"ce": {"weight": 0.1}, "kd": {"weight": 0.9}})


class Finetune(Taught, frozen=True, kw_only=True, tag="finetune", tag_field="kind"):
    """A model that has weights, further."""

    frozen_statistics: Annotated[
        bool, _text("BatchNorm keeps its stored statistics")
    ] = False


class Transfer(Stage, frozen=True, kw_only=True, tag="transfer", tag_field="kind"):
    """Weights from another model, by path and shape."""

    source: Annotated[str, _text("the model that they come from")] = "teacher"
    rename: Annotated[dict[str, str], _text("from the source's paths to its own")] = (
        field(default_factory=dict)
    )
    exclude: Annotated[Pattern, _text("patterns of paths that stay fresh")] = ()
    strict: Annotated[bool, _text("refuse if anything is left over")] = False


class Prune(Stage, frozen=True, kw_only=True, tag="prune", tag_field="kind"):
    """Channels leave a trained model."""

    method: Annotated[
        Literal["uniform", "sensitivity", "search", "global"],
        _text("how ratios are chosen"),
    ] = "uniform"
    criterion: Annotated[
        Literal["l1", "l2", "fpgm", "bn_scale", "taylor", "random"],
        _text("which channels go first"),
    ] = "l1"
    cost: Annotated[Literal["macs", "parameters", "bytes"], _text("what falls")] = (
        "macs"
    )
    ratio: Annotated[
        float, Meta(description="by what share it falls", ge=1e-3, lt=1)
    ] = 0.5
    round_to: Annotated[int, _whole("widths are multiples of this", 1, 1024)] = 8
    include: Annotated[Pattern, _text("patterns of layers; empty: all")] = ()
    exclude: Annotated[Pattern, _text("patterns of layers that stay")] = ()
    step: Annotated[
        float, Meta(description="sensitivity, search: grid of ratios", ge=1e-3, lt=1)
    ] = 0.1
    candidates: Annotated[int, _whole("search: how many are measured", 1, 10**6)] = 100
    recalibrate: Annotated[
        int,
        _whole("sensitivity, search: images BatchNorm is measured on anew", 0, 10**6),
    ] = 1000
    examples: Annotated[
        int, _whole("taylor: training images of its gradient", 1, 10**6)
    ] = 512


class Quantize(Taught, frozen=True, kw_only=True, tag="quantize", tag_field="kind"):
    """Integers for weights and activations; BatchNorm is folded first."""

    epochs: Annotated[
        int, _whole("of training; 0: ranges are only measured", 0, 10**6)
    ] = 5
    weights: Annotated[int, _whole("bits", 2, 8)] = 8
    activations: Annotated[int, _whole("bits", 2, 8)] = 8
    activation: Annotated[
        Literal["static", "dynamic", "float"],
        _text("how the ranges of activations are determined"),
    ] = "static"
    per_channel: Annotated[bool, _text("a scale for each output channel")] = True
    symmetric: Annotated[bool, _text("activations about 0")] = False
    estimator: Annotated[
        Literal["ema", "window_max", "percentile", "mse"], _text("of static ranges")
    ] = "ema"
    lsq: Annotated[bool, _text("learn the step sizes")] = False
    calibration: Annotated[
        int, _whole("training images that ranges are measured on first", 1, 10**6)
    ] = 512
    float_layers: Annotated[Pattern, _text("patterns of layers left in float")] = ()


class Search(Stage, frozen=True, kw_only=True, tag="search", tag_field="kind"):
    """Which network of a model's space."""

    controller: Annotated[Literal["anneal", "evolve", "random"], _text("how")] = (
        "anneal"
    )
    candidates: Annotated[int, _whole("how many are trained", 1, 10**6)] = 20
    epochs: Annotated[int, _whole("of each candidate", 1, 10**6)] = 2
    batch_size: Annotated[int, _whole("images in a step", 1, 10**6)] = 128
    optimizer: Optimizer = Optimizer()
    limit: Annotated[Literal["macs", "parameters"], _text("what is limited")] = "macs"
    most: Annotated[int, _whole("the limit, for one image", 1, 10**15)] = 2_000_000


class Export(Stage, frozen=True, kw_only=True, tag="export", tag_field="kind"):
    """Files that run without this library, compared with the model and timed."""

    formats: Annotated[
        tuple[Literal["stablehlo", "tflite", "onnx"], ...],
        Meta(description="which", min_length=1, max_length=3),
    ] = ("stablehlo",)
    batch: Annotated[int, _whole("images in a call; 0: any number", 0, 10**5)] = 1
    int8: Annotated[bool, _text("refuse a model that is not quantized")] = False
    latency: Annotated[bool, _text("time the files, one image, one thread")] = True


AnyStage = Train | Distill | Transfer | Prune | Quantize | Search | Finetune | Export


class Checkpoints(Value, frozen=True, kw_only=True):
    """What is kept of a stage while it trains."""

    every: Annotated[int, _whole("epochs between two", 1, 10**6)] = 1
    keep: Annotated[int, _whole("how many of the latest", 1, 1000)] = 2
    best: Annotated[bool, _text("and the best on the validation images")] = True


class Config(Value, frozen=True, kw_only=True):
    """A run."""

    name: Annotated[
        str,
        Meta(description="of its directory", pattern=NAME),
    ] = "run"
    seed: Annotated[int, _whole("of weights, order and augmentation", 0, 2**31 - 1)] = 0
    out: Annotated[str, _text("where run directories are made")] = "runs"
    data: Data = Data()
    models: dict[str, Model]
    stages: Annotated[tuple[AnyStage, ...], Meta(min_length=1, max_length=1000)]
    checkpoints: Checkpoints = Checkpoints()
