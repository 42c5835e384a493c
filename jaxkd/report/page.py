"""Blocks as HTML and as Markdown. Nothing a run says is trusted to be harmless."""

import html as entities
import importlib.resources
import re
from collections.abc import Mapping, Sequence

from jaxkd.report import tables
from jaxkd.report.blocks import (
    Block,
    Details,
    Heading,
    Note,
    Picture,
    Raw,
    Table,
    Text,
    Tiles,
)
from jaxkd.report.tables import clean

MARK = "<!-- written by jaxkd report -->"  # by which its own file is recognised
# Nothing is fetched and no script runs, whatever the text says.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def html(title: str, blocks: Sequence[Block]) -> str:
    """A whole page that needs nothing but itself."""
    style = importlib.resources.files("jaxkd.report").joinpath("style.css").read_text()
    body = "\n".join(_html(block) for block in blocks)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="generator" content="jaxkd report">\n'
        f"<title>{escape(title)}: report</title>\n<style>\n{style}</style>\n</head>\n"
        f"<body>\n<main>\n<h1>{escape(title)}</h1>\n{body}\n</main>\n</body>\n</html>\n"
    )


def markdown(title: str, blocks: Sequence[Block]) -> str:
    """The same in GitHub's Markdown; charts are links to `pictures/`."""
    return "\n".join(
        [
            f"# {marked(title)}\n\n{MARK}\n",
            *(f"{_markdown(block)}\n" for block in blocks),
        ]
    )


def escape(text: object) -> str:
    """Text as HTML, also within quotes.

    >>> escape("<b>'x'")
    '&lt;b&gt;&#x27;x&#x27;'
    """
    return entities.escape(clean(text))


def marked(text: object) -> str:
    r"""Text as Markdown, of one line, that says what it says.

    >>> print(marked("a|b<i>[c]*"))
    a\|b&lt;i&gt;\[c\]\*
    """
    line = " ".join(clean(text).split())
    return re.sub(r"([\\`*\[\]|~])", r"\\\1", entities.escape(line, quote=False))


def inline(svg: str, name: str) -> str:
    """A chart for the page: its names are its own, its colours are the page's."""
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'(?:xlink:)?href="#([^"]+)"', rf'href="#{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", svg)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg)
    for place, color in enumerate(PALETTE):
        svg = svg.replace(color, f"var(--c{place})")
    return svg.replace(INK, "var(--ink)").replace(GRID, "var(--grid)")


def standalone(svg: str) -> str:
    """A chart as a file: readable where the page around it is dark."""
    return svg.replace("<svg ", '<svg style="background:#ffffff" ', 1)


# As in style.css; after Okabe and Ito, whose colours the colour-blind tell apart.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#b8578a", "#c98a00", "#3a9bd9", "#7a5195")
INK, GRID = "#1c2024", "#d3d7dc"


def _html(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{escape(text)}</h{level}>"
        case Text(text):
            return f"<p>{escape(text)}</p>"
        case Note(text):
            return f'<p class="note" role="note">{escape(text)}</p>'
        case Tiles(tiles):
            return _tiles(tiles)
        case Table():
            return _table(block)
        case Picture(name, svg, alt, caption):
            label = f'<svg role="img" aria-label="{escape(alt)}" '
            drawn = inline(svg, name).replace("<svg ", label, 1)
            said = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
            return f"<figure>{drawn}{said}</figure>"
        case Raw(text, _):
            return text
        case Details(summary, text):
            return (
                f"<details><summary>{escape(summary)}</summary>"
                f"<pre>{escape(text)}</pre></details>"
            )


def _tiles(tiles: Sequence[tuple[str, str, str]]) -> str:
    items = "".join(
        f"<div><dt>{escape(what)}</dt><dd>{escape(value)}</dd>"
        f'<dd class="remark">{escape(remark)}</dd></div>'
        for what, value, remark in tiles
    )
    return f'<dl class="tiles">{items}</dl>'


def _table(table: Table) -> str:
    columns = list(table.rows[0])
    side = lambda place: ' class="word"' if place < table.left else ""
    head = "".join(
        f'<th scope="col"{side(i)}>{escape(column)}</th>'
        for i, column in enumerate(columns)
    )
    kinds = list(table.kinds) or [""] * len(table.rows)
    body = "".join(
        _row(row, columns, table.left, kind)
        for row, kind in zip(table.rows, kinds, strict=True)
    )
    return (
        f'<div class="wide"><table><caption>{escape(table.caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _row(row: Mapping[str, str], columns: Sequence[str], left: int, kind: str) -> str:
    cells = []
    for place, column in enumerate(columns):
        text = escape(row.get(column, ""))
        # The deviation may go below the mean where the page is narrow.
        text = re.sub(r" ± (\S+)", r' <span class="sd">± \1</span>', text)
        if place == 0:
            cells.append(f'<th scope="row">{text}</th>')
        else:
            word = ' class="word"' if place < left else ""
            cells.append(f"<td{word}>{text}</td>")
    return (
        f"<tr{f' class={chr(34)}{kind}{chr(34)}' if kind else ''}>{''.join(cells)}</tr>"
    )


def _markdown(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {marked(text)}"
        case Text(text):
            return marked(text)
        case Note(text):
            return f"> {marked(text)}"
        case Tiles(tiles):
            return "\n".join(
                f"* {marked(what)}: **{marked(value)}**"
                + (f", {marked(remark)}" if remark else "")
                for what, value, remark in tiles
            )
        case Table(rows, caption):
            cells = [
                {marked(column): marked(row.get(column, "")) for column in rows[0]}
                for row in rows
            ]
            return f"{marked(caption)}\n\n{tables.markdown(cells)}"
        case Picture(name, _, alt, caption):
            image = f"![{marked(alt)}](pictures/{name}.svg)"
            return f"{image}\n\n{marked(caption)}" if caption else image
        case Raw(_, text):
            return text
        case Details(summary, text):
            fence = "`" * (3 + max(map(len, re.findall("`+", text)), default=0))
            return f"{marked(summary)}:\n\n{fence}\n{clean(text).rstrip()}\n{fence}"
