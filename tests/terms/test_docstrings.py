"""Every public function of `jaxkd.terms` is explained, and its example runs."""

import doctest
import inspect

import pytest

from jaxkd import terms
from jaxkd.distill import Term

FUNCTIONS = [name for name in terms.__all__ if inspect.isfunction(getattr(terms, name))]
every_function = pytest.mark.parametrize("name", FUNCTIONS)


@every_function
def test_explains_its_arguments_its_result_and_its_paper(name):
    function = getattr(terms, name)
    text = inspect.getdoc(function) or ""
    arguments = text.split("\nArgs:")[1].split("\nReturns:")[0]
    for parameter in inspect.signature(function).parameters:
        assert f"\n  {parameter}: " in arguments, parameter
    if inspect.signature(function).return_annotation is Term:
        assert "https://" in text.split("\nReferences:")[1]


def test_examples_run():
    finder, ran = doctest.DocTestFinder(recurse=False), 0
    for name in FUNCTIONS:
        for example in finder.find(getattr(terms, name), name, globs={}):
            report: list[str] = []
            doctest.DocTestRunner().run(example, out=report.append)
            assert not report, "".join(report)
            ran += bool(example.examples)
    assert ran


def test_all_is_sorted_and_complete():
    assert terms.__all__ == sorted(terms.__all__)
    public = {
        name
        for name, value in vars(terms).items()
        if inspect.isfunction(value) and not name.startswith("_")
    }
    assert public <= set(terms.__all__)
