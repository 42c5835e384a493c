"""A finished run as a table, and its report."""

import os
import pathlib
from collections.abc import Sequence

from jaxkd import report
from jaxkd.pipeline import directory
from jaxkd.report import rows as report_rows


def results(run: str | os.PathLike) -> report_rows.RunResults:
    """Return what results.json of a run holds.

    Raises:
      ValueError: if there is no such file, or it is damaged or of another version.
    """
    path = pathlib.Path(run) / directory.RESULTS
    try:
        return report_rows.read(path, report_rows.RunResults)
    except FileNotFoundError:
        raise ValueError(f"{run} holds no results: there is no {path.name}") from None


def rows(run: str | os.PathLike) -> list[dict[str, str]]:
    """Return the table of a run: one row for each result."""
    percent = lambda x: "" if x is None else f"{100 * x:.2f}"
    table = []
    for row in results(run).rows:
        table.append(
            {
                "stage": row.stage,
                "model": row.model,
                "accuracy": percent(row.accuracy),
                "nll": f"{row.nll:.4f}",
                "ece": percent(row.ece),
                "agreement": percent(row.agreement),
                "parameters": f"{row.parameters:,}",
                "MACs": f"{row.macs:,}",
                "bytes": f"{row.bytes:,}",
                "ms": "",
                "seconds": f"{row.seconds:.1f}",
            }
        )
        for file in row.files:
            speed = file.milliseconds
            table.append(
                {
                    "stage": pathlib.Path(file.path).name,
                    "model": row.model,
                    "accuracy": percent(file.accuracy),
                    "nll": "" if file.nll is None else f"{file.nll:.4f}",
                    "bytes": f"{file.bytes:,}",
                    "ms": "" if speed is None else f"{speed:.3f}",
                }
            )
    return table


def write_report(
    runs: Sequence[str | os.PathLike], to: str | os.PathLike | None = None
) -> list[pathlib.Path]:
    """Write the report of runs; return its files."""
    for run in runs:
        results(run)
    return [pathlib.Path(path) for path in report.write(list(runs), to or runs[0])]
