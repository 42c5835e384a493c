"""The rule tables: one for each family and way of naming it; see `rules`."""

from jaxkd.models.weights.rules import Table
from jaxkd.models.weights.tables import mobile, residual, vit

# Where several fit a network that is saved, the first one is taken.
TABLES: tuple[Table, ...] = (
    residual.RESNET,
    residual.WRN,
    residual.VGG,
    residual.CIFAR_VGG,
    mobile.MOBILENET_V2,
    mobile.CIFAR_MOBILENET_V2,
    mobile.TIMM_MOBILENET_V2,
    mobile.MOBILENET_V3,
    mobile.TIMM_MOBILENET_V3,
    mobile.EFFICIENTNET,
    mobile.TIMM_EFFICIENTNET,
    mobile.EFFICIENTNET_PYTORCH,
    mobile.SHUFFLENET_V1,
    mobile.SHUFFLENET_V2,
    mobile.CIFAR_SHUFFLENET_V2,
    residual.DENSENET,
    residual.DENSENET_2017,
    residual.CONVNEXT,
    residual.TIMM_CONVNEXT,
    residual.TIMM_CONVNEXT_V2,
    residual.REGNET,
    residual.TIMM_REGNET,
    vit.TORCHVISION_VIT,
    vit.VIT,
    residual.TRANSFORMERS_RESNET,
    vit.TRANSFORMERS_VIT,
)
