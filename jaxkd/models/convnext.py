"""ConvNeXt, and the second version with global response normalisation."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxkd.models._layers import check_length, check_numbers, conv, global_mean, head
from jaxkd.models.convolution import conv_general_dilated
from jaxkd.models.net import Net, from_linen

# Networks as data, e.g. `convnext(**CONVNEXTS["convnext_tiny"], classes=1000)`.
CONVNEXTS: dict[str, dict[str, Any]] = {
    "convnext_tiny": {"blocks": (3, 3, 9, 3), "widths": (96, 192, 384, 768)},
    "convnextv2_atto": {
        "blocks": (2, 2, 6, 2),
        "widths": (40, 80, 160, 320),
        "response_norm": True,
    },
}
SMALL = nn.initializers.truncated_normal(0.02)


class ResponseNorm(nn.Module):
    """Scale each channel by its norm over positions, relative to the others' mean."""

    @nn.compact
    def __call__(self, x):
        """`x + scale * x * norm / mean of norms + bias`."""
        shape = x.shape[-1:]
        scale = self.param("scale", nn.initializers.zeros, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        size = jnp.sqrt(jnp.sum(jnp.square(x), (1, 2), keepdims=True))
        relative = size / (jnp.mean(size, -1, keepdims=True) + 1e-6)
        scale, bias = (v.astype(x.dtype).reshape(1, 1, 1, -1) for v in (scale, bias))
        return x + scale * (x * relative) + bias


class ConvNextBlock(nn.Module):
    """Depthwise 7x7, LayerNorm and two dense layers at each position, added on."""

    response_norm: bool
    dtype: Any = None

    @nn.compact
    def __call__(self, x):
        """Of the input's shape."""
        width = x.shape[-1]
        dense = lambda features, name: nn.Dense(
            features, dtype=self.dtype, kernel_init=SMALL, name=name
        )
        y = conv(width, 7, groups=width, use_bias=True, name="conv", dtype=self.dtype)(
            x
        )
        y = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name="norm")(y)
        y = nn.gelu(dense(4 * width, "mlp1")(y), approximate=False)
        if self.response_norm:
            y = ResponseNorm(name="response_norm")(y)
        y = dense(width, "mlp2")(y)
        if not self.response_norm:
            scale = self.param("layer_scale", nn.initializers.constant(1e-6), (width,))
            y = y * scale.astype(y.dtype).reshape(1, 1, 1, -1)
        return x + y


class ConvNext(nn.Module):
    """Patches as a stem, four stages with a step down between, head; see `convnext`."""

    blocks: Sequence[int]
    widths: Sequence[int]
    response_norm: bool
    classes: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x, train: bool = False):
        """Logits and taps."""
        taps = {}
        norm = lambda name: nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name=name)
        x = taps["stem"] = norm("stem_norm")(self._down(x, 4, 0, "stem_conv"))
        for i, blocks in enumerate(self.blocks, start=1):
            if i > 1:
                x = self._down(norm(f"stage{i}_norm")(x), 2, i - 1, f"stage{i}_conv")
            for j in range(1, blocks + 1):
                name = f"stage{i}_block{j}"
                x = ConvNextBlock(self.response_norm, self.dtype, name=name)(x)
            taps[f"stage{i}"] = x
        taps["unpooled"] = x
        x = taps["pooled"] = norm("last_norm")(global_mean(x))
        return head(self.classes, self.dtype)(x), taps

    def _down(self, x, size, stage, name):
        """A convolution of patches that do not overlap; what is left over is cut."""
        return nn.Conv(
            self.widths[stage],
            (size, size),
            size,
            padding="VALID",
            dtype=self.dtype,
            kernel_init=SMALL,
            conv_general_dilated=conv_general_dilated,
            name=name,
        )(x)


def convnext(
    blocks: Sequence[int],
    widths: Sequence[int],
    *,
    classes: int,
    response_norm: bool = False,
    dtype: Any = None,
) -> Net:
    """ConvNeXt for 224x224 images; it halves their size five times.

    Taps: `stem` after its LayerNorm; `stage1` ... `stage4`, the sums that leave a
    stage; `unpooled` (`stage4`) and `pooled`, the LayerNorm of its mean over positions,
    which the head sees. There is no `stage{i}_pre`: nothing is activated at a block's
    end. Dense kernels start from a normal distribution of deviation 0.02.

    Args:
      blocks: how many each of the four stages has.
      widths: channels of the four stages.
      classes: number of logits.
      response_norm: whether it is the second version, with global response
        normalisation in the place of a scale behind each block.
      dtype: what to compute in, e.g. `jnp.bfloat16`; parameters stay float32 and so do
        the logits. None follows the input.

    Returns:
      The network, e.g. `convnext(**CONVNEXTS["convnext_tiny"], classes=1000)`.

    Raises:
      ValueError: if `blocks` or `widths` are not four positive integers.

    Example:
      >>> from jaxkd import cost
      >>> net = convnext(**CONVNEXTS["convnextv2_atto"], classes=1000)
      >>> cost.of(net, (224, 224, 3)).parameters
      3708400

    References:
      Z. Liu et al. A ConvNet for the 2020s. 2022. https://arxiv.org/abs/2201.03545

      S. Woo et al. ConvNeXt V2: Co-designing and Scaling ConvNets with Masked
      Autoencoders. 2023. https://arxiv.org/abs/2301.00808
    """
    check_numbers(classes=classes)
    blocks = check_length("blocks", blocks, 4)
    widths = check_length("widths", widths, 4)
    return from_linen(ConvNext(blocks, widths, response_norm, classes, dtype))
