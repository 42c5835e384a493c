"""Data: decoded splits on the host, batches gathered on the device, augmentation."""

from jaxkd.data import augment, decode
from jaxkd.data.batches import count, epoch, gather, on_device
from jaxkd.data.dataset import Dataset, channel_statistics, fingerprint, subset
from jaxkd.data.records import records
from jaxkd.data.sources import load, names, prepare
from jaxkd.data.stream import Source, Stream, mapped, sequence

__all__ = [
    "Dataset",
    "Source",
    "Stream",
    "augment",
    "channel_statistics",
    "count",
    "decode",
    "epoch",
    "fingerprint",
    "gather",
    "load",
    "mapped",
    "names",
    "on_device",
    "prepare",
    "records",
    "sequence",
    "subset",
]
