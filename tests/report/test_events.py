"""TensorBoard's files, read back."""

import importlib.util
import json
import struct

import pytest

from jaxkd import report
from tests.report import runs

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorboardX") is None, reason="needs tensorboardX"
)


def points(folder):
    """{tag: [(step, value)]} of the event file of a folder."""
    from tensorboardX.proto.event_pb2 import Event

    (path,) = folder.glob("events.out.tfevents.*")
    content, found = path.read_bytes(), {}
    while content:  # records: length, its checksum, the event, its checksum
        (length,) = struct.unpack("<Q", content[:8])
        event = Event.FromString(content[12 : 12 + length])
        for value in event.summary.value:
            found.setdefault(value.tag, []).append((event.step, value.simple_value))
        content = content[16 + length :]
    return found


def test_every_number_of_every_epoch_is_a_point_and_only_once(tmp_path):
    run = runs.make(tmp_path / "run", epochs=3)
    for _ in range(2):  # asked for again, it is made anew
        (folder,) = report.write_events([run])
    assert folder == run / "tensorboard"
    assert {p.name for p in folder.iterdir() if p.is_dir()} == {"teach", "distill"}
    lines = (run / "metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if row["stage"] == "distill"]
    found = points(folder / "distill")
    assert set(found) == {"loss", "loss/ce", "loss/kd", "seconds"}
    for tag, values in found.items():
        assert [step for step, _ in values] == [1, 2, 3]
        assert [v for _, v in values] == pytest.approx([r[tag] for r in rows], rel=1e-6)


@pytest.mark.bad_input
def test_without_the_package_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ImportError, match=r"pip install 'jaxkd-distill\[tensorboard\]'"
    ):
        report.write_events([tmp_path])
