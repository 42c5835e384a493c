"""Tables, in Markdown and on the terminal, and means of several seeds."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

Rows = Sequence[Mapping[str, Any]]


def mean_sd(values: Any, *, scale: float = 1.0, digits: int = 2) -> str:
    """The mean of several seeds and their sample standard deviation.

    >>> mean_sd([0.5, 0.7], scale=100)
    '60.00 ± 14.14'
    >>> mean_sd([0.5], scale=100)
    '50.00'
    """
    values = scale * np.asarray(values, float).ravel()
    mean = f"{values.mean():.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {values.std(ddof=1):.{digits}f}"


def listed(facts: Mapping[str, Any]) -> str:
    """A list in Markdown.

    >>> print(listed({"jax": "0.10.2", "python": "3.11"}), end="")
    * jax: 0.10.2
    * python: 3.11
    """
    return "".join(f"* {name}: {value}\n" for name, value in facts.items())


def markdown(rows: Rows) -> str:
    """A table whose columns are the keys of the first row."""
    columns = list(rows[0])
    lines = [columns, ["---"] * len(columns)]
    lines += [[str(row.get(column, "")) for column in columns] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def show(rows: Rows, title: str = "") -> None:
    """Prints the same table on the terminal; without rows, that there are none."""
    if not rows:
        print(f"{title}: no model was measured")
        return
    table = Table(title=title, title_justify="left")
    for column in rows[0]:
        table.add_column(
            column, justify="left" if column == next(iter(rows[0])) else "right"
        )
    for row in rows:
        table.add_row(*(str(row.get(column, "")) for column in rows[0]))
    # A pipe has no width: without one rich would wrap the columns to 80 characters.
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    console.print(table)
