"""What a report is made of, whatever it is written in."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

MISSING = "\u2013"  # in the place of a number


class Heading(NamedTuple):
    """A title; level 2 is the highest below that of the page."""

    text: str
    level: int


class Text(NamedTuple):
    """A paragraph."""

    text: str


class Note(NamedTuple):
    """Something the reader should know: a part that is missing, a doubt."""

    text: str


class Tiles(NamedTuple):
    """The figures that matter most: (what, value, remark)."""

    tiles: Sequence[tuple[str, str, str]]


class Table(NamedTuple):
    """A table.

    Attributes:
      rows: column -> cell; the columns are the keys of the first row.
      caption: what it shows.
      left: how many of the columns, from the left, hold words; the rest hold numbers.
      kinds: of each row, "teacher", "file", "best" or "", for how it looks.
    """

    rows: Sequence[Mapping[str, str]]
    caption: str
    left: int = 1
    kinds: Sequence[str] = ()


class Picture(NamedTuple):
    """A chart.

    Attributes:
      name: of its file, without the ending.
      svg: from `charts`.
      alt: what is to be seen, in words.
      caption: what it shows.
    """

    name: str
    svg: str
    alt: str
    caption: str


class Raw(NamedTuple):
    """The same thing in both languages, each already escaped."""

    html: str
    markdown: str


class Details(NamedTuple):
    """Text as it is, folded away."""

    summary: str
    text: str


Block = Heading | Text | Note | Tiles | Table | Picture | Raw | Details
