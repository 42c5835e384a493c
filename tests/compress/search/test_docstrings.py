"""The examples in the docstrings run."""

import doctest
import importlib
import pathlib

import pytest

from jaxkd.compress import search

FOLDER = pathlib.Path(search.__file__).parent
NAMES = sorted(path.stem for path in FOLDER.glob("_[a-z]*.py"))


def test_there_are_modules():
    assert len(NAMES) > 10


@pytest.mark.parametrize("name", NAMES)
def test_examples(name):
    module = importlib.import_module(f"{search.__name__}.{name}")
    assert doctest.testmod(module).failed == 0
