"""Strict numerics for every test, and one compilation cache for all of them."""

import os
import pathlib

import jax
import pytest

CACHE = pathlib.Path(__file__).parents[1] / ".cache" / "jax"

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update(
    "jax_compilation_cache_dir", os.environ.get("JAX_COMPILATION_CACHE_DIR", str(CACHE))
)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


# How XLA makes code, not what it computes. One module for a program: splitting small
# ones costs more than it saves. And loops as XLA emitted them before, which compiles in
# half the time; since jax 0.11 that is no more, and an unknown flag ends the process.
COMPILE_FASTER = ["--xla_cpu_parallel_codegen_split_count=1"] + (
    ["--xla_cpu_use_fusion_emitters=false"] if jax.__version_info__ < (0, 11) else []
)


def pytest_configure(config):
    """Tests compile more than they compute. XLA has not started yet."""
    flags = os.environ.get("XLA_FLAGS", "").split()  # the later of two counts
    os.environ["XLA_FLAGS"] = " ".join([*COMPILE_FASTER, *flags])
    # Fast tests are small: they wait for the optimiser more than it saves them.
    quick = "JAX_DISABLE_MOST_OPTIMIZATIONS"
    if config.option.markexpr == "not slow" and quick not in os.environ:
        os.environ[quick] = "1"  # also for the processes that tests start
        jax.config.update(quick.lower(), True)


@pytest.fixture
def x64():
    """Double precision inside the test."""
    with jax.enable_x64(True):
        yield
