"""Configurations with mistakes, hundreds of them, through the command line."""

import copy
import random
import tomllib

from jaxkd.__main__ import main
from jaxkd.pipeline import reading, run as runs, toml
from tests.pipeline import small

VALUES = [
    *(0, 1, -1, 3, 10**9, 10**30, -(2**63), True, False, 0.0, -0.5, 1e308, 5e-324),
    *(
        float("nan"),
        float("inf"),
        "",
        "x",
        "student",
        "teacher",
        "../../etc",
        "a" * 999,
    ),
    *([], [1], [[]], ["stage1"], {}, {"a": 1}, {"kind": "train"}, {"kind": 3}),
]


def places(tree, above=()):
    """The path of every value of a tree."""
    items = (
        tree.items()
        if isinstance(tree, dict)
        else enumerate(tree)
        if isinstance(tree, list)
        else ()
    )
    for key, value in items:
        yield (*above, key)
        yield from places(value, (*above, key))


def mutated(rng, tree):
    """A copy with one to three things wrong, or merely other."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        found = list(places(tree))
        *above, key = rng.choice(found)
        inside = tree
        for step in above:
            inside = inside[step]
        what = rng.randrange(6)
        if what == 0 and isinstance(inside, dict):
            name = str(key)
            inside[name[:1] + name[2:] or "q"] = inside.pop(key)  # misspelt
        elif what == 1 and isinstance(inside, dict):
            inside[rng.choice(["epochs", "kind", "extra", "weight", ""])] = rng.choice(
                VALUES
            )
        elif what == 2:
            del inside[key]
        elif what == 3 and isinstance(inside, list):
            rng.shuffle(inside)
        else:
            inside[key] = copy.deepcopy(rng.choice(VALUES))
        if not list(places(tree)):
            break
    return tree


def text_of(tree):
    """A tree as TOML in one line a key."""
    return "".join(f"{toml._key(k)} = {toml._text(v)}\n" for k, v in tree.items())


def test_no_mutation_gives_a_traceback_or_starts_work(tmp_path, monkeypatch, capsys):
    """600 configurations with mistakes, through the command line in this process."""
    started = []
    monkeypatch.setattr(runs, "start", lambda config, *a, **k: started.append(config))
    monkeypatch.setattr("jaxkd.__main__._finish", lambda run: None)
    rng = random.Random(0)
    bases = [tomllib.loads(small.TEXT)]
    bases += [
        tomllib.loads(toml.dumps(reading.load(n)))
        for n in ("digits", "cifar10-nas", "digits-fsp")
    ]
    counts = {0: 0, 2: 0}
    path = tmp_path / "mutant.toml"
    for number in range(600):
        tree = mutated(rng, bases[number % len(bases)])
        path.write_text(text_of(tree))
        before = len(started)
        code = main(["run", str(path), "--to", str(tmp_path / "run")])
        said = capsys.readouterr().err
        assert code in counts, (number, said)
        counts[code] += 1
        assert (len(started) > before) == (code == 0)
        if code:
            assert said.startswith("error: ") and "mutant.toml: " in said, said
        assert "Traceback" not in said
        assert not (tmp_path / "run").exists()
    assert counts[2] >= 400, counts  # most mutations are mistakes, some are harmless
    assert counts[0] >= 10, counts
