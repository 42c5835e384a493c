"""Distillation losses: arrays in, one loss for each example out.

Every loss is a pure function `loss(student_*, teacher_*, [labels], *, knobs)` of shape
`[*batch]`; the mean over the batch is the number a paper reports. None of them reduces,
weighs or stops a gradient. `where=` leaves examples out, `class_mask=` classes.
"""

from jaxkd.losses._kd import kd
from jaxkd.losses._logit_mse import logit_mse
from jaxkd.losses._probability_mse import probability_mse
from jaxkd.losses._soft_cross_entropy import soft_cross_entropy

__all__ = [
    "kd",
    "logit_mse",
    "probability_mse",
    "soft_cross_entropy",
]
