"""Feature losses as terms: an example's features in one network against the other's.

They need nothing of their own but, where the two networks differ in width or size and
the loss cannot, an adapter on the student's side.
"""

import functools
from collections.abc import Callable
from typing import Any

from jaxtyping import Array

from jaxkd import distill, losses
from jaxkd.distill import Term
from jaxkd.terms import _pairs
from jaxkd.terms.adapters import Adapter, Match

MakeAdapter = Callable[[tuple[int, ...]], Any]  # teacher's shape -> linen module


REGRESSOR = functools.partial(Adapter, norm=True, relu=True)


def hint(pairs: _pairs.Pairs, *, adapter: MakeAdapter | None = REGRESSOR) -> Term:
    """Mean squared difference of feature maps, after a regressor: `losses.hint`.

    With r the regressor, s and t the features of a pair::

        loss = sum over pairs of mean_u (r(s)_u - t_u)**2

    The usual weight is 100, beside a cross-entropy of weight 1: RepDistiller's, whose
    regressor is, as here, a convolution, BatchNorm and ReLU, for taps *after* the
    teacher's ReLU. It fits unequal maps by the convolution (stride 2, or transposed, or
    a kernel as large as the difference), where here they are resized. The paper trains
    the student up to its tap on this term alone first; the usual protocol trains all
    together.

    Args:
      pairs: taps; the paper has the middle layer of each network.
      adapter: from the teacher's shape to the regressor. The default is a 1x1
        convolution with BatchNorm and ReLU, and a resizing if the maps differ. For taps
        that may be negative (before an activation, embeddings, tokens) take
        `adapters.Adapter`, which is linear; for the paper's larger regressor
        `functools.partial(Adapter, kernel=3)`. None compares the features as they are.

    Returns:
      The term. Its parameters are the regressors'; a BatchNorm in one is its state.

    Raises:
      ValueError: at `init`, if the features cannot be compared.

    Example:
      >>> from jaxkd import terms
      >>> spec = {"hint": (100.0, terms.hint({"stage2": "stage3"}))}

    References:
      Romero, Ballas, Ebrahimi Kahou, Chassang, Gatta, Bengio. `FitNets: Hints for Thin
      Deep Nets <https://arxiv.org/abs/1412.6550>`_, 2015. Equation 3.
    """
    return _compare(losses.hint, pairs, adapter)


def at(pairs: _pairs.Pairs, *, p: int = 2, variant: str = "code") -> Term:
    """Distance of normalised spatial attention maps, summed: `losses.at`.

    An attention map is the mean over channels, so widths may differ; where sizes
    differ, the larger map is averaged down. The usual weight is 1000 (variant "code"),
    beside a cross-entropy of weight 1.

    Args:
      pairs: taps that are maps, usually every stage.
      p: the power of the absolute features, >= 1.
      variant: "code" or "paper", see `losses.at`; the weight differs.

    Returns:
      The term; it has no variables.

    Raises:
      ValueError: at `init`, if a tap is not a map.

    Example:
      >>> from jaxkd import terms
      >>> spec = {"at": (1000.0, terms.at(["stage1", "stage2", "stage3"]))}

    References:
      Zagoruyko, Komodakis. `Paying More Attention to Attention: Improving the
      Performance of Convolutional Neural Networks via Attention Transfer
      <https://arxiv.org/abs/1612.03928>`_, 2017. Equation 2.
    """
    return _compare(losses.at, pairs, p=p, variant=variant)


def nst(pairs: _pairs.Pairs) -> Term:
    """Discrepancy between the two networks' channel patterns, summed: `losses.nst`.

    Every channel is compared with every other, so widths may differ; where sizes
    differ, the larger map is averaged down. The usual weight is 50, beside a
    cross-entropy of weight 1.

    Args:
      pairs: taps that are maps; the paper has the last stage.

    Returns:
      The term; it has no variables.

    Raises:
      ValueError: at `init`, if a tap is not a map.

    Example:
      >>> from jaxkd import terms
      >>> spec = {"nst": (50.0, terms.nst("stage3"))}

    References:
      Huang, Wang. `Like What You Like: Knowledge Distill via Neuron Selectivity
      Transfer <https://arxiv.org/abs/1707.01219>`_, 2017.
    """
    return _compare(losses.nst, pairs)


def cwd(pairs: _pairs.Pairs, *, temperature: float = 1.0, adapt: bool = True) -> Term:
    """KL divergence of each channel's spatial softmax, summed: `losses.cwd`.

    Channel is compared with channel, so a student of another width needs an adapter.
    The paper is about segmentation; for classification there is no customary weight.

    Args:
      pairs: taps that are maps.
      temperature: T > 0; larger is softer.
      adapt: whether a 1x1 convolution is put where the channels differ, and a resizing
        where the maps do.

    Returns:
      The term. Its parameters are the adapters', if any.

    Raises:
      ValueError: at `init`, if a tap is not a map, or shapes differ and `adapt` is
        false.

    Example:
      >>> from jaxkd import terms
      >>> spec = {"cwd": (50.0, terms.cwd("stage3"))}

    References:
      Shu, Liu, Gao, Yan, Shen. `Channel-wise Knowledge Distillation for Dense
      Prediction <https://arxiv.org/abs/2011.13256>`_, 2021.
    """
    return _compare(
        losses.cwd, pairs, Match if adapt else None, temperature=temperature
    )


def ickd(pairs: _pairs.Pairs, *, adapt: bool = True) -> Term:
    """Squared difference of the correlations between channels, summed: `losses.ickd`.

    The correlation matrices have the size of the channels, so a student of another
    width needs an adapter; maps may differ in size. The authors' program for CIFAR-100
    adapts always, by a 1x1 convolution and a BatchNorm; here it is a 1x1 convolution,
    and only where the channels differ.

    Args:
      pairs: taps, usually the last stage.
      adapt: whether a 1x1 convolution is put where the channels differ.

    Returns:
      The term. Its parameters are the adapters', if any.

    Raises:
      ValueError: at `init`, if channels differ and `adapt` is false.

    Example:
      >>> from jaxkd import terms
      >>> spec = {"ickd": (1.0, terms.ickd("stage3"))}

    References:
      Liu, Huang, Lin, Xie, Wang, Chang, Liang. `Exploring Inter-Channel Correlation for
      Diversity-Preserved Knowledge Distillation <https://arxiv.org/abs/2202.03680>`_,
      ICCV 2021.
    """
    return _compare(losses.ickd, pairs, _channels if adapt else None)


def pearson(pairs: _pairs.Pairs, *, adapt: bool = True) -> Term:
    """Half the squared difference of standardised channels: `losses.pearson_features`.

    Channel is compared with channel, so a student of another width needs an adapter.
    Published programs for detectors have weights of 6 and 10.

    Args:
      pairs: taps; the paper has the levels of a detector's feature pyramid.
      adapt: whether a 1x1 convolution (a Dense layer for embeddings) is put where the
        channels differ, and a resizing where the maps do.

    Returns:
      The term. Its parameters are the adapters', if any.

    Raises:
      ValueError: at `init`, if shapes differ and `adapt` is false.

    Example:
      >>> from jaxkd import terms
      >>> spec = {"pearson": (6.0, terms.pearson(["stage2", "stage3"]))}

    References:
      Cao, Zhang, Gao, Cheng, Cheng, Cheng. `PKD: General Distillation Framework for
      Object Detectors via Pearson Correlation Coefficient
      <https://arxiv.org/abs/2207.02039>`_, 2022.
    """
    return _compare(losses.pearson_features, pairs, Match if adapt else None)


def wasserstein(
    pairs: _pairs.Pairs,
    *,
    mean_weight: float = 1.0,
    deviation_weight: float = 1.0,
    adapt: bool = True,
) -> Term:
    """Wasserstein distance of channel statistics: `losses.wasserstein_features`.

    Mean and deviation of a channel are compared with the same channel's, so a student
    of another width needs an adapter; maps may differ in size.

    Args:
      pairs: taps that are maps, usually the last stage.
      mean_weight: of the squared difference of means, >= 0.
      deviation_weight: of the squared difference of standard deviations, >= 0.
      adapt: whether a 1x1 convolution is put where the channels differ.

    Returns:
      The term. Its parameters are the adapters', if any.

    Raises:
      ValueError: at `init`, if a tap is not a map, or channels differ and `adapt` is
        false.

    Example:
      >>> from jaxkd import terms
      >>> spec = {"wasserstein": (1.0, terms.wasserstein("stage3", mean_weight=2.0))}

    References:
      Lv, Yang, Li. `Wasserstein Distance Rivals Kullback-Leibler Divergence for
      Knowledge Distillation <https://arxiv.org/abs/2412.08139>`_, 2024.
    """
    return _compare(
        losses.wasserstein_features,
        pairs,
        _channels if adapt else None,
        mean_weight=mean_weight,
        deviation_weight=deviation_weight,
    )


_channels = functools.partial(Match, space=False)


def _compare(
    loss: Callable[..., Array],
    pairs: _pairs.Pairs,
    adapter: MakeAdapter | None = None,
    **knobs: Any,
) -> Term:
    return _pairs.total(
        pairs, lambda s, t: distill.on_taps(loss, s, t, adapter, **knobs)
    )
