"""Random configurations are accepted, or refused in one sentence with key and value."""

import re
import time
import tomllib

import pytest

from jaxkd.__main__ import main
from jaxkd.pipeline import reading, toml
from tests.pipeline.randomly import Randomly

KEY = re.compile(
    r"(the file|name|seed|out|data|models|stages|checkpoints|--to)[.:( \w'\"-]"
)
SECONDS = 20  # of processor time: others may use the machine too


def text_of(tree):
    """A tree as TOML, one line a key."""
    return "".join(f"{toml._key(k)} = {toml._text(v)}\n" for k, v in tree.items())


def parse(seed):
    """Whether a random configuration is accepted."""
    wild = (0.0, 0.01, 0.05)[seed % 3]
    raw = Randomly(seed, wild=wild, small=False).config()
    try:
        config = reading.resolved(reading.decoded(raw, "c.toml"), "c.toml")
    except ValueError as error:
        text = str(error)
        assert text.startswith("c.toml: ") and len(text) < 2000, (seed, text)
        assert KEY.match(text.removeprefix("c.toml: ")), (seed, text)
        return False
    again = tomllib.loads(toml.dumps(config))
    assert reading.resolved(reading.decoded(again, "x"), "x") == config, seed
    return True


@pytest.mark.bad_input
def test_random_configurations_are_parsed_or_refused():
    accepted = sum(map(parse, range(200)))
    assert 20 <= accepted <= 180, accepted


@pytest.mark.slow
@pytest.mark.bad_input
def test_10_000_random_configurations_are_parsed_or_refused():
    accepted = sum(map(parse, range(200, 10_000)))
    assert 1000 <= accepted <= 9000, accepted


def check(seed, path, capsys):
    """The exit code of a check, which ends soon and without a traceback."""
    raw = Randomly(10**6 + seed, wild=0.002, small=True).config()
    path.write_text(text_of(raw))
    begin = time.process_time()
    code = main(["run", str(path), "--check"])
    seconds = time.process_time() - begin
    error = capsys.readouterr().err
    assert code in (0, 2) and "Traceback" not in error, (seed, error)
    assert seconds < SECONDS, (seed, seconds)
    if code:
        said = error.removeprefix("error: ").removeprefix(f"{path}: ")
        assert said != error and KEY.match(said), (seed, error)
    return code


@pytest.mark.slow
@pytest.mark.bad_input
def test_300_random_configurations_are_checked_or_refused(tmp_path, capsys):
    codes = [check(seed, tmp_path / "c.toml", capsys) for seed in range(300)]
    assert 30 <= codes.count(0) <= 270, codes
