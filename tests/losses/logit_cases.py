"""The logit losses as the battery sees them: inputs, knobs, own definitions."""

import numpy as np

from jaxkd import losses
from tests.losses.cases import Case, Inputs


def two_logits(rng: np.random.Generator, batch: tuple[int, ...], width: int) -> Inputs:
    """A student's and a teacher's logits."""
    shape = (*batch, width)
    return {
        "student_logits": rng.normal(size=shape),
        "teacher_logits": 2 * rng.normal(size=shape),
    }


def with_labels(rng: np.random.Generator, batch: tuple[int, ...], width: int) -> Inputs:
    """Both networks' logits and labels."""
    labels = rng.integers(width, size=batch)
    return {**two_logits(rng, batch, width), "labels": labels}


def shift(inputs: Inputs) -> Inputs:
    """Adds a constant to all of a row's logits: the softmax does not see it."""
    shifted = dict(inputs)
    for size, name in enumerate(("student_logits", "teacher_logits"), start=1):
        if name in inputs:
            rows = np.arange(inputs[name][..., :1].size) - 3.0
            rows = size * rows.reshape(inputs[name][..., :1].shape)
            shifted[name] = inputs[name] + rows
    return shifted


def softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Probabilities, row by row, from the definition."""
    powers = np.exp(logits / temperature)
    return powers / powers.sum(-1, keepdims=True)


def kl(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """KL(p || q) over the last axis, in probability space."""
    return (p * np.log(p / q)).sum(-1)


def kd_by_hand(student_logits, teacher_logits, temperature):
    """The definition in probability space."""
    p, q = softmax(teacher_logits, temperature), softmax(student_logits, temperature)
    return temperature**2 * kl(p, q)


def soft_cross_entropy_by_hand(student_logits, teacher_logits, temperature):
    """Minus the teacher's expectation of the student's log-probability."""
    p, q = softmax(teacher_logits, temperature), softmax(student_logits, temperature)
    return -(temperature**2) * np.einsum("...k,...k->...", p, np.log(q))


def logit_mse_by_hand(student_logits, teacher_logits):
    """The mean over classes of the squared difference."""
    return (
        np.linalg.norm(student_logits - teacher_logits, axis=-1) ** 2
        / (student_logits.shape[-1])
    )


def probability_mse_by_hand(student_logits, teacher_logits, temperature):
    """The squared distance of the two probability vectors."""
    p, q = softmax(teacher_logits, temperature), softmax(student_logits, temperature)
    return np.linalg.norm(p - q, axis=-1) ** 2


BOTH = ("student_logits", "teacher_logits")
LOGITS = {"leading": True, "class_axis": BOTH, "symmetries": (shift,)}

CASES = [
    Case(
        "kd",
        losses.kd,
        two_logits,
        kd_by_hand,
        knobs={"temperature": 3.0},
        vary={"temperature": 2},
        **LOGITS,
    ),
    Case(
        "soft_cross_entropy",
        losses.soft_cross_entropy,
        two_logits,
        soft_cross_entropy_by_hand,
        knobs={"temperature": 3.0},
        vary={"temperature": 2},
        at_equal="least",
        **LOGITS,
    ),
    Case(
        "logit_mse",
        losses.logit_mse,
        two_logits,
        logit_mse_by_hand,
        leading=True,
        class_axis=BOTH,
    ),
    Case(
        "probability_mse",
        losses.probability_mse,
        two_logits,
        probability_mse_by_hand,
        knobs={"temperature": 3.0},
        vary={"temperature": 2},
        **LOGITS,
    ),
]
