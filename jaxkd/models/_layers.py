"""Layers that every network of the zoo is made of, in PyTorch's conventions.

Padding is the same on both sides (linen's "SAME" with stride 2 pads only the far side),
BatchNorm keeps 0.9 of its running statistics and adds 1e-5 to the variance (networks
whose weights were trained with other numbers say so), and kernels
start from He's normal distribution by fan-out.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxkd import _check
from jaxkd.models.convolution import conv_general_dilated
from jaxkd.models.mlp import head_dtype

HE_NORMAL = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
# Uniform in +-1/sqrt(inputs), what PyTorch's Linear starts from.
TORCH_LINEAR = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def conv(
    features: int,
    window: int,
    strides: int = 1,
    *,
    name: str,
    groups: int = 1,
    use_bias: bool = False,
    same: bool = False,
    dtype: Any = None,
) -> nn.Conv:
    """Return a square convolution, padded so that stride 1 keeps the size.

    `same` pads as TensorFlow does: with stride 2 an odd pixel is at the far side.
    """
    reach = (window - 1) // 2
    return nn.Conv(
        features,
        (window, window),
        strides,
        padding="SAME" if same else ((reach, reach), (reach, reach)),
        feature_group_count=groups,
        use_bias=use_bias,
        dtype=dtype,
        kernel_init=HE_NORMAL,
        conv_general_dilated=conv_general_dilated,
        name=name,
    )


def norm(
    train: bool, *, name: str, epsilon: float = 1e-5, dtype: Any = None
) -> nn.BatchNorm:
    """BatchNorm over all but the channels; its statistics are always float32.

    The running variance is the batch's own (biased), where PyTorch's divides by one
    example less.
    """
    return nn.BatchNorm(
        use_running_average=not train,
        momentum=0.9,
        epsilon=epsilon,
        dtype=dtype,
        name=name,
    )


def head(classes: int, dtype: Any, name: str = "head") -> nn.Dense:
    """Return the linear classifier, computed in at least float32."""
    return nn.Dense(
        classes, dtype=head_dtype(dtype), kernel_init=TORCH_LINEAR, name=name
    )


def global_mean(
    x: Float[Array, "batch height width channels"],
) -> Float[Array, "batch channels"]:
    """Return the mean over all positions."""
    return jnp.mean(x, (1, 2))


def shuffle(
    x: Float[Array, "batch height width channels"], groups: int
) -> Float[Array, "batch height width channels"]:
    """Deals the channels of each group out to all groups.

    Example:
      >>> shuffle(jnp.arange(6.0).reshape(1, 1, 1, 6), 2).ravel().tolist()
      [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]
    """
    *places, channels = x.shape
    dealt = x.reshape(*places, groups, channels // groups).swapaxes(-1, -2)
    return dealt.reshape(x.shape)


def check_numbers(**numbers: Any) -> None:
    """Every number, or every number of a sequence, is a positive integer."""
    for name, value in numbers.items():
        for v in value if isinstance(value, tuple | list) else (value,):
            _check.whole(1)(name, v)


def check_length(name: str, values: Any, length: int) -> tuple[int, ...]:
    """Return the values as a tuple of so many positive integers."""
    values = tuple(values)
    if len(values) != length:
        raise ValueError(f"{name} must be {length} numbers, got {values}")
    check_numbers(**{name: values})
    return values


def check_rate(name: str, rate: float) -> None:
    """A probability of dropping, in [0, 1)."""
    _check.closed_unit(name, rate)
    if rate == 1:
        raise ValueError(f"{name} must be < 1, got {rate}: nothing would be left")
