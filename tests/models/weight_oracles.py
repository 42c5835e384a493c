"""Weights by formula, and what the original implementations computed with them.

`oracles/index.json` has the names and shapes of each network's state dict as PyTorch
has them, `oracles/values.npz` the logits and features that torchvision, timm and
RepDistiller gave (float32, on a CPU), `oracles/files` one tiny network in many formats.
"""

import functools
import json
import pathlib

import numpy as np

FOLDER = pathlib.Path(__file__).parent / "oracles"
FILES = FOLDER / "files"
INDEX = json.loads((FOLDER / "index.json").read_text())

# The networks of the zoo that they are.
NETWORKS = {
    "repdistiller/resnet20": "resnet20",
    "repdistiller/resnet56": "resnet56",
    "repdistiller/resnet8x4": "resnet8x4",
    "repdistiller/resnet32x4": "resnet32x4",
    "repdistiller/wrn_40_2": "wrn_40_2",
    "repdistiller/vgg8": "vgg8",
    "repdistiller/MobileNetV2": "mobilenet_v2",
    "repdistiller/ShuffleV1": "shufflenet_v1",
    "repdistiller/ShuffleV2": "shufflenet_v2",
    "torchvision/resnet18": "resnet18",
    "torchvision/resnet50": "resnet50",
    "timm/resnet18": "resnet18",
    "timm/resnet50": "resnet50",
    "torchvision/mobilenet_v2": "mobilenet_v2_imagenet",
    "torchvision/resnext50_32x4d": "resnext50_32x4d",
    "torchvision/convnext_tiny": "convnext_tiny",
    "timm/convnext_tiny": "convnext_tiny",
    "timm/convnextv2_atto": "convnextv2_atto",
    "torchvision/vgg16_bn": "vgg16_bn",
    "torchvision/densenet121": "densenet121",
    "torchvision/regnet_y_400mf": "regnet_y_400mf",
    "torchvision/mobilenet_v3_small": "mobilenet_v3_small",
    "timm/mobilenetv3_small_100": "mobilenetv3_small_100",
    "torchvision/efficientnet_b0": "efficientnet_b0",
    "timm/tf_efficientnet_lite0": "tf_efficientnet_lite0",
    "timm/efficientnet_lite0": "efficientnet_lite0",
    "torchvision/shufflenet_v2_x1_0": "shufflenet_v2_imagenet",
    "torchvision/vit_b_16": "vit_base",
    "timm/vit_small_patch16_224": "vit_small_patch16_224",
    "timm/vit_small_patch14_dinov2": "vit_small_patch14_dinov2",
    "timm/vit_small_patch14_reg4_dinov2": "vit_small_patch14_reg4_dinov2",
    "timm/deit_tiny_distilled_patch16_224": "deit_tiny",
}


@functools.cache
def values():
    return np.load(FOLDER / "values.npz")


def spec(entry):
    """Shapes by name, as in the state dict."""
    return {name: tuple(shape) for name, shape, _ in INDEX[entry]["spec"]}


HEADLESS = {e for e in NETWORKS if e.endswith("dinov2")}


def near(entry, what):
    """Largest difference allowed, in standard deviations of the result."""
    noise = INDEX[entry]["checks"]["float32_noise"]
    return max(1e-4, 5 * noise.get(what, 0))
