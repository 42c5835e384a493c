"""Networks: `Net`, the pair of functions, and constructors of networks as data."""

from jaxkd.models.cnn import CNNS, Cnn, cnn
from jaxkd.models.mlp import MLPS, Mlp, mlp
from jaxkd.models.net import Net, from_foreign, from_linen

__all__ = [
    "CNNS",
    "MLPS",
    "Cnn",
    "Mlp",
    "Net",
    "cnn",
    "from_foreign",
    "from_linen",
    "mlp",
]
