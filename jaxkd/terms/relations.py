"""Relational losses as terms: how the examples of a batch lie to one another.

Only relations are compared, matrices of examples by examples, so the two networks may
have features of any shape, and no adapter is needed.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
from jaxtyping import Array

from jaxkd import _check, distill, losses
from jaxkd.distill import Term
from jaxkd.losses import _feature_math as fm
from jaxkd.terms import _pairs
from jaxkd.types import Batch, Outputs, Params, State


def sp(pairs: _pairs.Pairs) -> Term:
    """Squared difference of the similarities between examples, summed: `losses.sp`.

    The usual weight is 3000, beside a cross-entropy of weight 1.

    Args:
      pairs: taps of any shape; the paper has the last stage, before its pooling.

    Returns:
      The term; it has no variables.

    Example:
      >>> from jaxkd import terms
      >>> spec = {"sp": (3000.0, terms.sp("stage3"))}

    References:
      Tung, Mori. `Similarity-Preserving Knowledge Distillation
      <https://arxiv.org/abs/1907.09682>`_, 2019.
    """
    return _pairs.total(pairs, lambda s, t: distill.on_taps(losses.sp, s, t))


def rkd(
    pairs: _pairs.Pairs = "pooled",
    *,
    distance: float = 25.0,
    angle: float = 50.0,
    chunk: int = 1,
) -> Term:
    """Distances and angles between the examples: `losses.rkd_distance`, `rkd_angle`.

    With the two losses of a pair::

        loss = sum over pairs of distance * rkd_distance + angle * rkd_angle

    The factors 25 and 50 are the paper's for classification; the usual weight of the
    term is then 1, beside a cross-entropy of weight 1.

    Args:
      pairs: taps; maps are flattened.
      distance: factor of the distances, >= 0; at 0 they are not computed.
      angle: factor of the angles, >= 0; at 0 they are not computed.
      chunk: parts in which the angles are computed, see `losses.rkd_angle`: they take
        B**3 numbers for a batch of B.

    Returns:
      The term; it has no variables.

    Raises:
      ValueError: if a factor is negative, or both are 0.

    Example:
      >>> from jaxkd import terms
      >>> spec = {"rkd": (1.0, terms.rkd())}
      >>> only_angles = {"rkd": (1.0, terms.rkd(distance=0.0))}

    References:
      Park, Kim, Lu, Cho. `Relational Knowledge Distillation
      <https://arxiv.org/abs/1904.05068>`_, 2019. Equations 5 to 10.
    """
    _check.not_negative("distance", distance)
    _check.not_negative("angle", angle)
    if distance == angle == 0:
        raise ValueError("distance and angle are both 0: there is nothing to compare")

    def loss(s: Array, t: Array) -> Array:
        parts = []
        if distance:
            parts.append(distance * losses.rkd_distance(s, t))
        if angle:
            parts.append(angle * losses.rkd_angle(s, t, chunk=chunk))
        return sum(parts[1:], parts[0])

    return _pairs.total(pairs, lambda s, t: distill.on_taps(_flat(loss), s, t))


def pkt(pairs: _pairs.Pairs = "pooled") -> Term:
    """Divergence of the neighbour probabilities within a batch, summed: `losses.pkt`.

    The usual weight is 3e4, beside a cross-entropy of weight 1.

    Args:
      pairs: taps; maps are flattened.

    Returns:
      The term; it has no variables.

    Example:
      >>> from jaxkd import terms
      >>> spec = {"pkt": (3e4, terms.pkt())}

    References:
      Passalis, Tefas. `Learning Deep Representations with Probabilistic Knowledge
      Transfer <https://arxiv.org/abs/1803.10837>`_, 2018.
    """
    return _pairs.total(pairs, lambda s, t: distill.on_taps(_flat(losses.pkt), s, t))


def cc(
    pairs: _pairs.Pairs = "pooled",
    *,
    gamma: float = 0.4,
    order: int = 2,
    dims: int | None = None,
) -> Term:
    """Squared difference of Gaussian kernels between examples, summed: `losses.cc`.

    RepDistiller's weight of 0.02 belongs to another loss of the same name (products of
    neighbouring examples' differences of 128-dimensional embeddings). This one has no
    customary weight.

    Args:
      pairs: taps; maps are flattened.
      gamma: > 0, the inverse width of the Gaussian.
      order: >= 1, of its Taylor expansion.
      dims: length of an embedding that a Dense layer makes of the student's features,
        and another of the teacher's, before the kernels; both are trained by this very
        loss, which can fall by making both embeddings say less. None takes the features
        as they are: kernels of embeddings of different lengths can be compared.

    Returns:
      The term. Its parameters are the two layers "student" and "teacher" of each pair,
      if `dims` is given.

    Raises:
      ValueError: if `dims` is not a positive integer.

    Example:
      >>> from jaxkd import terms
      >>> spec = {"cc": (1.0, terms.cc(dims=128))}

    References:
      Peng, Jin, Liu, Li, Wu, Liu, Zhou, Zhang. `Correlation Congruence for Knowledge
      Distillation <https://arxiv.org/abs/1904.01802>`_, 2019.
    """
    loss = _flat(lambda s, t: losses.cc(s, t, gamma=gamma, order=order))
    if dims is None:
        return _pairs.total(pairs, lambda s, t: distill.on_taps(loss, s, t))
    _check.whole(1)("dims", dims)
    layer = nn.Dense(dims)
    return _pairs.total(pairs, lambda s, t: _embedded(loss, layer, s, t))


def _embedded(
    loss: Callable[[Array, Array], Array], layer: Any, student: str, teacher: str
) -> Term:
    """Return a loss of linear embeddings of both networks' features, both trained."""

    def features(s: Outputs, t: Outputs) -> dict[str, Array]:
        found = {"student": s.tap(student), "teacher": t.tap(teacher)}
        return {name: fm.flat(feature) for name, feature in found.items()}

    def init(key: Array, s: Outputs, t: Outputs, batch: Batch) -> tuple[Params, State]:
        keys = dict(zip(("student", "teacher"), jax.random.split(key), strict=True))
        return {
            name: layer.init(keys[name], feature)["params"]
            for name, feature in features(s, t).items()
        }, {}

    def apply(
        params: Params, state: State, s: Outputs, t: Outputs, batch: Batch
    ) -> tuple[Array, State]:
        made = {
            name: layer.apply({"params": params[name]}, feature)
            for name, feature in features(s, t).items()
        }
        return loss(made["student"], made["teacher"]), state

    return distill.fitting(Term(init, apply))


def _flat(loss: Callable[..., Array]) -> Callable[[Array, Array], Array]:
    """Return the loss of features of any shape, as one vector an example."""
    return lambda s, t: loss(fm.flat(s), fm.flat(t))
