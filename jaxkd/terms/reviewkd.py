"""Distillation via knowledge review (Chen et al., 2021)."""

import itertools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxkd import _check, losses
from jaxkd.distill import Term, fitting
from jaxkd.models.convolution import conv_general_dilated
from jaxkd.terms import _pairs
from jaxkd.types import Batch, Outputs, Params, State

Map = Float[Array, "batch height width channels"]
WIDEST = 512  # the authors' limit of the fused maps' channels


class Fusion(nn.Module):
    """Attention-based fusion: mixes a student's map with the review of deeper ones.

    Attributes:
      width: channels of the mixed map, which the next fusion gets.
      shape: of the teacher's map, which the output has.
    """

    width: int
    shape: tuple[int, ...]

    @nn.compact
    def __call__(self, x: Map, deeper: Map | None) -> tuple[Map, Map]:
        """Return what is compared with the teacher's map, and the mixed map."""
        x = _normed(_conv(self.width, 1, "reduce")(x), "reduce_norm")
        if deeper is not None:
            deeper = nearest(deeper, x.shape[1:-1])
            both = jnp.concatenate([x, deeper], axis=-1)
            # One attention map each, not a softmax: both may pass, or neither.
            gate = nn.sigmoid(_conv(2, 1, "attention", use_bias=True)(both))
            x = x * gate[..., :1] + deeper * gate[..., 1:]
        x = nearest(x, self.shape[1:-1])
        out = _conv(self.shape[-1], 3, "expand")(x)
        return _normed(out, "expand_norm"), x


class Review(nn.Module):
    """The fusions of all levels, from the deepest to the shallowest.

    Attributes:
      shapes: of the teacher's maps, shallow to deep.
      width: channels of the mixed maps.
    """

    shapes: tuple[tuple[int, ...], ...]
    width: int

    @nn.compact
    def __call__(self, maps: Sequence[Map]) -> list[Map]:
        """Return what is compared with the teacher's maps, shallow to deep."""
        fused, deeper = [], None
        for i in reversed(range(len(maps))):
            level = Fusion(self.width, self.shapes[i], name=f"level{i + 1}")
            out, deeper = level(maps[i], deeper)
            fused.append(out)
        return fused[::-1]


def nearest(x: Map, space: tuple[int, ...]) -> Map:
    """Resize by taking for each position the nearest one before it.

    Example:
      >>> nearest(jnp.arange(2.0).reshape(1, 2, 1, 1), (4, 1)).ravel().tolist()
      [0.0, 0.0, 1.0, 1.0]
    """
    for axis, wanted in enumerate(space, start=1):
        size = x.shape[axis]
        if wanted % size == 0:  # a repetition's gradient is a sum, a gather's a scatter
            x = jnp.repeat(x, wanted // size, axis)
        else:
            x = jnp.take(x, np.arange(wanted) * size // wanted, axis)
    return x


def reviewkd(
    pairs: _pairs.Pairs,
    *,
    width: int | None = None,
    levels: tuple[int, ...] = (4, 2, 1),
) -> Term:
    """Return the student's stages, fused from deep to shallow, against the teacher's.

    With f_i the fusion of the student's stage i with the mixture of all deeper ones,
    and hcl the mean squared difference at several resolutions, `losses.hcl`::

        loss = sum over stages of hcl(f_i(s_i, s_i+1, ...), t_i)

    A fusion reduces the stage to `width` channels (1x1 convolution, BatchNorm), takes
    the mixture from below enlarged to the same size, weighs the two at each position
    by a sigmoid of both (1x1 convolution), passes this mixture on, and brings it to the
    teacher's channels (3x3 convolution, BatchNorm). The authors' weight on CIFAR-100 is
    0.6 (resnet56 to resnet20) to 8, 5 for resnet32x4 to resnet8x4, beside a
    cross-entropy of weight 1, after 20 epochs of linear warm-up.

    Args:
      pairs: taps from shallow to deep. The authors have every stage before its ReLU,
        and the embedding, which counts as a map of one position:
        `["stage1_pre", "stage2_pre", "stage3_pre", "pooled"]`.
      width: channels of the mixture; None takes the deepest student tap's, at most 512.
      levels: of `losses.hcl`.

    Returns:
      The term. Its parameters are the fusions', its state their batch statistics.

    Raises:
      ValueError: if `width` is not a positive integer; at `init`, if a tap is neither a
        map nor an embedding, or a student's tap is larger than the one before it.

    Example:
      >>> import optax
      >>> from jaxkd import terms
      >>> warm_up = optax.linear_schedule(0.0, 0.6, 20 * 781)  # 781 steps an epoch
      >>> stages = ["stage1_pre", "stage2_pre", "stage3_pre", "pooled"]
      >>> spec = {"reviewkd": (warm_up, terms.reviewkd(stages))}

    References:
      Chen, Liu, Zhao, Jia. `Distilling Knowledge via Knowledge Review
      <https://arxiv.org/abs/2104.09044>`_, CVPR 2021.
    """
    taps = _pairs.of(pairs)
    if width is not None:
        _check.whole(1)("width", width)

    def maps(s: Outputs, t: Outputs) -> tuple[Review, list[Map], list[Map]]:
        here = [_map(s.tap(tap), tap) for tap in taps]
        there = [_map(t.tap(tap), tap) for tap in taps.values()]
        _check_order(here, list(taps))
        mixed = width or min(WIDEST, here[-1].shape[-1])
        return Review(tuple(m.shape for m in there), mixed), here, there

    def init(key: Array, s: Outputs, t: Outputs, batch: Batch) -> tuple[Params, State]:
        review, here, _ = maps(s, t)
        variables = dict(review.init(key, here))
        return variables.pop("params"), variables

    def apply(
        params: Params, state: State, s: Outputs, t: Outputs, batch: Batch
    ) -> tuple[Array, State]:
        review, here, there = maps(s, t)
        fused, changed = review.apply(
            {"params": params, **state}, here, mutable=list(state)
        )
        per_level = [
            losses.hcl(f, m, levels=levels) for f, m in zip(fused, there, strict=True)
        ]
        return sum(per_level[1:], per_level[0]), {**state, **changed}

    return fitting(Term(init, apply))


def _map(features: Array, tap: str) -> Map:
    """Return a map as it is, an embedding as a map of one position."""
    if features.ndim == 2:
        return features[:, None, None]
    if features.ndim != 4:
        raise ValueError(
            f"{tap} must be a map [batch, height, width, channels] or an embedding "
            f"[batch, channels], got {features.shape}"
        )
    return features


def _check_order(maps: Sequence[Map], taps: Sequence[str]) -> None:
    spaces = {tap: m.shape[1:-1] for tap, m in zip(taps, maps, strict=True)}
    for before, after in itertools.pairwise(taps):
        grows = np.greater(spaces[after], spaces[before])
        if grows.any():
            raise ValueError(
                "pairs must go from shallow to deep, but the student's maps grow from "
                f"{before!r} {spaces[before]} to {after!r} {spaces[after]}"
            )


def _conv(features: int, window: int, name: str, use_bias: bool = False) -> Any:
    return nn.Conv(
        features,
        (window, window),
        use_bias=use_bias,
        conv_general_dilated=conv_general_dilated,
        name=name,
    )


def _normed(x: Map, name: str) -> Map:
    """By the batch's statistics: a term has no other mode than training."""
    return nn.BatchNorm(use_running_average=False, momentum=0.9, name=name)(x)
