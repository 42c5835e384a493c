"""Names of MobileNets, EfficientNets and ShuffleNets."""

from jaxkd.models.weights.rules import Rule, Table
from jaxkd.models.weights.tables.common import BLOCK, conv_norm

MOBILENET_V2 = Table(
    ("torchvision",),
    "mobilenet_v2",
    (
        *conv_norm("stem_@", "features.0.0", "features.0.1"),
        *conv_norm(
            f"{BLOCK}/@3", "features.{n+1}.conv.{p}", "features.{n+1}.conv.{p+1}"
        ),
        *conv_norm(
            f"{BLOCK}/@{{k}}",
            "features.{n+1}.conv.{p}.0",
            "features.{n+1}.conv.{p}.1",
        ),
        *conv_norm("last_@", "features.{N+1}.0", "features.{N+1}.1"),
        Rule("head", "classifier.1"),
    ),
    units=("conv1", "conv2", "conv3"),
    stages=4,
)

CIFAR_MOBILENET_V2 = Table(
    ("repdistiller",),
    "mobilenet_v2",
    (
        *conv_norm("stem_@", "conv1.0", "conv1.1"),
        *conv_norm(
            f"{BLOCK}/@{{k}}",
            "blocks.{g}.{m}.conv.{3k-3}",
            "blocks.{g}.{m}.conv.{3k-2}",
        ),
        *conv_norm("last_@", "conv2.0", "conv2.1"),
        Rule("head", "classifier.0"),
    ),
    stages=4,
)

TIMM_MOBILENET_V2 = Table(
    ("timm",),
    "mobilenet_v2",
    (
        *conv_norm("stem_@", "conv_stem", "bn1"),
        *conv_norm("stage1_block1/@2", "blocks.{g}.{m}.conv_dw", "blocks.{g}.{m}.bn1"),
        *conv_norm("stage1_block1/@3", "blocks.{g}.{m}.conv_pw", "blocks.{g}.{m}.bn2"),
        *conv_norm(f"{BLOCK}/@1", "blocks.{g}.{m}.conv_pw", "blocks.{g}.{m}.bn1"),
        *conv_norm(f"{BLOCK}/@2", "blocks.{g}.{m}.conv_dw", "blocks.{g}.{m}.bn2"),
        *conv_norm(f"{BLOCK}/@3", "blocks.{g}.{m}.conv_pwl", "blocks.{g}.{m}.bn3"),
        *conv_norm("last_@", "conv_head", "bn2"),
        Rule("head", "classifier"),
    ),
    stages=4,
)

SHUFFLENET_V1 = Table(
    ("repdistiller",),
    "shufflenet_v1",
    (
        *conv_norm("stem_@", "conv1", "bn1"),
        *conv_norm(f"{BLOCK}/@{{k}}", "layer{i}.{j-1}.conv{k}", "layer{i}.{j-1}.bn{k}"),
        Rule("head", "linear"),
    ),
)

CIFAR_SHUFFLENET_V2 = Table(
    ("repdistiller",),
    "shufflenet_v2",
    (
        *conv_norm("stem_@", "conv1", "bn1"),
        *conv_norm(
            "stage{i}_block1/left_@{k}", "layer{i}.0.conv{k}", "layer{i}.0.bn{k}"
        ),
        *conv_norm(
            "stage{i}_block1/@{k}", "layer{i}.0.conv{k+2}", "layer{i}.0.bn{k+2}"
        ),
        *conv_norm(f"{BLOCK}/@{{k}}", "layer{i}.{j-1}.conv{k}", "layer{i}.{j-1}.bn{k}"),
        *conv_norm("last_@", "conv2", "bn2"),
        Rule("head", "linear"),
    ),
)

_BRANCH = "stage{i+1}.{j-1}.branch"

SHUFFLENET_V2 = Table(
    ("torchvision",),
    "shufflenet_v2",
    (
        *conv_norm("stem_@", "conv1.0", "conv1.1"),
        *conv_norm(
            f"{BLOCK}/left_@{{k}}", f"{_BRANCH}1.{{2k-2}}", f"{_BRANCH}1.{{2k-1}}"
        ),
        *conv_norm(f"{BLOCK}/@1", f"{_BRANCH}2.0", f"{_BRANCH}2.1"),
        *conv_norm(f"{BLOCK}/@2", f"{_BRANCH}2.3", f"{_BRANCH}2.4"),
        *conv_norm(f"{BLOCK}/@3", f"{_BRANCH}2.5", f"{_BRANCH}2.6"),
        *conv_norm("last_@", "conv5.0", "conv5.1"),
        Rule("head", "fc"),
    ),
)

MBCONV_UNITS = ("conv1", "conv2", "squeeze", "conv3")


def _sequential(block: str) -> list[Rule]:
    """Torchvision's blocks, in which layers are numbered as far as there are any."""
    return [
        Rule(f"{BLOCK}/squeeze_reduce", f"{block}.{{p}}.fc1", optional=True),
        Rule(f"{BLOCK}/squeeze_expand", f"{block}.{{p}}.fc2", optional=True),
        *conv_norm(f"{BLOCK}/@{{k}}", f"{block}.{{p}}.0", f"{block}.{{p}}.1"),
    ]


_TIMM = "blocks.{i-1}.{j-1}"

# Blocks of the first stage widen nothing, and are numbered differently.
TIMM_MBCONV = (
    *conv_norm("stem_@", "conv_stem", "bn1"),
    *conv_norm("stage1_block{j}/@2", "blocks.0.{j-1}.conv_dw", "blocks.0.{j-1}.bn1"),
    *conv_norm("stage1_block{j}/@3", "blocks.0.{j-1}.conv_pw", "blocks.0.{j-1}.bn2"),
    *conv_norm(f"{BLOCK}/@1", f"{_TIMM}.conv_pw", f"{_TIMM}.bn1"),
    *conv_norm(f"{BLOCK}/@2", f"{_TIMM}.conv_dw", f"{_TIMM}.bn2"),
    *conv_norm(f"{BLOCK}/@3", f"{_TIMM}.conv_pwl", f"{_TIMM}.bn3"),
    Rule(f"{BLOCK}/squeeze_reduce", f"{_TIMM}.se.conv_reduce", optional=True),
    Rule(f"{BLOCK}/squeeze_expand", f"{_TIMM}.se.conv_expand", optional=True),
)

MOBILENET_V3 = Table(
    ("torchvision",),
    "mobilenet_v3",
    (
        *conv_norm("stem_@", "features.0.0", "features.0.1"),
        *_sequential("features.{n+1}.block"),
        *conv_norm("last_@", "features.{N+1}.0", "features.{N+1}.1"),
        Rule("last_hidden", "classifier.0"),
        Rule("head", "classifier.3"),
    ),
    MBCONV_UNITS,
)

TIMM_MOBILENET_V3 = Table(
    ("timm",),
    "mobilenet_v3",
    (
        *TIMM_MBCONV,
        *conv_norm("last_@", "blocks.{S}.0.conv", "blocks.{S}.0.bn1"),
        Rule("last_hidden", "conv_head", layout="1x1"),
        Rule("head", "classifier"),
    ),
)

EFFICIENTNET = Table(
    ("torchvision",),
    "efficientnet",
    (
        *conv_norm("stem_@", "features.0.0", "features.0.1"),
        *_sequential("features.{i}.{j-1}.block"),
        *conv_norm("last_@", "features.{S+1}.0", "features.{S+1}.1"),
        Rule("head", "classifier.1"),
    ),
    MBCONV_UNITS,
    stages=7,
)

TIMM_EFFICIENTNET = Table(
    ("timm",),
    "efficientnet",
    (
        *TIMM_MBCONV,
        *conv_norm("last_@", "conv_head", "bn2"),
        Rule("head", "classifier"),
    ),
    stages=7,
)

_NUMBERED = "_blocks.{n}."

EFFICIENTNET_PYTORCH = Table(
    ("efficientnet_pytorch",),
    "efficientnet",
    (
        *conv_norm("stem_@", "_conv_stem", "_bn0"),
        *conv_norm(f"{BLOCK}/@1", f"{_NUMBERED}_expand_conv", f"{_NUMBERED}_bn0"),
        *conv_norm(f"{BLOCK}/@2", f"{_NUMBERED}_depthwise_conv", f"{_NUMBERED}_bn1"),
        *conv_norm(f"{BLOCK}/@3", f"{_NUMBERED}_project_conv", f"{_NUMBERED}_bn2"),
        Rule(f"{BLOCK}/squeeze_reduce", f"{_NUMBERED}_se_reduce", optional=True),
        Rule(f"{BLOCK}/squeeze_expand", f"{_NUMBERED}_se_expand", optional=True),
        *conv_norm("last_@", "_conv_head", "_bn1"),
        Rule("head", "_fc"),
    ),
    stages=7,
)
