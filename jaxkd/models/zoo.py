"""The networks of the field by their names, e.g. `ZOO["resnet8x4"](classes=100)`."""

import functools
from collections.abc import Callable
from typing import Any

from jaxkd.models.convnext import CONVNEXTS, convnext
from jaxkd.models.densenet import DENSENETS, densenet
from jaxkd.models.efficientnet import EFFICIENTNETS, efficientnet
from jaxkd.models.imagenet_resnet import IMAGENET_RESNETS, imagenet_resnet
from jaxkd.models.mobilenet_v1 import MOBILENETS_V1, mobilenet_v1
from jaxkd.models.mobilenet_v2 import MOBILENETS_V2, mobilenet_v2
from jaxkd.models.mobilenet_v3 import MOBILENETS_V3, mobilenet_v3
from jaxkd.models.net import Net
from jaxkd.models.regnet import REGNETS, regnet
from jaxkd.models.resnet import RESNETS, resnet
from jaxkd.models.shufflenet_v1 import SHUFFLENETS_V1, shufflenet_v1
from jaxkd.models.shufflenet_v2 import SHUFFLENETS_V2, shufflenet_v2
from jaxkd.models.vgg import VGGS, vgg
from jaxkd.models.vit import VITS, vit
from jaxkd.models.wrn import WRNS, wrn

_FAMILIES: list[tuple[Callable[..., Net], dict[str, dict[str, Any]]]] = [
    (resnet, RESNETS),
    (wrn, WRNS),
    (vgg, VGGS),
    (mobilenet_v1, MOBILENETS_V1),
    (mobilenet_v2, MOBILENETS_V2),
    (mobilenet_v3, MOBILENETS_V3),
    (efficientnet, EFFICIENTNETS),
    (shufflenet_v1, SHUFFLENETS_V1),
    (shufflenet_v2, SHUFFLENETS_V2),
    (imagenet_resnet, IMAGENET_RESNETS),
    (regnet, REGNETS),
    (densenet, DENSENETS),
    (convnext, CONVNEXTS),
    (vit, VITS),
]

# Each takes `classes` and, if wished, `dtype` or any other knob of its constructor.
ZOO: dict[str, Callable[..., Net]] = {
    name: functools.partial(make, **preset)
    for make, presets in _FAMILIES
    for name, preset in presets.items()
}
