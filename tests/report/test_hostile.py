"""Run directories of others: JSON of any shape gives a report, or names the file."""

import json
import random
import shutil

import pytest

from jaxkd import report
from jaxkd.report import charts
from tests.report import runs

VALUES = [None, [], {}, 3, -1.5, "x", True, [1], [[]], {"a": 1}, 1e400, 10**400]


def places(tree, above=()):
    """The path of every value of a tree."""
    if isinstance(tree, list):
        tree = dict(enumerate(tree))
    for key, value in tree.items() if isinstance(tree, dict) else ():
        yield (*above, key)
        yield from places(value, (*above, key))


def changed(rng, text):
    """One value of a JSON text replaced by another."""
    tree = json.loads(text)
    *above, key = rng.choice(list(places(tree)))
    inside = tree
    for step in above:
        inside = inside[step]
    inside[key] = rng.choice(VALUES)
    return json.dumps(tree)


@pytest.mark.bad_input
def test_values_of_the_wrong_type_never_end_in_a_traceback(tmp_path, monkeypatch):
    monkeypatch.setattr(charts, "available", lambda: False)  # they are slow
    whole, run, rng = runs.make(tmp_path / "whole"), tmp_path / "run", random.Random(1)
    names = sorted(str(p.relative_to(whole)) for p in whole.rglob("*.json*"))
    refused = 0
    for number in range(120):
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(whole, run)
        file = run / names[number % len(names)]
        lines = file.read_text().splitlines()
        if file.suffix != ".jsonl":
            lines = ["".join(lines)]
        place = rng.randrange(len(lines))
        lines[place] = changed(rng, lines[place])
        file.write_text("\n".join(lines) + "\n")
        try:
            report.write([run], tmp_path / "report")
        except ValueError as error:
            refused += 1
            assert file.name in str(error), error
    assert refused < 20  # all but the number of the format is left out or shown
