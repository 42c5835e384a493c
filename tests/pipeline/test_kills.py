"""SIGKILL at random moments of every stage: the run ends as if nothing had been."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from jaxkd import store
from jaxkd.pipeline import directory
from tests.pipeline import small
from tests.pipeline.small import assert_same

pytestmark = pytest.mark.slow
ROOT = pathlib.Path(__file__).parents[2]


def called(*arguments, cache):
    """A fresh Python, as the user's own; compiled programs are kept between."""
    environment = {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return subprocess.run(
        [sys.executable, "-m", *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=1500,
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A run that ended by itself, its configuration, and what was compiled for it."""
    folder = tmp_path_factory.mktemp("undisturbed")
    small.config(folder)
    path, whole, cache = folder / "small.toml", folder / "whole", folder / "cache"
    done = called("jaxkd", "run", path, "--to", whole, cache=cache)
    assert done.returncode == 0, done.stderr
    return whole, cache


def test_a_run_that_is_killed_again_and_again_ends_the_same(undisturbed, tmp_path):
    whole, cache = undisturbed
    run = tmp_path / "run"
    with directory.create(small.config(tmp_path), run):
        pass
    killed = called("tests.pipeline.killing", run, "7", cache=cache)
    assert killed.returncode == 0, killed.stderr
    assert "Traceback" not in killed.stderr
    kills = json.loads(killed.stdout.splitlines()[-1])
    print(len(kills), "kills", {k: kills.count(k) for k in sorted(set(kills))})
    assert len(kills) >= 20
    stages = {k for k in kills if k != "between"}
    assert len(stages) >= 7, stages  # of eight; one may be too quick to be hit
    assert_same(run, whole)
    assert not list(run.rglob(f"{store.PREFIX}*"))


LIMITED = """
import os, resource, sys
from jaxkd.__main__ import main
from jaxkd.pipeline.stages import Finetune

real = Finetune.run


def run(stage, context):
    if stage.name == "finetune":
        size = os.path.getsize(os.path.join(sys.argv[1], "metrics.jsonl"))
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    return real(stage, context)


Finetune.run = run
sys.exit(main(["resume", sys.argv[1]]))
"""


def test_a_full_disk_fails_cleanly_and_loses_nothing(undisturbed, tmp_path):
    """The kernel refuses to write files beyond a size: checkpoints cannot be kept."""
    whole, cache = undisturbed
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    for folder in ("05-finetune", "06-quantize", "07-export"):
        shutil.rmtree(run / "stages" / folder)
    failed = subprocess.run(
        [sys.executable, "-c", LIMITED, run],
        cwd=ROOT,
        env={**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert failed.returncode == 1, failed.stderr
    # Orbax's threads may complain of their own closed loop; nothing of ours is shown.
    assert f'File "{ROOT}' not in failed.stderr
    assert "could not be written" in failed.stderr and "resume" in failed.stderr
    finals = sorted(p.parent.name for p in (run / "stages").glob("*/final"))
    assert len(finals) == 5
    assert called("jaxkd", "resume", run, cache=cache).returncode == 0
    assert_same(run, whole)
