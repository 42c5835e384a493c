"""The command for accelerators: rehearsed on the CPU, jobs that fail included."""

import json

import pytest

from experiments.bench import device


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory):
    """Two jobs that can run here, and one that there is not."""
    out = tmp_path_factory.mktemp("device")
    jobs = ("step:nothing", "check", "step:mnist_mlp")
    config = device.Config(str(out), jobs, repeats=1, tiny=True)
    return out, config, device.main(config)


def test_every_job_writes_its_lines_and_one_that_fails_stops_no_other(rehearsed):
    out, config, lines = rehearsed
    assert [line["job"] for line in lines] == ["check"] * 3 + ["step:mnist_mlp"] * 2
    assert "KeyError: 'nothing'" in (out / "step-nothing.log").read_text()
    written = (out / "step-mnist_mlp.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in written] == lines[3:]
    assert all(
        line["ms_per_step"] > 0 and line["device"] == "cpu" for line in lines[3:]
    )
    # Both devices are this CPU: they compute the same.
    assert [line["value"] for line in lines[:3]] == [0, 0, 0]


def test_what_was_measured_is_not_measured_again(rehearsed):
    out, config, lines = rehearsed
    again = device.Config(str(out), ("check", "step:mnist_mlp"), tiny=True)
    assert device.main(again) == lines


def test_the_time_is_kept(tmp_path, capsys):
    config = device.Config(str(tmp_path), ("step:mnist_mlp",), budget=0.5, tiny=True)
    assert device.main(config) == []
    assert "no time left" in capsys.readouterr().out
