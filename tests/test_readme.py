"""The README tells the truth: its code runs, its table lists the losses there are.

`python -m tests.test_readme` prints the table of losses for it.
"""

import inspect
import pathlib
import re

import jax
import pytest

import jaxkd.schemes
from jaxkd import losses, terms

README = (pathlib.Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def loss_table() -> str:
    """Name, first line and paper of every loss, from the docstrings."""
    lines = ["| loss | what it is | paper |", "| --- | --- | --- |"]
    for name in losses.__all__:
        text = inspect.getdoc(getattr(losses, name))
        title, link = re.search(
            r"`([^`<]+?)\s*<(\S+?)>`_", text.split("References:")[1]
        ).groups()
        paper = f"[{' '.join(title.split())}]({link})"
        first = text.splitlines()[0].removesuffix(".")
        lines.append(f"| [`{name}`](jaxkd/losses/_{name}.py) | {first} | {paper} |")
    return "\n".join(lines) + "\n"


def test_the_table_of_losses_is_that_of_the_docstrings():
    assert loss_table() in README


def test_every_term_and_scheme_is_named():
    helpers = {"adapters", "margins", "measured_margins"}
    for name in set(terms.__all__) - helpers:
        assert f"`{name}`" in README, name
    folder = pathlib.Path(jaxkd.schemes.__file__).parent
    for path in folder.glob("[a-z]*.py"):
        if path.stem != "chain":  # what born_again and assistants share
            assert f"`schemes.{path.stem}`" in README, path.stem


@pytest.mark.parametrize("place", range(len(BLOCKS)))
def test_code_runs(place, capsys):
    code = compile(BLOCKS[place], f"README.md, block {place + 1}", "exec")
    with jax.numpy_rank_promotion("allow"):  # as readers have it
        exec(code, {})


def test_there_is_code():
    assert len(BLOCKS) >= 2


@pytest.mark.parametrize("heading", ["## Run it", "## Test it"])
def test_a_heading_has_one_command(heading):
    section = README.split(f"{heading}\n")[1].split("\n## ")[0]
    (command,) = re.findall(r"^```sh\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    assert command.startswith("python3 -m venv .venv && ")


def test_links_lead_somewhere():
    root = pathlib.Path(__file__).parents[1]
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert link.startswith("http") or (root / link).exists(), link


if __name__ == "__main__":
    print(loss_table())
