"""Build the pages of the API from the docstrings: `python .github/api.py FOLDER`."""

import pathlib
import re
import sys

import pdoc
from pdoc import docstrings

LINK = re.compile(r"`([^`<>]+?)\s+<([^`<>]+)>`_")  # may go over the end of a line


def convert(text: str, docformat: str, source_file: pathlib.Path | None) -> str:
    """Convert Google's sections with reStructuredText's links and `::` to Markdown."""
    text = LINK.sub(lambda m: f"[{' '.join(m[1].split())}]({m[2]})", text)
    return usual(re.sub(r"::$", ":", text, flags=re.MULTILINE), docformat, source_file)


usual = docstrings.convert
docstrings.convert = convert
pdoc.render.configure(docformat="google", search=True)
private = "!jaxkd(\\..*)?\\._.*"
pdoc.pdoc("jaxkd", private, output_directory=pathlib.Path(sys.argv[1]))
