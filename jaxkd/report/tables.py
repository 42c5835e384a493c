"""Tables, in Markdown and on the terminal, and means of several seeds."""

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

Rows = Sequence[Mapping[str, Any]]


def mean_sd(values: Any, *, scale: float = 1.0, digits: int = 2) -> str:
    """Return the mean of several seeds and their sample standard deviation.

    >>> mean_sd([0.5, 0.7], scale=100)
    '60.00 ± 14.14'
    >>> mean_sd([0.5], scale=100)
    '50.00'
    """
    values = scale * np.asarray(values, float).ravel()
    mean = f"{values.mean():.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {values.std(ddof=1):.{digits}f}"


def gain(values: Any, baseline: Any, *, scale: float = 100.0, digits: int = 2) -> str:
    """Return the mean difference of paired seeds and its standard error.

    >>> gain([0.5, 0.8], [0.4, 0.5])  # 10 and 30; 14.14 / sqrt(2)
    '+20.00 ± 10.00'
    >>> gain([0.5], [0.4])
    '+10.00'
    """
    difference = scale * (np.asarray(values, float) - np.asarray(baseline, float))
    difference = difference.ravel()
    mean, n = f"{difference.mean():+.{digits}f}", len(difference)
    if n == 1:
        return mean
    return f"{mean} ± {difference.std(ddof=1) / n**0.5:.{digits}f}"


def listed(facts: Mapping[str, Any]) -> str:
    """Return a list in Markdown.

    >>> print(listed({"jax": "0.10.2", "python": "3.11"}), end="")
    * jax: 0.10.2
    * python: 3.11
    """
    return "".join(f"* {name}: {value}\n" for name, value in facts.items())


def markdown(rows: Rows) -> str:
    """Return a table whose columns are the keys of the first row."""
    columns = list(rows[0])
    lines = [columns, ["---"] * len(columns)]
    lines += [[str(row.get(column, "")) for column in columns] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def clean(text: object) -> str:
    r"""Without control characters and what UTF-8 cannot hold.

    >>> clean("a\x00b") == "a\ufffdb"
    True
    """
    bad = ("Cc", "Cs")
    keep = lambda c: c in "\n\t" or unicodedata.category(c) not in bad
    return "".join(c if keep(c) else "\ufffd" for c in str(text))


def show(rows: Rows, title: str = "") -> None:
    """Print the same table on the terminal, its text as it is.

    Neither escape sequences nor rich's markup in it have an effect. Without rows, a
    line says that there are none.
    """
    if not rows:
        print(f"{clean(title)}: no model was measured")
        return
    plain = lambda text: Text(clean(text))
    table = Table(title=plain(title), title_justify="left")
    columns = list(rows[0])
    for place, column in enumerate(columns):
        table.add_column(plain(column), justify="right" if place else "left")
    for row in rows:
        table.add_row(*(plain(row.get(column, "")) for column in columns))
    # A pipe has no width: without one rich would wrap the columns to 80 characters.
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    console.print(table)
