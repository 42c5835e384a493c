"""A pipeline of every kind of stage but the search, in seconds."""

import json
import pathlib

import numpy as np
import pytest

from jaxkd import _tree, checkpoint
from jaxkd.pipeline import reading

TEXT = """
name = "small"

[data]
name = "digits"
train_images = 200
augment = { crop = 1 }

[models.teacher]
kind = "mlp"
widths = [24]

[models.student]
kind = "cnn"
stages = [[8]]
hidden = [16]
dropout = 0.1

[models.source]
kind = "cnn"
stages = [[8]]
hidden = [16]

[[stages]]
kind = "train"
name = "teach"
model = "teacher"
epochs = 3
batch_size = 50
optimizer = { rate = 5e-3 }

[[stages]]
kind = "train"
name = "source"
model = "source"
epochs = 2
batch_size = 50

[[stages]]
kind = "transfer"
source = "source"
exclude = ["head/*"]

[[stages]]
kind = "distill"
epochs = 3
batch_size = 50
temperature = 2.0
schedule = { kind = "cosine", warmup = 1.0 }
take = "best"

[stages.losses.ce]
weight = 0.5

[stages.losses.kd]
weight = { start = 0.0, end = 0.5, last = 2.0 }

[stages.losses.hint]
pairs = { pooled = "pooled" }
weight = 0.1

[[stages]]
kind = "prune"
method = "sensitivity"
ratio = 0.3
round_to = 1
step = 0.25

[[stages]]
kind = "finetune"
epochs = 2
batch_size = 50
optimizer = { kind = "sgd", rate = 0.01, weight_decay = 1e-4, clip = 1.0 }

[[stages]]
kind = "quantize"
epochs = 2
batch_size = 50
calibration = 100
optimizer = { rate = 1e-4 }
teacher = "teacher"
losses = { ce = { weight = 0.5 }, soft = { loss = "kd", weight = 0.5 } }

[[stages]]
kind = "export"
formats = ["stablehlo"]
int8 = true
latency = false
"""


def config(folder: pathlib.Path, *changes: str):
    """The configuration, with changes as `--set` takes them."""
    path = folder / "small.toml"
    path.write_text(TEXT)
    return reading.load(path, changes)


STAGES = [
    *("teach", "source", "transfer", "distill"),
    *("prune", "finetune", "quantize", "export"),
]
TIMINGS = ("seconds", "images/s", "milliseconds")


def without_timings(value):
    """Anything from JSON, without what differs from run to run."""
    if isinstance(value, dict):
        left = {k: v for k, v in value.items() if k not in TIMINGS}
        return {k: without_timings(v) for k, v in left.items()}
    return [without_timings(v) for v in value] if isinstance(value, list) else value


def variables(run: pathlib.Path, name: str):
    """The final arrays of a model, as dicts."""
    return checkpoint.as_dicts(checkpoint.load(run / "models" / name))


def read(run, name="results.json"):
    """One of the JSON files of a run."""
    return json.loads((run / name).read_text())


def rows(run):
    """The lines of the metrics, without their timings."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return without_timings([json.loads(line) for line in lines])


def assert_same(run, whole):
    """The same results, rows and arrays, bit for bit."""
    assert rows(run) == rows(whole)
    a, b = (without_timings(read(r)) for r in (run, whole))
    for left, right in zip(a["rows"], b["rows"], strict=True):
        for one, other in zip(left["files"], right["files"], strict=True):
            # StableHLO remembers the calls that led to it: a few bytes more or less.
            assert one.pop("bytes") == pytest.approx(other.pop("bytes"), rel=0.1)
        assert left == right
    assert a == b and a["finished"]
    for name in ("teacher", "student", "source"):
        left, right = (variables(r, name) for r in (run, whole))
        for path, array in _tree.flatten(left).items():
            np.testing.assert_array_equal(array, _tree.get(right, path), strict=True)
    for stage in ("03-distill", "06-quantize"):
        one, other = (
            np.load(r / "stages" / stage / "logits.npy") for r in (run, whole)
        )
        np.testing.assert_array_equal(one, other)
