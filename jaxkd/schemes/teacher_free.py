"""What soft labels do without a better teacher (Yuan et al., 2020).

Three objectives to compare a real teacher with: they say how much of its effect is that
of softer labels. The first two need no teacher::

    d = distill.distiller(net, distill.no_teacher, teacher_free.smoothed(0.1), tx)
    d = distill.distiller(net, distill.no_teacher, teacher_free.virtual(0.5), tx)

In the third, Tf-KD_self, a pretrained copy of the student teaches it; this is the first
step of `schemes.born_again`::

    d = distill.distiller(
        net, distill.frozen(net), teacher_free.self_training(0.5), tx
    )
    state = d.init(key, pretrained, batch)

References:
  Yuan, Tay, Li, Wang, Feng. `Revisiting Knowledge Distillation via Label Smoothing
  Regularization <https://arxiv.org/abs/1909.11723>`_, 2020.
"""

from jaxkd import _check, distill, losses
from jaxkd.distill import Spec


def smoothed(epsilon: float = 0.1) -> Spec:
    """Cross-entropy with smoothed labels, as "label_smoothing".

    Args:
      epsilon: share of the uniform distribution, in [0, 1].
    """
    _check.closed_unit("epsilon", epsilon)
    term = distill.on_labels(losses.label_smoothing, epsilon=epsilon)
    return {"label_smoothing": (1.0, term)}


def virtual(
    weight: float, *, confidence: float = 0.99, temperature: float = 20.0
) -> Spec:
    """Tf-KD_reg: labels, and a hand-made teacher that is nearly always right.

    The objective is (1 - weight) * ce + weight * teacher_free; the second has no factor
    of the squared temperature, so that a high one makes it weak.

    Args:
      weight: of the virtual teacher, in [0, 1].
      confidence: its probability of the label, in (0, 1).
      temperature: > 0, of both distributions.
    """
    _check.closed_unit("weight", weight)
    _check.open_unit("confidence", confidence)
    _check.positive("temperature", temperature)
    term = distill.on_labels(
        losses.teacher_free, confidence=confidence, temperature=temperature
    )
    return {
        "ce": (1 - weight, distill.on_labels(losses.cross_entropy)),
        "teacher_free": (weight, term),
    }


def self_training(weight: float, *, temperature: float = 4.0) -> Spec:
    """Tf-KD_self: labels, and what a pretrained copy of the student says.

    The objective is (1 - weight) * ce + weight * kd, where `kd` has the factor of the
    squared temperature.

    Args:
      weight: of the teacher, in [0, 1].
      temperature: > 0, of both distributions.
    """
    _check.closed_unit("weight", weight)
    _check.positive("temperature", temperature)
    return {
        "ce": (1 - weight, distill.on_labels(losses.cross_entropy)),
        "kd": (weight, distill.on_logits(losses.kd, temperature=temperature)),
    }
