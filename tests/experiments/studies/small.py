"""What the tests of the studies start from: a short study, and images by hand."""

import numpy as np

from experiments.studies import _config, _lab
from jaxkd import data


def lab(tmp_path, **options):
    config = _config.Config(
        "temperature", "short", seeds=2, epochs=2, out=str(tmp_path), **options
    )
    return _lab.lab(config, _config.resolve(config))


def dataset(images, labels, names):
    labels = np.asarray(labels, np.int32)
    place = np.arange(len(labels), dtype=np.int32)
    return data.Dataset.of_images("fake", "test", images, labels, place, tuple(names))
