"""Distillation of activation boundaries (Heo, Lee, Yun & Choi, 2019)."""

import functools

from jaxkd import distill, losses
from jaxkd.distill import Term
from jaxkd.terms import _pairs
from jaxkd.terms.adapters import Adapter


def ab(pairs: _pairs.Pairs, *, margin: float = 1.0) -> Term:
    """Which of the teacher's neurons fire: a squared hinge on the sign, `losses.ab`.

    With r(s) the student's features after a connector (1x1 convolution and BatchNorm)
    and t the teacher's, both before the activation function::

        loss = sum over pairs of mean_u max(margin - sign(t_u) r(s)_u, 0)**2

    For a first stage: the student is trained on this term alone, before the stage that
    learns the labels; the connectors are left behind.

    RepDistiller weighs pair i of n by 2**(i - n) and takes 3/1000 of the *sum* over
    units, where this is the mean: its loss is larger by 3/1000 * 2**(i - n) * units, 12
    to 49 times for the stages of resnet8x4. It leaves out the connector of a pair whose
    shapes are equal.

    Args:
      pairs: taps before the activation, e.g. `["stage1_pre", "stage2_pre"]`.
      margin: >= 0; how far on the right side the student has to be.

    Returns:
      The term. Its parameters are the connectors', its state their batch statistics.

    References:
      Heo, Lee, Yun, Choi. `Knowledge Transfer via Distillation of Activation Boundaries
      Formed by Hidden Neurons <https://arxiv.org/abs/1811.03233>`_, AAAI 2019.
    """
    connector = functools.partial(Adapter, norm=True)
    return _pairs.total(
        pairs,
        lambda student, teacher: distill.on_taps(
            losses.ab, student, teacher, adapter=connector, margin=margin
        ),
    )
