"""Terms with parameters, memory or several layers; plain losses are lifted instead.

Every function here returns a `distill.Term`. `pairs` says which taps are compared:
"stage3" the taps of that name, `{"stage2": "stage3"}` the student's stage2 with the
teacher's stage3, `["stage1", "stage2"]` several, summed. Shapes are never written by
hand: adapters are made from the two networks' outputs.

    spec = {
        "ce": (1.0, distill.on_labels(losses.cross_entropy)),
        "hint": (100.0, terms.hint("stage2")),
    }
"""

from jaxkd.terms import adapters
from jaxkd.terms.ab import ab
from jaxkd.terms.crd import crd
from jaxkd.terms.ctkd import ctkd
from jaxkd.terms.factor_transfer import factor_transfer, paraphraser
from jaxkd.terms.features import at, cwd, hint, ickd, nst, pearson, wasserstein
from jaxkd.terms.fsp import fsp
from jaxkd.terms.mgd import mgd
from jaxkd.terms.ofd import margins, measured_margins, ofd
from jaxkd.terms.relations import cc, pkt, rkd, sp
from jaxkd.terms.reviewkd import reviewkd
from jaxkd.terms.sdd import logit_maps, sdd
from jaxkd.terms.simkd import simkd
from jaxkd.terms.srd import srd
from jaxkd.terms.srrl import srrl
from jaxkd.terms.vid import vid
from jaxkd.terms.vkd import vkd

__all__ = [
    "ab",
    "adapters",
    "at",
    "cc",
    "crd",
    "ctkd",
    "cwd",
    "factor_transfer",
    "fsp",
    "hint",
    "ickd",
    "logit_maps",
    "margins",
    "measured_margins",
    "mgd",
    "nst",
    "ofd",
    "paraphraser",
    "pearson",
    "pkt",
    "reviewkd",
    "rkd",
    "sdd",
    "simkd",
    "sp",
    "srd",
    "srrl",
    "vid",
    "vkd",
    "wasserstein",
]
