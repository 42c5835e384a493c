"""The report of runs: what it is made of, in order, and the files it becomes."""

import hashlib
import os
import pathlib
from collections.abc import Sequence

from jaxkd import store
from jaxkd.report import charts, courses, facts, page, predictions, results
from jaxkd.report.blocks import Block, Heading, Note, Picture
from jaxkd.report.merging import Group, grouped
from jaxkd.report.reading import read

# A comment at the end of each file, in Markdown, HTML and SVG; its SHA-256 follows.
_SEAL = "\n<!-- written by jaxkd report, sha256 "


def write(
    runs: Sequence[str | os.PathLike], out: str | os.PathLike | None = None
) -> list[pathlib.Path]:
    """Writes the report of one run, or of several beside each other.

    Runs whose configurations differ in the seed alone are one row: a mean and its
    sample standard deviation. What a run does not have (a stage not done, a teacher,
    exported files, matplotlib) is left out, and the report says so. The same runs give
    the same bytes.

    Args:
      runs: run directories; the format is that of `jaxkd.pipeline`.
      out: the folder for the report; by default the first run.

    Returns:
      The files: `report.md`, `report.html`, and the charts of the former,
      `pictures/*.svg`.

    Raises:
      ValueError: if `runs` is empty, or something is not a run directory or is of
        another format; if a file of the report is there already, and is not as an
        earlier report left it.
      OSError: if `out` cannot be written.
    """
    if isinstance(runs, str | os.PathLike):
        raise ValueError(f"runs must be a sequence of run directories, got {runs!r}")
    places = {pathlib.Path(run).resolve(): pathlib.Path(run) for run in runs}
    if not places:
        raise ValueError("runs must name at least one run directory, got none")
    groups = grouped([read(place) for place in places.values()])
    title = ", ".join(dict.fromkeys(group.runs[0].name for group in groups))
    blocks = contents(groups)
    folder = pathlib.Path(next(iter(places.values())) if out is None else out)
    pictures = {
        f"pictures/{block.name}.svg": page.standalone(block.svg)
        for block in blocks
        if isinstance(block, Picture)
    }
    texts = {
        "report.md": page.markdown(title, blocks),
        "report.html": page.html(title, blocks),
        **pictures,
    }
    _require_ours(folder, list(texts))
    return [_put(folder / name, text) for name, text in texts.items()]


def contents(groups: Sequence[Group]) -> list[Block]:
    """The report as blocks, which know neither HTML nor Markdown."""
    blocks: list[Block] = []
    notes = [note for group in groups for run in group.runs for note in run.notes]
    notes += [note for group in groups for note in group.notes]
    if not charts.available():
        notes.append(
            "The charts are missing: they need matplotlib "
            "(pip install 'jaxkd-distill[plots]')."
        )
    blocks += [Note(note) for note in notes]
    if len(groups) > 1:
        blocks += results.comparison(groups)
    for number, group in enumerate(groups):
        name = f"run{number}"
        if len(groups) > 1:
            blocks.append(Heading(group.name, 2))
        blocks += results.blocks(group, name)
        blocks += predictions.blocks(group)
        blocks += courses.blocks(group, name)
        blocks += facts.blocks(group)
    return blocks


def _require_ours(folder: pathlib.Path, names: Sequence[str]) -> None:
    """Refuse to write over files that are not of a report, or were changed since."""
    for path in (folder / name for name in names):
        if path.is_symlink() or (path.exists() and not _is_ours(path)):
            raise ValueError(
                f"{path} was not written by jaxkd report, or was changed since, and is "
                "not replaced: move it away, or name another folder with --to"
            )


def _is_ours(path: pathlib.Path) -> bool:
    """Whether a file ends in the checksum of what is before it."""
    if not path.is_file():
        return False
    content = path.read_bytes()
    text, _, _ = content.rpartition(_SEAL.encode())
    return bool(text) and content == _sealed(text)


def _sealed(content: bytes) -> bytes:
    """The content with its own checksum, by which it is recognised."""
    return content + f"{_SEAL}{hashlib.sha256(content).hexdigest()} -->\n".encode()


def _put(path: pathlib.Path, text: str) -> pathlib.Path:
    """Writes a file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    store.write_file(path, _sealed(text.encode()))
    return path
