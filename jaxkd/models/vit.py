"""Vision transformers, with the distillation token of Touvron et al. (2021)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxkd import _check
from jaxkd.models._layers import check_numbers, check_rate
from jaxkd.models.convolution import conv_general_dilated
from jaxkd.models.mlp import head_dtype
from jaxkd.models.net import Net, from_linen

_SMALL = {"patch": 16, "width": 384, "depth": 12, "heads": 6, "distilled": False}

# Networks as data, e.g. `vit(**VITS["vit_tiny"], classes=100)`: the first for 32x32
# images, the others for 224x224.
VITS: dict[str, dict[str, Any]] = {
    "vit_tiny": {"patch": 4, "width": 192, "depth": 12, "heads": 3},
    "deit_tiny": {"patch": 16, "width": 192, "depth": 12, "heads": 3},
    "deit_small": {"patch": 16, "width": 384, "depth": 12, "heads": 6},
    "vit_base": {
        "patch": 16,
        "width": 768,
        "depth": 12,
        "heads": 12,
        "distilled": False,
    },
    "vit_small_patch16_224": _SMALL,
    "vit_small_patch14_dinov2": {**_SMALL, "patch": 14, "layer_scale": True},
    "vit_small_patch14_reg4_dinov2": {
        **_SMALL,
        "patch": 14,
        "layer_scale": True,
        "registers": 4,
    },
}

SMALL = nn.initializers.truncated_normal(0.02)


class EncoderBlock(nn.Module):
    """Self-attention and a two-layer perceptron, each after LayerNorm and added on."""

    heads: int
    hidden: int
    dropout: float
    drop_path: float
    train: bool
    dtype: Any = None
    layer_scale: bool = False

    @nn.compact
    def __call__(self, x):
        """From tokens `[batch, tokens, width]` to tokens."""
        x = x + self._drop(self._scale(self._attend(self._norm("norm1")(x)), "scale1"))
        y = self._dense(self.hidden, "mlp1")(self._norm("norm2")(x))
        y = self._dropout(nn.gelu(y, approximate=False))
        y = self._dropout(self._dense(x.shape[-1], "mlp2")(y))
        return x + self._drop(self._scale(y, "scale2"))

    def _scale(self, x, name):
        """Times a factor for each feature, if blocks have those."""
        if not self.layer_scale:
            return x
        scale = self.param(name, nn.initializers.constant(1e-5), x.shape[-1:])
        return x * scale.astype(x.dtype).reshape(1, 1, -1)

    def _attend(self, x):
        *batch_tokens, width = x.shape
        qkv = self._dense(3 * width, "qkv")(x)
        split = qkv.reshape(*batch_tokens, 3, self.heads, width // self.heads)
        q, k, v = (split[:, :, i] for i in range(3))
        mixed = jax.nn.dot_product_attention(q, k, v).reshape(x.shape)
        return self._dropout(self._dense(width, "projection")(mixed))

    def _norm(self, name):
        return nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name=name)

    def _dense(self, features, name):
        return nn.Dense(features, dtype=self.dtype, kernel_init=SMALL, name=name)

    def _dropout(self, x):
        return nn.Dropout(self.dropout, deterministic=not self.train)(x)

    def _drop(self, x):
        """Leave the whole branch out, for some of the images."""
        drop = nn.Dropout(
            self.drop_path, broadcast_dims=(1, 2), deterministic=not self.train
        )
        return drop(x)


class ViT(nn.Module):
    """Patches as tokens, encoder blocks, one or two heads; see `vit`."""

    patch: int
    width: int
    depth: int
    heads: int
    classes: int
    distilled: bool = True
    expansion: int = 4
    dropout: float = 0.0
    drop_path: float = 0.0
    dtype: Any = None
    layer_scale: bool = False
    registers: int = 0

    @nn.compact
    def __call__(self, x, train: bool = False):
        """Logits and taps; dropout is drawn from the "dropout" key when it trains."""
        taps = {}
        x = taps["stem"] = self._embed(x)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        for i in range(1, self.depth + 1):
            x = taps[f"stage{i}"] = EncoderBlock(
                self.heads,
                self.expansion * self.width,
                self.dropout,
                # From 0 at the first block to the whole rate at the last.
                self.drop_path * (i - 1) / max(self.depth - 1, 1),
                train,
                self.dtype,
                self.layer_scale,
                name=f"stage{i}_block",
            )(x)
        x = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name="last_norm")(x)
        taps["pooled"] = x[:, 0]
        logits = self._head("head")(x[:, 0])
        if not self.distilled:
            return logits, taps
        other = self._head("distilled_head")(x[:, 1])
        taps |= {
            "distilled_pooled": x[:, 1],
            "class_logits": logits,
            "distilled_logits": other,
        }
        return logits if train else (logits + other) / 2, taps

    def _head(self, name):
        dtype = head_dtype(self.dtype)
        return nn.Dense(self.classes, dtype=dtype, kernel_init=SMALL, name=name)

    def _embed(self, x):
        """Return the token or two, the patches behind them, and positions added to all.

        Registers stand between, and then only patches have positions.
        """
        if x.ndim != 4 or x.shape[1] % self.patch or x.shape[2] % self.patch:
            raise ValueError(
                f"x must be images that patches of {self.patch}x{self.patch} divide, "
                f"got {x.shape}"
            )
        x = nn.Conv(
            self.width,
            (self.patch, self.patch),
            self.patch,
            padding="VALID",
            dtype=self.dtype,
            kernel_init=SMALL,
            conv_general_dilated=conv_general_dilated,
            name="stem_conv",
        )(x)
        x = x.reshape(x.shape[0], -1, self.width)
        names = ["class_token", "distilled_token"][: 1 + self.distilled]
        tokens = [self.param(name, SMALL, (1, 1, self.width)) for name in names]
        spread = (x.shape[0], 1, self.width)
        first = [jnp.broadcast_to(t.astype(x.dtype), spread) for t in tokens]
        if not self.registers:
            return self._placed(jnp.concatenate([*first, x], axis=1))
        shape = (1, self.registers, self.width)
        registers = self.param("register_tokens", SMALL, shape).astype(x.dtype)
        first += [jnp.broadcast_to(registers, (x.shape[0], *shape[1:]))]
        return jnp.concatenate([*first, self._placed(x)], axis=1)

    def _placed(self, x):
        places = self.param("positions", SMALL, (1, x.shape[1], self.width))
        return x + places.astype(x.dtype)


def vit(
    *,
    patch: int,
    width: int,
    depth: int,
    heads: int,
    classes: int,
    distilled: bool = True,
    expansion: int = 4,
    dropout: float = 0.0,
    drop_path: float = 0.0,
    layer_scale: bool = False,
    registers: int = 0,
    dtype: Any = None,
) -> Net:
    """A vision transformer, with a class token and, if asked for, a distillation token.

    The image is cut into patches, each embedded as a token with a learned position; the
    class token (and after it the distillation token) stands before them. The parameters
    fit the image size that `init` saw.

    With a distillation token the network has two heads, and its `logits` are DeiT's:
    while it trains those of the class head, which learn from the labels; otherwise the
    mean of both heads. The distillation head, which learns from the teacher, is the tap
    `distilled_logits` in both modes, the class head `class_logits`.

    Taps: `stem`, the embedded tokens; `stage1` ... `stage{depth}`, the tokens that
    leave each block, `[batch, tokens, width]`; `pooled`, the class token after the last
    LayerNorm, which the head sees; if distilled `distilled_pooled`, the distillation
    token likewise. There is no `stage{i}_pre`: nothing is activated at a block's end.
    Kernels, tokens and positions start from a normal distribution of deviation 0.02,
    cut at two deviations.

    Args:
      patch: height and width of a patch in pixels.
      width: features of a token.
      depth: number of blocks.
      heads: number of attention heads; divides `width`.
      classes: number of logits.
      distilled: whether there are a distillation token and its head.
      expansion: how much wider the perceptron in a block is inside.
      dropout: rate after the embedding, in the perceptron and after each branch, in
        [0, 1).
      drop_path: rate of leaving a branch out for an image (stochastic depth), rising
        from 0 in the first block to this in the last, in [0, 1).
      layer_scale: whether each branch is multiplied by a learned factor for each
        feature, as in DINOv2.
      registers: how many more tokens stand between the class token and the patches,
        which nobody reads; only patches have positions then.
      dtype: what to compute in, e.g. `jnp.bfloat16`; parameters stay float32 and so do
        the logits. None follows the input.

    Returns:
      The network, e.g. `vit(**VITS["vit_tiny"], classes=100)`.

    Raises:
      ValueError: if `heads` do not divide `width`, or a number is out of its range;
        when traced, if patches do not divide the images.

    Example:
      >>> from jaxkd import cost
      >>> cost.of(vit(**VITS["deit_tiny"], classes=1000), (224, 224, 3)).parameters
      5910800

    References:
      A. Dosovitskiy et al. An Image is Worth 16x16 Words: Transformers for Image
      Recognition at Scale. 2021. https://arxiv.org/abs/2010.11929

      H. Touvron, M. Cord, M. Douze, F. Massa, A. Sablayrolles, H. Jégou. Training
      data-efficient image transformers & distillation through attention. 2021.
      https://arxiv.org/abs/2012.12877
    """
    check_numbers(
        patch=patch,
        width=width,
        depth=depth,
        heads=heads,
        classes=classes,
        expansion=expansion,
    )
    if width % heads:
        raise ValueError(f"heads must divide width {width}, got {heads}")
    check_rate("dropout", dropout)
    check_rate("drop_path", drop_path)
    _check.whole(0)("registers", registers)
    return from_linen(
        ViT(
            patch,
            width,
            depth,
            heads,
            classes,
            distilled,
            expansion,
            dropout,
            drop_path,
            dtype,
            layer_scale,
            registers,
        )
    )
