"""Modules that carry a student's features to the shape of a teacher's."""

from typing import Any

import flax.linen as nn
import jax
from jaxtyping import Array

from jaxkd.losses import _feature_math as fm
from jaxkd.models.convolution import conv_general_dilated


def resize(features: Array, space: tuple[int, ...]) -> Array:
    """Map `[batch, *space, channels]` at another size.

    An axis that shrinks is averaged (adaptive average pooling), one that grows is
    interpolated linearly; half precision becomes float32.

    Raises:
      ValueError: for token sequences `[batch, tokens, dim]`, if the length changes.
    """
    fm.same_length(features.shape, (len(features), *space, features.shape[-1]))
    smaller = tuple(map(min, zip(features.shape[1:-1], space, strict=True)))
    features = fm.pool(features, smaller)
    if smaller == space:
        return features
    shape = (len(features), *space, features.shape[-1])
    return jax.image.resize(fm.widen(features), shape, "linear")


class Adapter(nn.Module):
    """A linear map of the channels, and a resizing of the map.

    For embeddings `[batch, d]` a Dense layer, for maps a convolution. Features are
    made smaller before the convolution and larger after it, where it is cheaper.

    Attributes:
      shape: of the features to arrive at, its batch axis included (and ignored).
      kernel: the convolution's size along each axis.
      norm: whether a BatchNorm follows, whose statistics are always the batch's: an
        adapter has no other mode than training.
      relu: whether a ReLU ends it, before a map is enlarged.
      use_bias: whether channels have an offset; with `norm`, it is the BatchNorm's.
    """

    shape: tuple[int, ...]
    kernel: int = 1
    norm: bool = False
    relu: bool = False
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Features of `shape`, for any batch size."""
        *space, channels = self.shape[1:]
        if x.ndim != len(self.shape):
            raise ValueError(
                "features must have the same number of axes to be adapted, got "
                f"{x.shape} (student) and {self.shape} (teacher)"
            )
        fm.same_length(x.shape, self.shape)
        bias = self.use_bias and not self.norm
        if not space:
            x = nn.Dense(channels, use_bias=bias, name="dense")(x)
        else:
            x = resize(x, tuple(map(min, zip(x.shape[1:-1], space, strict=True))))
            layer: dict[str, Any] = {"use_bias": bias, "name": "conv"}
            if len(space) == 2:
                layer["conv_general_dilated"] = conv_general_dilated
            x = nn.Conv(channels, (self.kernel,) * len(space), **layer)(x)
        if self.norm:
            x = nn.BatchNorm(use_running_average=False, momentum=0.9, name="norm")(x)
        x = nn.relu(x) if self.relu else x
        return resize(x, tuple(space)) if space else x


class Match(nn.Module):
    """What it takes to compare features, and no more: nothing where they fit already.

    Where the channels differ it is an `Adapter`, where only the map's size does, a
    resizing without parameters.

    Attributes:
      shape: of the features to arrive at, its batch axis included (and ignored).
      space: whether the map's size has to be the same too.
    """

    shape: tuple[int, ...]
    space: bool = True

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Features of `shape`, or with its channels on a map of their own size."""
        if x.ndim != len(self.shape) or x.shape[-1] != self.shape[-1]:
            space = self.shape[1:-1] if self.space else x.shape[1:-1]
            return Adapter((len(x), *space, self.shape[-1]), name="adapter")(x)
        return resize(x, self.shape[1:-1]) if self.space else x
