"""Export: a trained network as a file that runs without this library.

A module with an underscore holds the function of its name, e.g. `_onnx.py` holds
`export.onnx`; the others are helpers.
"""

from jaxkd.export._latency import latency
from jaxkd.export._litert_or_xla import litert_or_xla
from jaxkd.export._load import Executable, evaluate, load, predict
from jaxkd.export._onnx import onnx
from jaxkd.export._stablehlo import stablehlo
from jaxkd.export._tflite import tflite
from jaxkd.export.network import function, inference
from jaxkd.export.program import plain
from jaxkd.export.write import ExportReport

__all__ = [
    "Executable",
    "ExportReport",
    "evaluate",
    "function",
    "inference",
    "latency",
    "litert_or_xla",
    "load",
    "onnx",
    "plain",
    "predict",
    "stablehlo",
    "tflite",
]
