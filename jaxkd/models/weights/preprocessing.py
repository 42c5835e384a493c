"""How images are prepared for the published weights of the zoo's networks, as data."""

from typing import NamedTuple

from jaxkd._text import alternatives
from jaxkd.models.zoo import ZOO


class Preprocessing(NamedTuple):
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
CIFAR = Preprocessing(
    32, (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761), "bilinear", 1.0
)
IMAGENET = Preprocessing(
    224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bilinear", 0.875
)
BICUBIC = IMAGENET._replace(interpolation="bicubic", crop=0.9)

PREPROCESSING: dict[str, Preprocessing] = {
    **dict.fromkeys(ZOO, CIFAR),
    **dict.fromkeys(
        (
            "resnet18", "resnet34", "resnet50", "mobilenet_v1", "mobilenet_v1_050",
            "mobilenet_v2_imagenet", "shufflenet_v2_imagenet", "vit_base",
        ),
        IMAGENET,
    ),
    **dict.fromkeys(("deit_tiny", "deit_small"), BICUBIC),
}  # fmt: skip


def preprocessing(name: str) -> Preprocessing:
    """Return how images are prepared for the published weights of a network.

    Args:
      name: in `ZOO`.

    Raises:
      KeyError: if the zoo has no network of that name.

    Example:
      >>> preprocessing("resnet50").size
      224
    """
    if name not in PREPROCESSING:
        raise KeyError(f"no network {name!r}{alternatives(name, ZOO)}")
    return PREPROCESSING[name]
