"""Distillation losses: arrays in, one loss for each example out.

Every loss is a pure function `loss(student_*, teacher_*, [labels], *, knobs)` of shape
`[*batch]`; the mean over the batch is the number a paper reports. None of them reduces,
weighs or stops a gradient. `where=` leaves examples out, `class_mask=` classes.
"""

from jaxkd.losses._ab import ab
from jaxkd.losses._at import at
from jaxkd.losses._cc import cc
from jaxkd.losses._cosine import cosine
from jaxkd.losses._crd import crd
from jaxkd.losses._cwd import cwd
from jaxkd.losses._factor_transfer import factor_transfer
from jaxkd.losses._fsp import fsp
from jaxkd.losses._hcl import hcl
from jaxkd.losses._hint import hint
from jaxkd.losses._ickd import ickd
from jaxkd.losses._kd import kd
from jaxkd.losses._logit_mse import logit_mse
from jaxkd.losses._nst import nst
from jaxkd.losses._ofd import ofd
from jaxkd.losses._pearson_features import pearson_features
from jaxkd.losses._pkt import pkt
from jaxkd.losses._probability_mse import probability_mse
from jaxkd.losses._rkd_angle import rkd_angle
from jaxkd.losses._rkd_distance import rkd_distance
from jaxkd.losses._soft_cross_entropy import soft_cross_entropy
from jaxkd.losses._sp import sp
from jaxkd.losses._vid import vid
from jaxkd.losses._wasserstein_features import wasserstein_features

__all__ = [
    "ab",
    "at",
    "cc",
    "cosine",
    "crd",
    "cwd",
    "factor_transfer",
    "fsp",
    "hcl",
    "hint",
    "ickd",
    "kd",
    "logit_mse",
    "nst",
    "ofd",
    "pearson_features",
    "pkt",
    "probability_mse",
    "rkd_angle",
    "rkd_distance",
    "soft_cross_entropy",
    "sp",
    "vid",
    "wasserstein_features",
]
