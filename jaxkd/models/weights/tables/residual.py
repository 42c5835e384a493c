"""Names of residual, dense and plain convolutional networks."""

from jaxkd.models.weights.rules import Rule, Table
from jaxkd.models.weights.tables.common import BLOCK, conv_norm

RESNET = Table(
    ("torchvision", "timm", "repdistiller"),
    "resnet",
    (
        *conv_norm("stem_@", "conv1", "bn1"),
        *conv_norm(
            f"{BLOCK}/shortcut_@",
            "layer{i}.{j-1}.downsample.0",
            "layer{i}.{j-1}.downsample.1",
        ),
        *conv_norm(f"{BLOCK}/@{{k}}", "layer{i}.{j-1}.conv{k}", "layer{i}.{j-1}.bn{k}"),
        Rule("head", "fc"),
    ),
)

_HF_BLOCK = "resnet.encoder.stages.{i-1}.layers.{j-1}"

TRANSFORMERS_RESNET = Table(
    ("transformers",),
    "resnet",
    (
        *conv_norm(
            "stem_@",
            "resnet.embedder.embedder.convolution",
            "resnet.embedder.embedder.normalization",
        ),
        *conv_norm(
            f"{BLOCK}/shortcut_@",
            f"{_HF_BLOCK}.shortcut.convolution",
            f"{_HF_BLOCK}.shortcut.normalization",
        ),
        *conv_norm(
            f"{BLOCK}/@{{k}}",
            f"{_HF_BLOCK}.layer.{{k-1}}.convolution",
            f"{_HF_BLOCK}.layer.{{k-1}}.normalization",
        ),
        Rule("head", "classifier.1"),
    ),
)

WRN = Table(
    ("repdistiller",),
    "wrn",
    (
        Rule("stem_conv", "conv1"),
        Rule(f"{BLOCK}/shortcut_conv", "block{i}.layer.{j-1}.convShortcut"),
        *conv_norm(
            f"{BLOCK}/@{{k}}",
            "block{i}.layer.{j-1}.conv{k}",
            "block{i}.layer.{j-1}.bn{k}",
        ),
        Rule("last_norm", "bn1"),
        Rule("head", "fc"),
    ),
)

VGG = Table(
    ("torchvision",),
    "vgg",
    (
        *conv_norm("stem_@{j}", "features.{3n}", "features.{3n+1}"),
        *conv_norm("stage{i}_@{j}", "features.{3n+i}", "features.{3n+i+1}"),
        Rule("last_hidden{k}", "classifier.{3k-3}"),
        Rule("head", "classifier.6"),
    ),
)

CIFAR_VGG = Table(
    ("repdistiller",),
    "vgg",
    (
        *conv_norm("stem_@{j}", "block0.{3j-3}", "block0.{3j-2}"),
        *conv_norm("stage{i}_@{j}", "block{i}.{3j-3}", "block{i}.{3j-2}"),
        Rule("head", "classifier"),
    ),
)

CONVNEXT = Table(
    ("torchvision",),
    "convnext",
    (
        *conv_norm("stem_@", "features.0.0", "features.0.1"),
        *conv_norm("stage{i}_@", "features.{2i-2}.1", "features.{2i-2}.0"),
        Rule(f"{BLOCK}/conv", "features.{2i-1}.{j-1}.block.0"),
        Rule(f"{BLOCK}/norm", "features.{2i-1}.{j-1}.block.2"),
        Rule(f"{BLOCK}/mlp1", "features.{2i-1}.{j-1}.block.3"),
        Rule(f"{BLOCK}/mlp2", "features.{2i-1}.{j-1}.block.5"),
        Rule(
            f"{BLOCK}/layer_scale",
            "features.{2i-1}.{j-1}.layer_scale",
            layout="column",
        ),
        Rule("last_norm", "classifier.0"),
        Rule("head", "classifier.2"),
    ),
)

_NEXT = "stages.{i-1}.blocks.{j-1}"


def _timm_convnext(layout: str, last: Rule) -> tuple[Rule, ...]:
    return (
        *conv_norm("stem_@", "stem.0", "stem.1"),
        *conv_norm(
            "stage{i}_@", "stages.{i-1}.downsample.1", "stages.{i-1}.downsample.0"
        ),
        Rule(f"{BLOCK}/conv", f"{_NEXT}.conv_dw"),
        Rule(f"{BLOCK}/norm", f"{_NEXT}.norm"),
        Rule(f"{BLOCK}/mlp{{k}}", f"{_NEXT}.mlp.fc{{k}}", layout=layout),
        last,
        Rule("last_norm", "head.norm"),
        Rule("head", "head.fc"),
    )


TIMM_CONVNEXT = Table(
    ("timm",),
    "convnext",
    _timm_convnext("", Rule(f"{BLOCK}/layer_scale", f"{_NEXT}.gamma")),
)

# As the sizes up to nano have it; larger ones have dense layers, which load as well.
TIMM_CONVNEXT_V2 = Table(
    ("timm",),
    "convnext_v2",
    _timm_convnext("1x1", Rule(f"{BLOCK}/response_norm", f"{_NEXT}.mlp.grn")),
)


def _densenet(source: tuple[str, ...], between: str) -> Table:
    layer = "features.denseblock{i}.denselayer{j}"
    return Table(
        source,
        "densenet",
        (
            *conv_norm("stem_@", "features.conv0", "features.norm0"),
            *conv_norm(
                f"{BLOCK}/@{{k}}",
                f"{layer}.conv{between}{{k}}",
                f"{layer}.norm{between}{{k}}",
            ),
            *conv_norm(
                "stage{i}_@",
                "features.transition{i}.conv",
                "features.transition{i}.norm",
            ),
            Rule("last_norm", "features.norm5"),
            Rule("head", "classifier"),
        ),
    )


DENSENET = _densenet(("torchvision", "timm"), "")

# Names in the files that torchvision published before it renamed the layers.
DENSENET_2017 = _densenet(("torchvision_2017",), ".")

_REG = "trunk_output.block{i}.block{i}-{j-1}"

REGNET = Table(
    ("torchvision",),
    "regnet",
    (
        *conv_norm("stem_@", "stem.0", "stem.1"),
        *conv_norm(f"{BLOCK}/shortcut_@", f"{_REG}.proj.0", f"{_REG}.proj.1"),
        *conv_norm(f"{BLOCK}/@1", f"{_REG}.f.a.0", f"{_REG}.f.a.1"),
        *conv_norm(f"{BLOCK}/@2", f"{_REG}.f.b.0", f"{_REG}.f.b.1"),
        *conv_norm(f"{BLOCK}/@3", f"{_REG}.f.c.0", f"{_REG}.f.c.1"),
        Rule(f"{BLOCK}/squeeze_reduce", f"{_REG}.f.se.fc1", optional=True),
        Rule(f"{BLOCK}/squeeze_expand", f"{_REG}.f.se.fc2", optional=True),
        Rule("head", "fc"),
    ),
)

TIMM_REGNET = Table(
    ("timm",),
    "regnet",
    (
        *conv_norm("stem_@", "stem.conv", "stem.bn"),
        *conv_norm(
            f"{BLOCK}/shortcut_@",
            "s{i}.b{j}.downsample.conv",
            "s{i}.b{j}.downsample.bn",
        ),
        *conv_norm(f"{BLOCK}/@{{k}}", "s{i}.b{j}.conv{k}.conv", "s{i}.b{j}.conv{k}.bn"),
        Rule(f"{BLOCK}/squeeze_reduce", "s{i}.b{j}.se.fc1", optional=True),
        Rule(f"{BLOCK}/squeeze_expand", "s{i}.b{j}.se.fc2", optional=True),
        Rule("head", "head.fc"),
    ),
)
