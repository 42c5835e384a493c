"""Networks: `Net`, the pair of functions, and constructors of networks as data."""

from jaxkd.models.cnn import CNNS, Cnn, cnn
from jaxkd.models.convolution import conv_general_dilated, plain_convolutions
from jaxkd.models.mlp import MLPS, Mlp, mlp
from jaxkd.models.net import Net, from_foreign, from_linen
from jaxkd.models.pooling import max_pool

__all__ = [
    "CNNS",
    "MLPS",
    "Cnn",
    "Mlp",
    "Net",
    "cnn",
    "conv_general_dilated",
    "from_foreign",
    "from_linen",
    "max_pool",
    "mlp",
    "plain_convolutions",
]
