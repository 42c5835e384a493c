"""Quantization: networks that train, and run, as the integers of a device do."""

from jaxkd.compress.quantize.calibrate import bias_correction, calibrate
from jaxkd.compress.quantize.config import FLOAT, Bits, Quantization
from jaxkd.compress.quantize.deploy import deployed
from jaxkd.compress.quantize.equalise import equalise
from jaxkd.compress.quantize.fake import (
    Grid,
    affine_grid,
    fake_quant,
    lsq,
    symmetric_grid,
    weight_grid,
)
from jaxkd.compress.quantize.fold import fold, unfolded
from jaxkd.compress.quantize.integer import Size, integer, size
from jaxkd.compress.quantize.net import quantized

__all__ = [
    "FLOAT",
    "Bits",
    "Grid",
    "Quantization",
    "Size",
    "affine_grid",
    "bias_correction",
    "calibrate",
    "deployed",
    "equalise",
    "fake_quant",
    "fold",
    "integer",
    "lsq",
    "quantized",
    "size",
    "symmetric_grid",
    "unfolded",
    "weight_grid",
]
