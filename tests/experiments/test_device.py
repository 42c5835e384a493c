"""The command for accelerators, rehearsed on the CPU; jobs that fail or are stopped."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from experiments.bench import device

BROKEN = "seeds:resnet20"

# Runs Python with the arguments that follow, and with SIGINT as by default: tests
# that run in the background ignore it and hand that on. (No `preexec_fn`: it forks,
# and JAX warns of every fork.)
LISTEN = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory):
    """Two jobs that run here, and one that breaks."""
    out = tmp_path_factory.mktemp("device")
    config = device.Config(
        str(out), (BROKEN, "check", "step:mnist_mlp"), repeats=1, tiny=True
    )
    usual = device.command

    def command(job, config):
        if job == BROKEN:
            return [sys.executable, "-c", "raise SystemExit('broken')"]
        return usual(job, config)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "command", command)
        return out, device.main(config)


def test_every_job_writes_its_lines_and_one_that_fails_stops_no_other(rehearsed):
    out, lines = rehearsed
    assert [line["job"] for line in lines] == ["check"] * 3 + ["step:mnist_mlp"] * 2
    assert "broken" in device.path(out, BROKEN, "log").read_text()
    assert not device.path(out, BROKEN).exists()
    written = (out / "step-mnist_mlp.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in written] == lines[3:]
    assert all(line["device"] == "cpu" and line["tiny"] for line in lines)
    assert all(line["ms_per_step"] > 0 for line in lines[3:])
    # Both devices are this CPU: they compute the same.
    assert [line["value"] for line in lines[:3]] == [0, 0, 0]


def test_what_was_measured_is_not_measured_again(rehearsed):
    out, lines = rehearsed
    again = device.Config(str(out), ("check", "step:mnist_mlp"), tiny=True)
    assert device.main(again) == lines


def test_a_rehearsal_is_not_taken_for_a_run(rehearsed):
    out, _ = rehearsed
    with pytest.raises(SystemExit, match="holds lines of a rehearsal"):
        device.main(device.Config(str(out), ("check",)))


def test_a_job_that_there_is_not_is_refused_before_others_start(tmp_path):
    with pytest.raises(SystemExit, match="no job 'step:typo'; there are check, seeds:"):
        device.main(device.Config(str(tmp_path / "out"), ("check", "step:typo")))
    assert not (tmp_path / "out").exists()


def test_the_time_is_kept(tmp_path, capsys):
    config = device.Config(str(tmp_path), ("step:mnist_mlp",), budget=0.5, tiny=True)
    assert device.main(config) == []
    assert "step:mnist_mlp: no time left" in capsys.readouterr().err


@pytest.mark.parametrize(
    "sent",
    [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM],
)
def test_jobs_end_with_who_started_them(tmp_path, sent):
    options = ["--out", str(tmp_path), "--jobs", "check", "--tiny"]
    parent = subprocess.Popen(
        [sys.executable, "-c", LISTEN, "-m", "experiments.bench.device", *options],
        stderr=subprocess.DEVNULL,
    )
    log = device.path(tmp_path, "check", "log")
    while not log.exists():  # it is about to be started
        time.sleep(0.05)
    time.sleep(0.5)
    children = f"/proc/{parent.pid}/task/{parent.pid}/children"
    with open(children) as file:
        (child,) = map(int, file.read().split())
    parent.send_signal(sent)
    assert parent.wait(timeout=20) != 0
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
    assert not device.path(tmp_path, "check").exists()


@pytest.mark.slow
def test_a_job_that_is_not_told_to_go_measures_nothing(tmp_path):
    config = device.Config(str(tmp_path), tiny=True, repeats=1)
    done = subprocess.run(
        device.command("step:mnist_mlp", config),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=True,
    )
    assert done.stdout == device.READY
    assert not device.path(tmp_path, "step:mnist_mlp").exists()
