"""Data: decoded splits on the host, batches gathered on the device, augmentation."""

from jaxkd.data import augment
from jaxkd.data.batches import epoch, gather, on_device
from jaxkd.data.dataset import Dataset, channel_statistics, fingerprint, subset
from jaxkd.data.sources import load, names, prepare

__all__ = [
    "Dataset",
    "augment",
    "channel_statistics",
    "epoch",
    "fingerprint",
    "gather",
    "load",
    "names",
    "on_device",
    "prepare",
    "subset",
]
