"""Every public function of `jaxkd.losses` is explained, and its example runs."""

import doctest
import inspect

import pytest

from jaxkd import losses

SECTIONS = ("Args:", "Returns:", "Raises:", "Example:", "References:")
every_function = pytest.mark.parametrize("name", losses.__all__)


@every_function
def test_has_every_section_in_order(name):
    text = inspect.getdoc(getattr(losses, name)) or ""
    places = [text.find(f"\n{section}") for section in SECTIONS]
    assert -1 not in places, [
        s for s, at in zip(SECTIONS, places, strict=True) if at < 0
    ]
    assert places == sorted(places)
    assert "https://" in text


@every_function
def test_explains_every_argument(name):
    loss = getattr(losses, name)
    arguments = (inspect.getdoc(loss) or "").split("\nArgs:")[1].split("\nReturns:")[0]
    for parameter in inspect.signature(loss).parameters:
        assert f"\n  {parameter}: " in arguments, parameter


@every_function
def test_example_runs(name):
    # doctest's own search passes over functions that are wrapped.
    loss = inspect.unwrap(getattr(losses, name))
    (example,) = doctest.DocTestFinder(recurse=False).find(loss, name, globs={})
    assert example.examples
    report: list[str] = []
    doctest.DocTestRunner().run(example, out=report.append)
    assert not report, "".join(report)


def test_all_is_sorted_and_complete():
    assert losses.__all__ == sorted(losses.__all__)
    public = {name for name, value in vars(losses).items() if inspect.isfunction(value)}
    assert public == set(losses.__all__)
