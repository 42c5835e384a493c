"""What a browser makes of a report, as far as a test needs it."""

import html.parser
from typing import NamedTuple

VOID = {"meta", "img", "link", "br", "hr", "input"}


class Tag(NamedTuple):
    name: str
    attributes: dict[str, str]


class Page(html.parser.HTMLParser):
    """The tags, the text of each table cell, and whether all are closed."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.open, self.tables, self.texts = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(Tag(tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("th", "td"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag, attributes):
        self.tags.append(Tag(tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))
        if {"th", "td"} & {*self.open}:
            self.tables[-1][-1][-1] += data

    def named(self, *names):
        return [tag for tag in self.tags if tag.name in names]

    def table(self, column):
        """The rows of the first table with such a column, as dictionaries."""
        for head, *rows in self.tables:
            if column in head:
                return [dict(zip(head, row, strict=True)) for row in rows]
        raise AssertionError(f"no table has a column {column!r}")

    def text(self, tag):
        return [data for name, data in self.texts if name == tag]
