"""Data: decoded splits on the host, batches gathered on the device, augmentation."""

from jaxkd.data import augment, decode
from jaxkd.data.batches import count, epoch, gather, on_device
from jaxkd.data.dataset import (
    Dataset,
    channel_statistics,
    fingerprint,
    select_classes,
    subset,
)
from jaxkd.data.folders import folder
from jaxkd.data.own import arrays, python
from jaxkd.data.preprocessing import Preprocessing
from jaxkd.data.records import records
from jaxkd.data.sources import load, names, prepare
from jaxkd.data.splits import Splits
from jaxkd.data.stream import Source, Stream, mapped, sequence
from jaxkd.data.tables import huggingface

__all__ = [
    "Dataset",
    "Preprocessing",
    "Source",
    "Splits",
    "Stream",
    "arrays",
    "augment",
    "channel_statistics",
    "count",
    "decode",
    "epoch",
    "fingerprint",
    "folder",
    "gather",
    "huggingface",
    "load",
    "mapped",
    "names",
    "on_device",
    "prepare",
    "python",
    "records",
    "select_classes",
    "sequence",
    "subset",
]
