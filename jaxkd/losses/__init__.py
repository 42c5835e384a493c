"""Distillation losses: arrays in, one loss for each example out.

Every loss is a pure function `loss(student_*, teacher_*, [labels], *, knobs)` of shape
`[*batch]`; the mean over the batch is the number a paper reports. None of them reduces,
weighs or stops a gradient. `where=` leaves examples out, `class_mask=` classes.

A label of -1 marks an example without one: every loss of labels gives it loss 0 and no
gradient. Any other label that is no class (1-based labels, 255 or -100 as "ignore") is
a ValueError in an eager call; where labels are traced, and cannot be looked at, it
counts as -1. Exclude examples by `where=`.

A class whose logit is -inf does not exist for that network. Where a network has no
class left to compare (all masked or -inf), what is compared is 0, with gradient 0.
"""

from jaxkd.losses._ab import ab
from jaxkd.losses._alpha_beta import alpha_beta
from jaxkd.losses._at import at
from jaxkd.losses._binary_kd import binary_kd
from jaxkd.losses._cc import cc
from jaxkd.losses._class_costs import class_costs
from jaxkd.losses._cosine import cosine
from jaxkd.losses._crd import crd
from jaxkd.losses._cross_entropy import cross_entropy
from jaxkd.losses._cwd import cwd
from jaxkd.losses._dist import dist
from jaxkd.losses._dkd import dkd
from jaxkd.losses._ensemble_logits import ensemble_logits
from jaxkd.losses._factor_transfer import factor_transfer
from jaxkd.losses._fsp import fsp
from jaxkd.losses._hard_label import hard_label
from jaxkd.losses._hcl import hcl
from jaxkd.losses._hint import hint
from jaxkd.losses._ickd import ickd
from jaxkd.losses._jsd import jsd
from jaxkd.losses._kd import kd
from jaxkd.losses._label_smoothing import label_smoothing
from jaxkd.losses._logit_mse import logit_mse
from jaxkd.losses._lskd import lskd
from jaxkd.losses._mlkd_batch import mlkd_batch
from jaxkd.losses._mlkd_class import mlkd_class
from jaxkd.losses._mlkd_instance import mlkd_instance
from jaxkd.losses._mutual import mutual
from jaxkd.losses._nkd import nkd
from jaxkd.losses._nst import nst
from jaxkd.losses._ofa import ofa
from jaxkd.losses._ofd import ofd
from jaxkd.losses._pearson_features import pearson_features
from jaxkd.losses._pkt import pkt
from jaxkd.losses._probability_mse import probability_mse
from jaxkd.losses._reverse_kd import reverse_kd
from jaxkd.losses._rkd_angle import rkd_angle
from jaxkd.losses._rkd_distance import rkd_distance
from jaxkd.losses._rld import rld
from jaxkd.losses._sampled_reverse_kl import sampled_reverse_kl
from jaxkd.losses._sdd import sdd
from jaxkd.losses._skew_kl import skew_kl
from jaxkd.losses._skew_reverse_kl import skew_reverse_kl
from jaxkd.losses._soft_cross_entropy import soft_cross_entropy
from jaxkd.losses._sp import sp
from jaxkd.losses._symmetric_kl import symmetric_kl
from jaxkd.losses._teacher_free import teacher_free
from jaxkd.losses._topk_kd import topk_kd
from jaxkd.losses._ttm import ttm
from jaxkd.losses._tvd import tvd
from jaxkd.losses._uld import uld
from jaxkd.losses._vid import vid
from jaxkd.losses._wasserstein_features import wasserstein_features
from jaxkd.losses._wkd_logits import wkd_logits
from jaxkd.losses._wsld import wsld
from jaxkd.losses._wttm import wttm

__all__ = [
    "ab",
    "alpha_beta",
    "at",
    "binary_kd",
    "cc",
    "class_costs",
    "cosine",
    "crd",
    "cross_entropy",
    "cwd",
    "dist",
    "dkd",
    "ensemble_logits",
    "factor_transfer",
    "fsp",
    "hard_label",
    "hcl",
    "hint",
    "ickd",
    "jsd",
    "kd",
    "label_smoothing",
    "logit_mse",
    "lskd",
    "mlkd_batch",
    "mlkd_class",
    "mlkd_instance",
    "mutual",
    "nkd",
    "nst",
    "ofa",
    "ofd",
    "pearson_features",
    "pkt",
    "probability_mse",
    "reverse_kd",
    "rkd_angle",
    "rkd_distance",
    "rld",
    "sampled_reverse_kl",
    "sdd",
    "skew_kl",
    "skew_reverse_kl",
    "soft_cross_entropy",
    "sp",
    "symmetric_kl",
    "teacher_free",
    "topk_kd",
    "ttm",
    "tvd",
    "uld",
    "vid",
    "wasserstein_features",
    "wkd_logits",
    "wsld",
    "wttm",
]
