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

    For a first stage: the student is trained on this term alone, weight 1, before the
    stage that learns the labels; the connectors are left behind.

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
