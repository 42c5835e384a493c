"""Export: a trained network as a file that runs without this library."""

from jaxkd.export._load import Program, evaluate, load
from jaxkd.export._onnx import onnx
from jaxkd.export._stablehlo import stablehlo
from jaxkd.export._tflite import tflite
from jaxkd.export.latency import latency
from jaxkd.export.program import inference, plain
from jaxkd.export.report import Report

__all__ = [
    "Program",
    "Report",
    "evaluate",
    "inference",
    "latency",
    "load",
    "onnx",
    "plain",
    "stablehlo",
    "tflite",
]
