"""Real processes on this machine: they compute what one computes, and end together."""

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from jaxkd import _tree, checkpoint, processes
from tests import processes_worker

ROOT = pathlib.Path(__file__).parents[1]
LIMIT = 300  # seconds after which a process that should have ended is killed


@contextlib.contextmanager
def started(count, *arguments):
    """Processes that run the worker; none of them outlives the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "",  # one device in each
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": str(count),
    }
    command = [sys.executable, "-u", "-m", "tests.processes_worker"]
    running = []
    try:
        for i in range(count):
            running.append(
                subprocess.Popen(
                    [*command, *map(str, arguments)],
                    cwd=ROOT,
                    env={**environment, "JAX_PROCESS_ID": str(i)},
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        yield running
    finally:
        for process in running:
            process.kill()
        for process in running:
            process.communicate()


def ended(running):
    """The exit code, output and errors of each, in their order."""
    out = [process.communicate(timeout=LIMIT) for process in running]
    return [(p.returncode, *o) for p, o in zip(running, out, strict=True)]


def result(output):
    line = next(x for x in output.splitlines() if x.startswith("result "))
    return json.loads(line.removeprefix("result "))


def trained(count, folder):
    """A run of several processes to its end; what each of them says."""
    with started(count, "train", folder) as running:
        all_ended = ended(running)
    codes, said = [code for code, _, _ in all_ended], [e for _, _, e in all_ended]
    assert codes == [0] * count, "\n".join(said)
    return [result(out) for _, out, _ in all_ended]


def rows(folder):
    """The metrics of a run by epoch, each epoch written once."""
    found = {}
    for file in sorted(folder.glob("from*/metrics.jsonl")):
        for row in map(json.loads, file.read_text().splitlines()):
            assert row["epoch"] not in found, "two processes have written"
            found[row.pop("epoch")] = row
    return {epoch: found[epoch] for epoch in sorted(found)}


def assert_same_training(a, b):
    """Metrics of every epoch, and all that is kept after two and after the last.

    Sums over the batch are taken in another order: float32 rounds otherwise.
    """
    ours, theirs = rows(a), rows(b)
    assert list(ours) == list(theirs) == [1, 2, 3, 4]
    for epoch, row in ours.items():
        for name in ("loss", "loss/ce", "loss/kd", "loss/rkd", "loss/crd"):
            np.testing.assert_allclose(row[name], theirs[epoch][name], rtol=2e-4)
    for step in (2, processes_worker.EPOCHS):
        left, right = (
            checkpoint.read(folder / "checkpoints" / f"{step:06d}").tree
            for folder in (a, b)
        )
        for path, array in _tree.flatten(left).items():
            other = _tree.get(right, path)
            np.testing.assert_allclose(array, other, 1e-3, 1e-4, err_msg=path)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run of one process: its folder, and what it says."""
    folder = tmp_path_factory.mktemp("alone")
    return folder, processes_worker.run(folder)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The same run of two processes, each with half of every array."""
    folder = tmp_path_factory.mktemp("pair")
    return folder, trained(2, folder)


def test_two_processes_train_as_one_does(alone, pair):
    assert_same_training(alone[0], pair[0])


def test_the_first_process_writes_and_the_others_read(alone, pair):
    _, one = alone
    folder, said = pair
    assert [s["there"] for s in said] == [[False], [True]]
    for each in said:
        np.testing.assert_allclose(each["total"], one["total"], rtol=1e-5)
    assert {p.name for p in folder.iterdir()} == {"scores", "from0", "checkpoints"}
    names = [f"{epoch:06d}" for epoch in range(1, 1 + processes_worker.EPOCHS)]
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == names


def test_cpu_processes_read_no_stored_programs(alone, pair):
    """Programs that are read have lost the order of collectives: a pair may hang."""
    assert [said["stored"] for said in pair[1]] == [False, False]
    assert alone[1]["stored"] == jax.config.jax_enable_compilation_cache


@pytest.mark.slow
def test_one_process_resumes_where_a_killed_pair_was(pair, tmp_path):
    with started(2, "train", tmp_path, "die") as running:
        running[1].wait(LIMIT)
        killed = time.monotonic()
        (code, _, errors), (other, _, _) = ended(running)
        assert time.monotonic() - killed < 60  # what is promised, not a speed
    assert other == -signal.SIGKILL
    assert code in (1, -signal.SIGABRT), errors
    assert "Gloo" in errors or "heartbeat" in errors
    assert checkpoint.newest(tmp_path / "checkpoints", pytest.fail).meta["epoch"] == 2
    assert processes_worker.run(tmp_path)["behind"] == 2
    assert_same_training(pair[0], tmp_path)


@pytest.mark.slow
def test_four_processes_train_as_one_does(alone, tmp_path):
    said = trained(4, tmp_path)
    assert_same_training(alone[0], tmp_path)
    assert [s["there"] for s in said] == [[False], [True], [True], [True]]


@pytest.mark.slow
def test_a_pair_goes_on_where_one_process_was(alone, tmp_path):
    folder, _ = alone
    for step in (1, 2):
        old = checkpoint.read(folder / "checkpoints" / f"{step:06d}")
        checkpoint.write(tmp_path / "checkpoints" / old.path.name, old.tree, old.meta)
    assert [s["behind"] for s in trained(2, tmp_path)] == [2, 2]
    ours, theirs = rows(tmp_path), rows(folder)
    assert list(ours) == [3, 4]
    for epoch, row in ours.items():
        np.testing.assert_allclose(row["loss"], theirs[epoch]["loss"], rtol=2e-4)


def wait_for_all(running):
    for process in running:
        while (line := process.stdout.readline()) != "here\n":
            assert line, process.communicate(timeout=LIMIT)


def test_without_its_coordinator_a_process_ends():
    with started(2, "idle") as running:
        wait_for_all(running)
        running[0].kill()
        _, (code, _, errors) = ended(running)
    assert code == -signal.SIGABRT
    assert "CoordinationService" in errors


@pytest.mark.parametrize("failing", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_where_one_process_fails_the_others_end(failing):
    with started(2, "fail", failing) as running:
        both = ended(running)
    code, _, errors = both[failing]
    assert code == 1
    assert errors.splitlines()[-1] == "FileNotFoundError: no such archive"
    assert both[1 - failing][0] in (1, -signal.SIGABRT)


@pytest.mark.slow
def test_where_the_others_do_not_come_a_process_ends():
    with started(2, "idle", 3) as running:
        running[0].kill()
        _, (code, _, errors) = ended(running)
    assert code != 0
    assert errors.startswith("jaxkd: process 1 of 2 waits 3 s for all at 127.0.0.1:")


# What the environment says.

HERE = {
    "JAX_COORDINATOR_ADDRESS": "10.0.0.1:4000",
    "JAX_NUM_PROCESSES": "4",
    "JAX_PROCESS_ID": "3",
}


@pytest.fixture
def no_cluster(monkeypatch):
    monkeypatch.setattr(processes, "_cluster", lambda environ: {})


def test_the_variables_say_where_a_process_is(no_cluster):
    assert processes.place(HERE) == ("10.0.0.1:4000", 4, 3)
    assert processes.place({}) is None
    assert processes.place(dict.fromkeys(HERE, "")) is None


@pytest.mark.parametrize("alone", [{}, {"JAX_NUM_PROCESSES": "1"}])
def test_a_process_that_is_alone_starts_without_anything(
    alone, no_cluster, monkeypatch
):
    for name in HERE:
        monkeypatch.delenv(name, raising=False)
    for name, value in alone.items():
        monkeypatch.setenv(name, value)
    jax.devices()  # also where devices are in use already
    processes.start()
    processes.barrier("alone")
    assert processes.in_turn(lambda: 3) == 3
    done = []
    processes.once(lambda: done.append(1))
    assert done == [1]


@pytest.mark.bad_input
@pytest.mark.parametrize("missing", HERE)
def test_incomplete_variables_are_refused_by_name(missing, no_cluster):
    incomplete = {name: value for name, value in HERE.items() if name != missing}
    with pytest.raises(ValueError, match=f"^{missing} must be set beside JAX_"):
        processes.place(incomplete)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"JAX_PROCESS_ID": "4"}, "JAX_PROCESS_ID must be 0 to .* process 4 of 4"),
        ({"JAX_NUM_PROCESSES": "0"}, "got process 3 of 0"),
        ({"JAX_PROCESS_ID": "-1"}, "JAX_PROCESS_ID must be a whole number, got '-1'"),
        ({"JAX_NUM_PROCESSES": "1"}, "got process 3 of 1"),
        ({"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES must be a whole number"),
        ({"JAX_COORDINATOR_ADDRESS": "host"}, "must be HOST:PORT, got 'host'"),
        ({"JAX_COORDINATOR_ADDRESS": "host:x"}, "must be HOST:PORT, got 'host:x'"),
    ],
)
def test_contradictions_are_refused_by_name(changed, message, no_cluster):
    with pytest.raises(ValueError, match=message):
        processes.place({**HERE, **changed})


SLURM = {
    "SLURM_JOB_ID": "4097",
    "SLURM_STEP_NODELIST": "node[007-008]",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}
OPEN_MPI = {
    "OMPI_MCA_orte_hnp_uri": "4096.0;tcp://10.0.0.9:5000",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    "OMPI_VERSION": "4.1.6",
}


@pytest.fixture
def cluster(monkeypatch):
    """Sets a cluster's variables, and no others."""
    for name in [*SLURM, *OPEN_MPI, *HERE, "KUBERNETES_SERVICE_HOST"]:
        monkeypatch.delenv(name, raising=False)

    def be(variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return be


def test_clusters_that_jax_knows_need_no_variables(cluster):
    cluster(SLURM)
    # jax's port: the job's number modulo 4096, above 61440.
    assert processes.place(os.environ) == ("node007:61441", 2, 1)
    cluster({"JAX_COORDINATOR_ADDRESS": "other:4000"})
    assert processes.place(os.environ) == ("other:4000", 2, 1)
    cluster({"JAX_NUM_PROCESSES": "8"})
    assert processes.place(os.environ) == ("other:4000", 8, 1)
    cluster({"JAX_NUM_PROCESSES": ""})
    cluster({"SLURM_NTASKS": "1", "SLURM_PROCID": "0"})
    assert processes.place(os.environ).processes == 1


def test_open_mpi_is_known(cluster):
    cluster(OPEN_MPI)
    assert processes.place(os.environ) == ("10.0.0.9:61441", 2, 1)


@pytest.mark.bad_input
def test_a_cluster_that_contradicts_the_variables_is_named(cluster):
    cluster({**SLURM, "JAX_NUM_PROCESSES": "1", "SLURM_PROCID": "1"})
    assert processes.place(os.environ) == ("", 1, 0)  # as was said
    cluster({"JAX_NUM_PROCESSES": "2", "SLURM_PROCID": "3"})
    with pytest.raises(ValueError, match=r"3 of 2 \(set here: JAX_NUM_PROCESSES;"):
        processes.place(os.environ)
    cluster({"SLURM_PROCID": "first"})
    with pytest.raises(RuntimeError, match="cluster .SlurmCluster.*JAX_PROCESS_ID"):
        processes.place(os.environ)
