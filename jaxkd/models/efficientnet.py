"""EfficientNet (Tan & Le, 2019), and EfficientNet-Lite for fixed-point hardware."""

import math
from typing import Any

import flax.linen as nn

from jaxkd import _check
from jaxkd.models._layers import (
    check_numbers,
    conv,
    global_mean,
    head,
    norm as batch_norm,
)
from jaxkd.models._mbconv import ACTIVATIONS, MBConv, Style, divisible
from jaxkd.models.net import Net, from_linen

# Table 1 of the paper: expansion, window, stride, channels and blocks of each stage.
STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)

# Networks as data: torchvision's and timm's, and those that TensorFlow trained.
_TENSORFLOW = {"lite": True, "same": True, "epsilon": 1e-3}
EFFICIENTNETS: dict[str, dict[str, Any]] = {
    "efficientnet_b0": {},
    "efficientnet_lite0": {"lite": True},
    "tf_efficientnet_lite0": _TENSORFLOW,
    "tf_efficientnet_lite1": {"depth": 1.1, **_TENSORFLOW},
    "tf_efficientnet_lite2": {"width": 1.1, "depth": 1.2, **_TENSORFLOW},
    "tf_efficientnet_lite3": {"width": 1.2, "depth": 1.4, **_TENSORFLOW},
    "tf_efficientnet_lite4": {"width": 1.4, "depth": 1.8, **_TENSORFLOW},
}


class EfficientNet(nn.Module):
    """A strided stem, seven stages, last convolution, head; see `efficientnet`."""

    width: float
    depth: float
    lite: bool
    classes: int
    style: Style

    @nn.compact
    def __call__(self, x, train: bool = False):
        """Logits and taps."""
        taps = {}
        scaled = lambda channels: divisible(channels * self.width)
        fixed = (lambda channels: channels) if self.lite else scaled
        name = "relu6" if self.lite else "swish"
        activate, same = ACTIVATIONS[name], self.style.same
        epsilon, dtype = self.style.epsilon, self.style.dtype
        norm = lambda name: batch_norm(train, name=name, epsilon=epsilon, dtype=dtype)
        before = fixed(32)
        x = conv(before, 3, 2, same=same, name="stem_conv", dtype=dtype)(x)
        x = taps["stem"] = activate(norm("stem_norm")(x))
        for i, (expansion, window, strides, channels, _) in enumerate(STAGES, start=1):
            width = scaled(channels)
            for j in range(1, self._blocks(i) + 1):
                x = MBConv(
                    width,
                    None if expansion == 1 else expansion * before,
                    window,
                    strides if j == 1 else 1,
                    0 if self.lite else max(1, before // 4),
                    name,
                    self.style,
                    train,
                    joins=width == before and (strides == 1 or j > 1),
                    name=f"stage{i}_block{j}",
                )(x)
                before = width
            taps[f"stage{i}"] = taps[f"stage{i}_pre"] = x
        x = conv(fixed(1280), 1, name="last_conv", dtype=dtype)(x)
        x = taps["unpooled"] = activate(norm("last_norm")(x))
        x = taps["pooled"] = global_mean(x)
        return head(self.classes, dtype)(x), taps

    def _blocks(self, stage):
        blocks = STAGES[stage - 1][-1]
        if self.lite and stage in (1, len(STAGES)):
            return blocks
        return math.ceil(blocks * self.depth)


def efficientnet(
    *,
    classes: int,
    width: float = 1.0,
    depth: float = 1.0,
    lite: bool = False,
    same: bool = False,
    epsilon: float = 1e-5,
    dtype: Any = None,
) -> Net:
    """EfficientNet, by default B0 for 224x224 images; it halves their size five times.

    The lite networks have no squeeze and excitation and ReLU6 instead of swish; stem,
    last convolution and the depth of the first and last stage do not scale.

    Taps: `stem` after its activation; `stage1` ... `stage7`, what leaves the linear
    bottleneck at the end of a stage; no activation follows those, so that
    `stage{i}_pre` is `stage{i}`, and the last BatchNorm before it is
    `stage{i}_block{n}/norm3`, n the stage's number of blocks. A 1x1 convolution
    (`last_conv`, `last_norm`) and its activation give `unpooled`, whose mean over
    positions is `pooled`, which the head sees. Convolutions start from He's normal
    distribution (fan-out).

    Args:
      classes: number of logits.
      width: the multiple of all widths, rounded to multiples of 8.
      depth: the multiple of the stages' numbers of blocks, rounded up.
      lite: whether it is an EfficientNet-Lite.
      same: whether padding is TensorFlow's, as the weights published for it expect.
      epsilon: added to the variance in BatchNorm; TensorFlow's weights expect 1e-3.
      dtype: what to compute in, e.g. `jnp.bfloat16`; parameters and batch statistics
        stay float32 and so do the logits. None follows the input.

    Returns:
      The network, e.g. `efficientnet(**EFFICIENTNETS["efficientnet_lite0"],
      classes=10)`.

    Raises:
      ValueError: if a number is not positive.

    Example:
      >>> from jaxkd import cost
      >>> cost.of(efficientnet(classes=1000), (224, 224, 3)).parameters
      5288548

    References:
      M. Tan, Q. V. Le. EfficientNet: Rethinking Model Scaling for Convolutional Neural
      Networks. 2019. https://arxiv.org/abs/1905.11946

      R. Liu. Higher accuracy on vision models with EfficientNet-Lite. 2020.
      https://blog.tensorflow.org/2020/03/higher-accuracy-on-vision-models-with-efficientnet-lite.html
    """
    check_numbers(classes=classes)
    _check.positive("width", width)
    _check.positive("depth", depth)
    _check.positive("epsilon", epsilon)
    style = Style(epsilon, same, "swish", "sigmoid", dtype)
    return from_linen(EfficientNet(width, depth, lite, classes, style))
