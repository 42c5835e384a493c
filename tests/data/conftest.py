"""Fixtures of the small data sets."""

import pytest
from small_archives import MAKERS, make_idx

from jaxkd.data import specs


@pytest.fixture(params=MAKERS)
def made(request, tmp_path):
    """A small data set, in each official format."""
    (tmp_path / "archives").mkdir()
    return MAKERS[request.param](tmp_path / "archives")


@pytest.fixture
def made_idx(tmp_path, monkeypatch):
    """A small data set that `load` offers under the name "tiny"."""
    (tmp_path / "archives").mkdir()
    made = make_idx(tmp_path / "archives")
    monkeypatch.setitem(specs.SOURCES, "tiny", made.source)
    monkeypatch.delenv("JAXKD_ARCHIVES", raising=False)
    monkeypatch.delenv("JAXKD_DATA", raising=False)
    return made
