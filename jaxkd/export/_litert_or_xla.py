"""`litert_or_xla`: a file for the runtime that computes what was trained."""

import importlib.util
import os
import pathlib
from collections.abc import Sequence

import jax

from jaxkd.compress.quantize import integer
from jaxkd.compress.quantize.net import RANGES
from jaxkd.export import network
from jaxkd.export._stablehlo import stablehlo
from jaxkd.export._tflite import tflite
from jaxkd.export.write import ExportReport
from jaxkd.models.net import Net
from jaxkd.types import Params, State

PACKAGES = ("litert_converter", "ai_edge_litert", "ai_edge_quantizer")


def litert_or_xla(
    net: Net,
    params: Params,
    state: State,
    stem: str | os.PathLike,
    *,
    image_shape: Sequence[int],
    folded: Net | None = None,
) -> ExportReport:
    """Write a .tflite file if LiteRT computes what the network does, else a .stablehlo.

    LiteRT is used where the extra `litert` is installed and the network is in float, or
    has static ranges of 8 bits, or dynamic ranges of 8 bits with kernels of 8 bits and
    one scale for each output channel. All else is written in int8 arithmetic for XLA,
    where a dynamic range is that of one image, however many a call takes.

    Args:
      net: a network, quantized or not.
      params: its parameters.
      state: its state.
      stem: of the file's path, to which the suffix is added.
      image_shape: height, width and channels of an image.
      folded: the network in float that `net` was quantized from. LiteRT quantizes
        dynamic ranges by itself, from this; without it they are written for XLA.

    Returns:
      What was written; its `path` has the suffix.
    """
    stem = pathlib.Path(stem)
    own = network.check_quantize(net, params, state, None)
    dynamic = own is not None and own.activation == "dynamic"
    if all(importlib.util.find_spec(package) for package in PACKAGES):
        path = stem.with_name(f"{stem.name}.tflite")
        if own is None or (own.activation == "static" and own.activations == 8):
            return tflite(net, params, state, path, image_shape=image_shape)
        eight = own.weights == own.activations == 8 and own.per_channel
        if dynamic and eight and folded is not None:
            state = {name: tree for name, tree in state.items() if name != RANGES}
            return tflite(
                folded, params, state, path, image_shape=image_shape, quantize="dynamic"
            )
    path = stem.with_name(f"{stem.name}.stablehlo")
    if own is None or not dynamic:
        return stablehlo(net, params, state, path, image_shape=image_shape)
    apply, held = integer(net, params, state, own)
    each = lambda image: apply(held, image[None])[0]
    function = network.function(lambda x: jax.vmap(each)(x))
    return stablehlo(*function, path, image_shape=image_shape)
