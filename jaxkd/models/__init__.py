"""Networks: `Net`, the pair of functions, and constructors of networks as data."""

from jaxkd.models.cnn import CNNS, Cnn, cnn
from jaxkd.models.convnext import CONVNEXTS, ConvNext, convnext
from jaxkd.models.convolution import conv_general_dilated, plain_convolutions
from jaxkd.models.densenet import DENSENETS, DenseNet, densenet
from jaxkd.models.efficientnet import EFFICIENTNETS, EfficientNet, efficientnet
from jaxkd.models.imagenet_resnet import (
    IMAGENET_RESNETS,
    ImagenetResNet,
    imagenet_resnet,
)
from jaxkd.models.mlp import MLPS, Mlp, mlp
from jaxkd.models.mobilenet_v1 import MOBILENETS_V1, MobileNetV1, mobilenet_v1
from jaxkd.models.mobilenet_v2 import MOBILENETS_V2, MobileNetV2, mobilenet_v2
from jaxkd.models.mobilenet_v3 import MOBILENETS_V3, MobileNetV3, mobilenet_v3
from jaxkd.models.net import Net, from_foreign, from_linen
from jaxkd.models.nnx import from_nnx
from jaxkd.models.pooling import max_pool
from jaxkd.models.regnet import REGNETS, RegNet, regnet
from jaxkd.models.resnet import RESNETS, ResNet, resnet
from jaxkd.models.shufflenet_v1 import SHUFFLENETS_V1, ShuffleNetV1, shufflenet_v1
from jaxkd.models.shufflenet_v2 import SHUFFLENETS_V2, ShuffleNetV2, shufflenet_v2
from jaxkd.models.vgg import VGGS, Vgg, vgg
from jaxkd.models.vit import VITS, ViT, vit
from jaxkd.models.weights import (
    PublishedInput,
    Report,
    Rule,
    Table,
    load_weights,
    preprocessing,
    save_weights,
)
from jaxkd.models.wrn import WRNS, WideResNet, wrn
from jaxkd.models.zoo import ZOO

__all__ = [
    "CNNS",
    "CONVNEXTS",
    "DENSENETS",
    "EFFICIENTNETS",
    "IMAGENET_RESNETS",
    "MLPS",
    "MOBILENETS_V1",
    "MOBILENETS_V2",
    "MOBILENETS_V3",
    "REGNETS",
    "RESNETS",
    "SHUFFLENETS_V1",
    "SHUFFLENETS_V2",
    "VGGS",
    "VITS",
    "WRNS",
    "ZOO",
    "Cnn",
    "ConvNext",
    "DenseNet",
    "EfficientNet",
    "ImagenetResNet",
    "Mlp",
    "MobileNetV1",
    "MobileNetV2",
    "MobileNetV3",
    "Net",
    "PublishedInput",
    "RegNet",
    "Report",
    "ResNet",
    "Rule",
    "ShuffleNetV1",
    "ShuffleNetV2",
    "Table",
    "Vgg",
    "ViT",
    "WideResNet",
    "cnn",
    "conv_general_dilated",
    "convnext",
    "densenet",
    "efficientnet",
    "from_foreign",
    "from_linen",
    "from_nnx",
    "imagenet_resnet",
    "load_weights",
    "max_pool",
    "mlp",
    "mobilenet_v1",
    "mobilenet_v2",
    "mobilenet_v3",
    "plain_convolutions",
    "preprocessing",
    "regnet",
    "resnet",
    "save_weights",
    "shufflenet_v1",
    "shufflenet_v2",
    "vgg",
    "vit",
    "wrn",
]
