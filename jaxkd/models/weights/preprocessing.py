"""How images are prepared for the published weights of the zoo's networks, as data."""

from typing import NamedTuple

from jaxkd._text import alternatives
from jaxkd.models.zoo import ZOO


class PublishedInput(NamedTuple):
    """What a network's published weights expect of an image.

    Attributes:
      size: height and width in pixels.
      mean: of each channel, of values from 0 to 1, to be subtracted.
      deviation: of each channel, to divide by.
      interpolation: how the image is resized.
      crop: the share of the resized image's shorter side that `size` is.
    """

    size: int
    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]
    interpolation: str
    crop: float


# RepDistiller's and mdistiller's numbers for CIFAR-100; torchvision's for ImageNet.
CIFAR = PublishedInput(
    32, (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761), "bilinear", 1.0
)
IMAGENET = PublishedInput(
    224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bilinear", 0.875
)
BICUBIC = IMAGENET._replace(interpolation="bicubic")
HALF = BICUBIC._replace(mean=(0.5,) * 3, deviation=(0.5,) * 3, crop=0.9)
# TensorFlow's for EfficientNet-Lite, (x - 127) / 128 of values up to 255.
LITE = BICUBIC._replace(mean=(127 / 255,) * 3, deviation=(128 / 255,) * 3)

BILINEAR = LITE._replace(interpolation="bilinear")

# All other names of the zoo, for small images, are prepared as `CIFAR`.
PREPROCESSING: dict[str, PublishedInput] = {
    **dict.fromkeys(
        (
            "resnet18", "resnet34", "resnet50", "resnext50_32x4d", "wide_resnet50_2",
            "mobilenet_v1", "mobilenet_v1_050", "mobilenet_v2_imagenet",
            "mobilenet_v3_small", "mobilenet_v3_large", "shufflenet_v2_imagenet",
            "vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn",
            "vit_base", "densenet121", "regnet_y_400mf", "regnet_x_400mf",
        ),
        IMAGENET,
    ),
    **dict.fromkeys(("deit_tiny", "deit_small"), BICUBIC._replace(crop=0.9)),
    "vit_small_patch16_224": HALF,
    "vit_small_patch14_dinov2": BICUBIC._replace(size=518, crop=1.0),
    "vit_small_patch14_reg4_dinov2": BICUBIC._replace(size=518, crop=1.0),
    "mobilenetv3_small_100": BICUBIC,
    "mobilenetv3_large_100": BICUBIC,
    "efficientnet_b0": BICUBIC,
    "convnext_tiny": IMAGENET._replace(crop=224 / 236),
    "convnextv2_atto": BICUBIC,
    "efficientnet_lite0": BICUBIC,
    "tf_efficientnet_lite0": LITE,
    "tf_efficientnet_lite1": LITE._replace(size=240, crop=0.882),
    "tf_efficientnet_lite2": LITE._replace(size=260, crop=0.89),
    "tf_efficientnet_lite3": BILINEAR._replace(size=300, crop=0.904),
    "tf_efficientnet_lite4": BILINEAR._replace(size=380, crop=0.92),
}  # fmt: skip


def preprocessing(name: str) -> PublishedInput:
    """Return how images are prepared for the published weights of a network.

    Args:
      name: in `ZOO`.

    Raises:
      KeyError: if the zoo has no network of that name.

    Example:
      >>> preprocessing("resnet50").size
      224
    """
    if name not in ZOO:
        raise KeyError(f"no network {name!r}{alternatives(name, ZOO)}")
    return PREPROCESSING.get(name, CIFAR)
