"""Residual networks of four stages: for 224x224 images, or 32x32 by another stem."""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn

from jaxkd import _check
from jaxkd.models._layers import (
    check_length,
    check_numbers,
    conv,
    global_mean,
    head,
    norm,
)
from jaxkd.models.net import Net, from_linen
from jaxkd.models.resnet import BasicBlock, Bottleneck, residual_stage

# Networks as data, e.g. `imagenet_resnet(**IMAGENET_RESNETS["resnet50"],
# classes=1000)`; those with "cifar" in the name are for 32x32 images.
IMAGENET_RESNETS: dict[str, dict[str, Any]] = {
    "resnet18": {"blocks": (2, 2, 2, 2)},
    "resnet34": {"blocks": (3, 4, 6, 3)},
    "resnet50": {"blocks": (3, 4, 6, 3), "bottleneck": True},
    "resnext50_32x4d": {
        "blocks": (3, 4, 6, 3),
        "bottleneck": True,
        "groups": 32,
        "group_width": 4,
    },
    "wide_resnet50_2": {
        "blocks": (3, 4, 6, 3),
        "bottleneck": True,
        "group_width": 128,
    },
    "resnet18_cifar": {"blocks": (2, 2, 2, 2), "stem": "cifar"},
    "resnet50_cifar": {"blocks": (3, 4, 6, 3), "bottleneck": True, "stem": "cifar"},
}


class ImagenetResNet(nn.Module):
    """A stem, four stages of residual blocks, the head; see `imagenet_resnet`."""

    blocks: Sequence[int]
    bottleneck: bool
    stem: str
    width: int
    classes: int
    dtype: Any = None
    remat: bool = False
    groups: int = 1
    group_width: int = 64

    @nn.compact
    def __call__(self, x, train: bool = False):
        """Logits and taps."""
        taps = {}
        window, strides = (7, 2) if self.stem == "imagenet" else (3, 1)
        x = conv(self.width, window, strides, name="stem_conv", dtype=self.dtype)(x)
        x = nn.relu(norm(train, name="stem_norm", dtype=self.dtype)(x))
        taps["stem"] = x
        if self.stem == "imagenet":
            x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        kind = Bottleneck if self.bottleneck else BasicBlock
        kind = nn.remat(kind) if self.remat else kind
        for i, blocks in enumerate(self.blocks, start=1):
            width = self.width * 2 ** (i - 1)
            how = {"train": train, "dtype": self.dtype}
            if self.bottleneck:
                inner = width * self.group_width // 64 * self.groups
                how |= {"inner": inner, "groups": self.groups}
            block = functools.partial(kind, width, **how)
            widens, strides = i > 1 or self.bottleneck, 1 if i == 1 else 2
            x = residual_stage(x, i, block, blocks, strides, taps, widens=widens)
        taps["unpooled"] = x
        x = taps["pooled"] = global_mean(x)
        return head(self.classes, self.dtype)(x), taps


def imagenet_resnet(
    blocks: Sequence[int],
    *,
    classes: int,
    bottleneck: bool = False,
    stem: str = "imagenet",
    width: int = 64,
    groups: int = 1,
    group_width: int = 64,
    dtype: Any = None,
    remat: bool = False,
) -> Net:
    """A residual network of four stages, each of twice the width and half the size.

    As in torchvision: shortcuts that change shape are a 1x1 convolution with BatchNorm,
    and a bottleneck has its stride in the 3x3 convolution.

    Taps: `stem` (after ReLU, before the stem's pooling) and `stage1` ... `stage4` after
    ReLU, `stage1_pre` ... before it, `unpooled` (`stage4`) and `pooled`, its mean over
    positions, which the head sees. The last BatchNorm before `stage{i}_pre` is
    `stage{i}_block{n}/norm2`, of a bottleneck `norm3`, n the stage's number of blocks.
    Convolutions start from He's normal distribution (fan-out).

    Args:
      blocks: how many residual blocks each of the four stages has.
      classes: number of logits.
      bottleneck: blocks of 1x1, 3x3, 1x1 with four times the width going out, instead
        of two 3x3 convolutions.
      stem: "imagenet" is a 7x7 convolution and a 3x3 max pooling, both of stride 2;
        "cifar" is a 3x3 convolution of stride 1.
      width: channels of the stem and of the first stage.
      groups: of the 3x3 convolution in a bottleneck (ResNeXt's cardinality).
      group_width: channels of a group in the first stage, of 64; more than 64 with one
        group is a wide residual network.
      dtype: what to compute in, e.g. `jnp.bfloat16`; parameters and batch statistics
        stay float32 and so do the logits. None follows the input.
      remat: keeps a block's input instead of all inside it for the gradient: less
        memory, one more forward pass. Interceptors must not keep values they see.

    Returns:
      The network, e.g. `imagenet_resnet(**IMAGENET_RESNETS["resnet50"], classes=1000)`.

    Raises:
      ValueError: if `blocks` are not four positive integers, the stem is unknown, or
        blocks that are no bottlenecks should have groups.

    Example:
      >>> from jaxkd import cost
      >>> cost.of(imagenet_resnet((2, 2, 2, 2), classes=1000), (224, 224, 3)).parameters
      11689512

    References:
      K. He, X. Zhang, S. Ren, J. Sun. Deep Residual Learning for Image Recognition.
      2016. https://arxiv.org/abs/1512.03385 table 1.

      S. Xie, R. Girshick, P. Dollár, Z. Tu, K. He. Aggregated Residual Transformations
      for Deep Neural Networks. 2017. https://arxiv.org/abs/1611.05431

      S. Zagoruyko, N. Komodakis. Wide Residual Networks. 2016.
      https://arxiv.org/abs/1605.07146
    """
    check_numbers(classes=classes, width=width, groups=groups, group_width=group_width)
    if not bottleneck and (groups, group_width) != (1, 64):
        raise ValueError("groups and group_width are of bottlenecks: bottleneck=True")
    _check.one_of("imagenet", "cifar")("stem", stem)
    blocks = check_length("blocks", blocks, 4)
    return from_linen(
        ImagenetResNet(
            blocks,
            bottleneck,
            stem,
            width,
            classes,
            dtype,
            remat,
            groups,
            group_width,
        )
    )
