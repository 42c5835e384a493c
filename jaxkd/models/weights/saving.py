"""`save_weights`: the variables of a network under another library's names."""

import os
import pathlib
from typing import Any

import numpy as np

from jaxkd import _tree
from jaxkd.models.weights import formats, rules
from jaxkd.models.weights.loading import ways
from jaxkd.models.weights.rules import Table


def save_weights(
    path: str | os.PathLike,
    params: Any,
    state: Any = None,
    *,
    source: str | Table = "auto",
) -> str:
    """Write the variables of a network in the names and layouts of another library.

    `torch.load_state_dict` takes `safetensors.torch.load_file` of the file.

    Args:
      path: `.safetensors`, `.npz` or `.msgpack`; a file there is replaced.
      params: of the network.
      state: of the network, such as BatchNorm's statistics.
      source: whose names are written: "torchvision", "timm", "repdistiller",
        "transformers", a table of your own, "jaxkd" for our own paths. "auto" is the
        first of these that knows the family, and "jaxkd" for `.msgpack`.

    Returns:
      Whose names were written, e.g. "torchvision/resnet".

    Raises:
      ValueError: if the suffix is another, or the source has no names for the network.
      OSError: if it cannot be written; what was there before stays.
    """
    path = pathlib.Path(path)
    if path.suffix == ".msgpack" and source == "auto":
        source = "jaxkd"
    leaves = _tree.flatten({"params": params, "state": state or {}})
    match = ways({at: np.shape(leaf) for at, leaf in leaves.items()}, source)[0]
    arrays: formats.Arrays = {}
    for at, leaf in leaves.items():
        place = match.places[at]
        parts = rules.theirs(place, np.asarray(leaf))
        arrays |= dict(zip(place.names, parts, strict=True))
    if match.table:
        counters = rules.counters(match.places)
        arrays |= dict.fromkeys(counters, np.zeros((), np.int64))
    formats.write(path, arrays)
    return match.source
