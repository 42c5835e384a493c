"""The small run, once for all tests of a process that only look at it or copy it."""

import pytest

from jaxkd.pipeline import run as runs
from tests.pipeline import small


@pytest.fixture(scope="session")
def config(tmp_path_factory):
    return small.config(tmp_path_factory.mktemp("config"))


@pytest.fixture(scope="session")
def whole(config, tmp_path_factory):
    """A run that nobody has disturbed. Tests copy it."""
    return runs.start(config, tmp_path_factory.mktemp("runs") / "whole")
