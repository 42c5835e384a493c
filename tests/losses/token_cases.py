"""The divergences for language models as the battery sees them."""

import numpy as np

from jaxkd import losses
from tests.losses.cases import Case, Inputs
from tests.losses.logit_cases import (
    LOGITS,
    WARM,
    case,
    kl,
    softmax,
    two_logits,
    with_labels,
)


def skew_kl_by_hand(student_logits, teacher_logits, skew, temperature):
    """The definition in probability space."""
    p, q = softmax(teacher_logits, temperature), softmax(student_logits, temperature)
    return kl(p, skew * p + (1 - skew) * q)


def skew_reverse_kl_by_hand(student_logits, teacher_logits, skew, temperature):
    """The definition in probability space."""
    p, q = softmax(teacher_logits, temperature), softmax(student_logits, temperature)
    return kl(q, (1 - skew) * p + skew * q)


def tvd_by_hand(student_logits, teacher_logits, temperature):
    """The probability that the teacher has more of."""
    p, q = softmax(teacher_logits, temperature), softmax(student_logits, temperature)
    return np.maximum(p - q, 0).sum(-1)


def symmetric_kl_by_hand(student_logits, teacher_logits, temperature):
    """Half the covariance of the differences."""
    p, q = softmax(teacher_logits, temperature), softmax(student_logits, temperature)
    return ((p - q) * np.log(p / q)).sum(-1) / 2


def alpha_beta_by_hand(student_logits, teacher_logits, alpha, beta, temperature):
    """The definition in probability space."""
    p, q = softmax(teacher_logits, temperature), softmax(student_logits, temperature)
    a, b, s = alpha, beta, alpha + beta
    each = p**a * q**b - a / s * p**s - b / s * q**s
    return -each.sum(-1) / (a * b)


def two_vocabularies(
    rng: np.random.Generator, batch: tuple[int, ...], width: int
) -> Inputs:
    """A student's logits and a teacher's of two classes more."""
    return {
        "student_logits": rng.normal(size=(*batch, width)),
        "teacher_logits": 2 * rng.normal(size=(*batch, width + 2)),
    }


def uld_by_hand(student_logits, teacher_logits, temperature):
    """Row by row, padded."""
    rows = []
    for s, t in zip(student_logits, teacher_logits, strict=True):
        p, q = sorted(softmax(t, temperature)), sorted(softmax(s, temperature))
        p, q = [0.0] * max(len(q) - len(p), 0) + p, [0.0] * max(len(p) - len(q), 0) + q
        rows.append(np.abs(np.subtract(p, q)).sum())
    return np.array(rows)


def with_samples(
    rng: np.random.Generator, batch: tuple[int, ...], width: int
) -> Inputs:
    """Both networks' logits, and classes in place of samples."""
    *logits, (_, classes) = with_labels(rng, batch, width).items()
    return {**dict(logits), "samples": classes}


def sampled_reverse_kl_by_hand(student_logits, teacher_logits, samples, estimator):
    """From the ratio of probabilities."""
    rows = np.arange(len(samples)), samples
    ratio = (softmax(teacher_logits) / softmax(student_logits))[rows]
    return -np.log(ratio) if estimator == "k1" else ratio - 1 - np.log(ratio)


SKEW = {"knobs": {"skew": 0.3, "temperature": 2.0}, "vary": {"skew": 0.6}}
CASES: list[Case] = [
    case(losses.skew_kl, two_logits, skew_kl_by_hand, **SKEW, **LOGITS),
    case(losses.skew_reverse_kl, two_logits, skew_reverse_kl_by_hand, **SKEW, **LOGITS),
    case(losses.tvd, two_logits, tvd_by_hand, smooth=False, **WARM, **LOGITS),
    case(losses.symmetric_kl, two_logits, symmetric_kl_by_hand, **WARM, **LOGITS),
    case(
        losses.alpha_beta,
        two_logits,
        alpha_beta_by_hand,
        knobs={"alpha": 0.2, "beta": 0.7, "temperature": 3.0},
        vary={"temperature": 2},
        **LOGITS,
    ),
    case(
        losses.uld,
        two_vocabularies,
        uld_by_hand,
        knobs={"temperature": 3.0},
        vary={"temperature": 2},
        at_equal=None,
        free_width=True,
        smooth=False,
        **{**LOGITS, "class_axis": ()},
    ),
    case(
        losses.sampled_reverse_kl,
        with_samples,
        sampled_reverse_kl_by_hand,
        knobs={"estimator": "k3"},
        at_equal=None,
        differentiable=(),
        smooth=False,
        **LOGITS,
    ),
]
