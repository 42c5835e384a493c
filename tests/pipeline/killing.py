"""Runs a configuration while killing it: `python -m tests.pipeline.killing RUN SEED`.

The process imports everything once and forks; each child goes on with the run, with
nothing but the directory, until it is killed at a random moment of the stage that it is
the turn of. One JSON object on the last line says what was killed where.
"""

import contextlib
import json
import os
import pathlib
import random
import signal
import sys
import time

TURNS = 4  # kills that are aimed at each stage


def child(run: pathlib.Path) -> int:
    """Forks a process that resumes the run and exits."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        from jaxkd.pipeline import run as runs

        runs.resume(run)
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


def ended(pid: int) -> int | None:
    """The exit code of a child, negative for a signal; None while it runs."""
    found, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def now(run: pathlib.Path) -> str:
    """The stage that is under way, by what lies on the disk."""
    for folder in sorted((run / "stages").glob("*")):
        if not (folder / "final").exists():
            return folder.name
    return "between"


def kill_in(run: pathlib.Path, stage: str, rng: random.Random) -> str | None:
    """Starts a child and kills it in a stage; where it was, or None if it ended."""
    pid = child(run)
    folder = run / "stages" / stage
    while not folder.exists() or (folder / "final").exists():
        if (code := ended(pid)) is not None:
            assert code == 0, f"the child failed with {code}"
            return None
        time.sleep(0.002)
    # Short waits hit the setting up, long ones epochs, writing, measuring.
    time.sleep(rng.choice([0.0, 0.1, 0.5]) * rng.random() * 2)
    where = now(run)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (-signal.SIGKILL, 0), f"the child failed with {code}"
    return where if code else None


def main(run: pathlib.Path, seed: int) -> None:
    """Kills every stage in its turn, then lets the run end."""
    from jaxkd.pipeline import reading, run as runs  # noqa: F401

    rng = random.Random(seed)
    config = reading.load(run / "config.toml")
    kills = []
    for place, stage in enumerate(config.stages):
        for _ in range(TURNS):
            where = kill_in(run, f"{place:02d}-{stage.name}", rng)
            kills += [where] if where else []
    pid = child(run)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0, "the last child failed"
    print(json.dumps(kills))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), int(sys.argv[2]))
