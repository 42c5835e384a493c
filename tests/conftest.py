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


def pytest_configure(config):
    """Fast tests are small: they wait for XLA's optimiser more than it saves them."""
    quick = "JAX_DISABLE_MOST_OPTIMIZATIONS"
    if config.option.markexpr == "not slow" and quick not in os.environ:
        os.environ[quick] = "1"  # also for the processes that tests start
        jax.config.update(quick.lower(), True)


@pytest.fixture
def x64():
    """Double precision inside the test."""
    with jax.enable_x64(True):
        yield
