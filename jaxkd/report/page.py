"""Write the report of runs: `report.html` and `results.md`."""

import functools
import hashlib
import html
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import jinja2
from markupsafe import Markup

from jaxkd import store
from jaxkd.report import history, predictions, results, tables
from jaxkd.report.merging import RunGroup, differences, group_runs
from jaxkd.report.reading import read

PAGE, TABLES = "report.html", "results.md"
# A comment at the end of each file, in HTML and Markdown; its SHA-256 follows.
_SEAL = "\n<!-- written by jaxkd report, sha256 "


def write(
    runs: Sequence[str | os.PathLike], out: str | os.PathLike | None = None
) -> list[pathlib.Path]:
    """Write the report of one run, or of several beside each other.

    Runs whose configurations differ in the seed alone are one row: a mean and its
    sample standard deviation. What a run does not have (a stage not done, a teacher,
    exported files) is left out, and the report says so. The same runs give the same
    bytes.

    Args:
      runs: run directories; the format is that of `jaxkd.pipeline`.
      out: the folder for the report; by default the first run.

    Returns:
      The files: `report.html`, one page that needs no network and no scripts, and
      `results.md`, its tables of results.

    Raises:
      ValueError: if `runs` is empty, or something is not a run directory or is damaged
        or of another format; if a file of the same name exists, and is not as an
        earlier report left it.
      OSError: if `out` cannot be written.
    """
    if isinstance(runs, str | os.PathLike):
        raise ValueError(f"runs must be a sequence of run directories, got {runs!r}")
    places = {pathlib.Path(run).resolve(): pathlib.Path(run) for run in runs}
    if not places:
        raise ValueError("runs must name at least one run directory, got none")
    records = [read(place) for place in places.values()]
    groups, doubts = group_runs(records)
    title = ", ".join(dict.fromkeys(group.runs[0].name for group in groups))
    notes = [note for run in records for note in run.notes] + doubts
    folder = pathlib.Path(next(iter(places.values())) if out is None else out)
    texts = {
        PAGE: render(title, groups, notes),
        TABLES: results_markdown(title, groups, notes),
    }
    for name in texts:
        _require_ours(folder / name)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        store.write_file(folder / name, _seal(text.encode(errors="replace")))
    return [folder / name for name in texts]


def render(title: str, groups: Sequence[RunGroup], notes: Sequence[str]) -> str:
    """Return the page."""
    several = len(groups) > 1
    return _template().render(
        title=title,
        notes=notes,
        comparison=results.comparison(groups) if several else [],
        differences=differences(groups) if several else [],
        sizes=results.size_chart(groups) if several else None,
        groups=[
            {
                "name": group.name if several else "",
                "whose": group.whose,
                **results.sections(group),
                **predictions.sections(group),
                **history.sections(group),
            }
            for group in groups
        ],
    )


def results_markdown(
    title: str, groups: Sequence[RunGroup], notes: Sequence[str]
) -> str:
    """Return the tables of results as Markdown."""
    parts = [f"# {escape_markdown(title)}"]
    parts += [f"> {escape_markdown(note)}" for note in notes]
    if len(groups) > 1:
        parts += [_markdown(results.comparison(groups)), _markdown(differences(groups))]
    for group in groups:
        found = results.sections(group)
        parts += [f"## {escape_markdown(group.name)}"] if len(groups) > 1 else []
        parts += [
            _markdown(found.get("table", [])),
            escape_markdown(found.get("over", "")),
        ]
        parts += [escape_markdown(f"{s}: {text}") for s, text in found["pending"]]
        parts += [_markdown(found.get("files", []))]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def escape_markdown(text: object) -> str:
    r"""Return text for one line of Markdown, also in a cell of a table.

    >>> print(escape_markdown("a|b<i>[c]*"))
    a\|b&lt;i&gt;\[c\]\*
    """
    line = html.escape(" ".join(str(text).split()), quote=False)
    return re.sub(r"([\\`*\[\]|~])", r"\\\1", line)


def _markdown(rows: Sequence[results.TableRow]) -> str:
    escape = escape_markdown
    if not rows:
        return ""
    return tables.markdown(
        [{escape(k): escape(row.get(k, "")) for k in rows[0]} for row in rows]
    )


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("jaxkd.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.ChainableUndefined,  # what a run does not have
    )
    environment.filters["deviation"] = _deviation
    return environment.get_template("template.html")


def _deviation(text: Any) -> Markup:
    """Let the deviation go below the mean where the page is narrow."""
    escaped = str(Markup.escape(text))
    return Markup(re.sub(r" ± (\S+)", r' <span class="sd">± \1</span>', escaped))


def _require_ours(path: pathlib.Path) -> None:
    """Refuse to replace a file that is no report, or was changed since."""
    if path.is_symlink() or (path.exists() and not _is_ours(path)):
        raise ValueError(
            f"{path} was not written by jaxkd report, or was changed since, and is not "
            "replaced: move it away, or name another folder with --to"
        )


def _is_ours(path: pathlib.Path) -> bool:
    """Return whether a file ends in the checksum of what is before it."""
    if not path.is_file():
        return False
    content = path.read_bytes()
    text, _, _ = content.rpartition(_SEAL.encode())
    return bool(text) and content == _seal(text)


def _seal(content: bytes) -> bytes:
    """Return the content with its own checksum, by which it is recognised."""
    return content + f"{_SEAL}{hashlib.sha256(content).hexdigest()} -->\n".encode()
